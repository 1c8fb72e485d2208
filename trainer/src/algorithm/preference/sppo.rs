//! Self-play preference optimisation (Wu et al. 2024, SPPO, arXiv 2405.00675): log-ratios fit win rates.
//!
//! The mirror-descent step towards the policy that no other beats multiplies each completion's probability by
//! `exp(η P)`. A squared loss regresses on it, each side by itself:
//!
//! ```text
//! hard  ℓ = (h_c − 1/(2β))² + (h_r + 1/(2β))²                                 h = log(π / π_ref), β = 1/η
//! soft  ℓ = ½ [(h_c − (P_c − ½)/β)² + (h_r − (P_r − ½)/β)²]                   P = win rate against the policy
//! ```
//!
//! The hard form is TRL's and takes the label for certain; the soft form is that of the authors' code. From a data set
//! the two win rates are 1 and 0 or what its judges say. `[algorithm.apo]` with `loss = "sppo"` plays it in rounds.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::objective::MetricSums;
use crate::objective::preference::self_play;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.sppo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sppo {
    /// 1/η: the smaller, the further the policy moves.
    pub beta: f64,
    /// Whether labels are certain.
    pub form: SppoForm,
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
}

/// What the log-ratios are fitted to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SppoForm {
    /// Certain labels: plus and minus `1/(2β)`.
    #[default]
    Hard,
    /// Win rates.
    Soft,
}

impl Default for Sppo {
    fn default() -> Self {
        Self { beta: 0.001, form: SppoForm::Hard, max_length: 1024 }
    }
}

impl Sppo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("sppo", self.max_length, self.beta)?;
        Ok(Pairwise(self))
    }
}

/// The loss of each pair, `[pair]`.
pub(super) fn losses(pairs: &PairBatch, beta: f64, form: SppoForm) -> Tensor {
    let (chosen, rejected) = (pairs.logprobs.chosen_ratio(), pairs.logprobs.rejected_ratio());
    match form {
        SppoForm::Hard => {
            let target = chosen.full_like(0.5 / beta);
            self_play(&chosen, &rejected, &target, &-&target) * 2.0
        }
        SppoForm::Soft => {
            let target = |win_rate: &Tensor| (win_rate - 0.5) / beta;
            self_play(&chosen, &rejected, &target(&pairs.chosen_win_rate), &target(&pairs.rejected_win_rate))
        }
    }
}

impl PairLoss for Sppo {
    fn needs(&self) -> Needs {
        pair_loss::needs(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, _tally: &mut MetricSums) -> Tensor {
        losses(pairs, self.beta, self.form)
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
