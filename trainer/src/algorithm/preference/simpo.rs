//! Simple preference optimisation (Meng et al. 2024, `SimPO`, arXiv 2405.14734): no reference, and a target margin.
//!
//! Generation is governed by the mean log-probability of a token, so that is compared. Without a length bias no
//! reference is needed:
//!
//! ```text
//! ℓ = −log σ(β (log π(chosen)/L_c − log π(rejected)/L_r) − γ)  −  c · log π(chosen)/L_c
//! ```
//!
//! The term with `c` is not in the paper; TRL calls the combination CPO-SimPO.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::objective::MetricSums;
use crate::objective::preference::margin;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.simpo]`: simple preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Simpo {
    /// Scale β of a difference of mean log-probabilities.
    pub beta: f64,
    /// Target margin γ after scaling, at which the loss is log 2; TRL's `simpo_gamma`.
    #[serde(alias = "simpo_gamma")]
    pub gamma: f64,
    /// Weight c of the chosen completion's negative log-likelihood per token; 0 for none.
    #[serde(alias = "cpo_alpha")]
    pub sft_coefficient: f64,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

impl Default for Simpo {
    fn default() -> Self {
        Self { beta: 2.5, gamma: 1.375, sft_coefficient: 0.0, max_length: 1024 }
    }
}

impl Simpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("simpo", self.max_length, self.beta)?;
        not_negative("simpo", &[("gamma", self.gamma), ("sft_coefficient", self.sft_coefficient)])?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Simpo {
    fn needs(&self) -> Needs {
        pair_loss::needs_without_reference(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let (chosen, rejected) = (pairs.logprobs.chosen_mean(), pairs.logprobs.rejected_mean());
        margin(&chosen, &rejected, self.beta, self.gamma) - &chosen * self.sft_coefficient
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn rewards(&self, pairs: &PairBatch) -> (Tensor, Tensor) {
        (pairs.logprobs.chosen_mean() * self.beta, pairs.logprobs.rejected_mean() * self.beta)
    }
}
