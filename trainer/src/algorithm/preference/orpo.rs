//! Odds ratio preference optimisation (Hong et al. 2024, ORPO, arXiv 2403.07691): imitation and preference in one run.
//!
//! ```text
//! ℓ = −a_c − λ log σ(log odds a_c − log odds a_r),   a = log π / L,   log odds a = a − log(1 − e^a)
//! ```
//!
//! The first term imitates the chosen completion, the second separates the odds; there is no reference and no warm-up
//! run. The likelihood is that of the completion alone; TRL's code also counts the tokens of the prompt.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::objective::MetricSums;
use crate::objective::preference::{log_odds_ratio, odds_ratio};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[algorithm.orpo]`: odds ratio preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orpo {
    /// Weight λ of the odds ratio relative to the likelihood.
    #[serde(alias = "lambda")]
    pub beta: f64,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { beta: 0.1, max_length: 1024 }
    }
}

impl Orpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("orpo", self.max_length, self.beta)?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Orpo {
    fn needs(&self) -> Needs {
        pair_loss::needs_without_reference(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, sums: &mut MetricSums) -> Tensor {
        let (chosen, rejected) = (pairs.logprobs.chosen_mean(), pairs.logprobs.rejected_mean());
        let ratio = log_odds_ratio(&chosen.detach(), &rejected.detach());
        let count = chosen.numel() as f64;
        sums.add("log_odds_chosen", &ratio.sum(Kind::Double), count);
        sums.add("nll_loss", &-chosen.sum(Kind::Double), count);
        odds_ratio(&chosen, &rejected) * self.beta - &chosen
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn rewards(&self, pairs: &PairBatch) -> (Tensor, Tensor) {
        (pairs.logprobs.chosen_mean() * self.beta, pairs.logprobs.rejected_mean() * self.beta)
    }
}
