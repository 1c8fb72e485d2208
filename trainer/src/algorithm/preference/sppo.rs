//! Self-play preference optimisation (Wu et al. 2024, SPPO, arXiv 2405.00675): log-ratios are fitted to win rates.
//!
//! The mirror-descent step towards the policy that no other beats multiplies each completion's probability by `exp(η
//! P)`. A squared loss regresses on it, separately for each side:
//!
//! ```text
//! hard  ℓ = (h_c − 1/(2β))² + (h_r + 1/(2β))²                                 h = log(π / π_ref), β = 1/η
//! soft  ℓ = ½ [(h_c − (P_c − ½)/β)² + (h_r − (P_r − ½)/β)²]                   P = win rate against the policy
//! ```
//!
//! The hard form is TRL's and takes the label for certain; the soft form is that of the authors' code. From a data set
//! the two win rates are 1 and 0. `[algorithm.apo]` with `loss = "sppo"` runs the method in iterations.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::objective::MetricSums;
use crate::objective::preference::self_play;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.sppo]`: self-play preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sppo {
    /// β = 1/η: the smaller, the further the policy moves.
    pub beta: f64,
    /// Form of the loss: `hard` for certain labels, `soft` for win rates.
    pub form: SppoForm,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

/// Targets of the log-ratios.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SppoForm {
    /// Certain labels: the targets are plus and minus `1/(2β)`.
    #[default]
    Hard,
    /// Win rates: the targets are `(P − ½)/β`.
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

/// Returns the loss of each pair, `[pair]`.
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

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        losses(pairs, self.beta, self.form)
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
