//! Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, and imitation.
//!
//! ```text
//! ℓ = −log σ(β (log π(chosen) − log π(rejected)))  −  c · log π(chosen)/L_c
//! ```
//!
//! Without a reference nothing keeps the chosen completion likely while the margin grows, which is what the second term
//! is for. It is a mean over the tokens of each completion and then over pairs; TRL's is over all tokens of a batch.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::objective::MetricSums;
use crate::objective::preference::margin;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.cpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpo {
    /// The scale of a difference of log-probabilities.
    pub beta: f64,
    /// Weight of the chosen completion's negative log-likelihood per token.
    #[serde(alias = "cpo_alpha")]
    pub sft_coefficient: f64,
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
}

impl Default for Cpo {
    fn default() -> Self {
        Self { beta: 0.1, sft_coefficient: 1.0, max_length: 1024 }
    }
}

impl Cpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("cpo", self.max_length, self.beta)?;
        not_negative("cpo", &[("sft_coefficient", self.sft_coefficient)])?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Cpo {
    fn needs(&self) -> Needs {
        pair_loss::needs_without_reference(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, tally: &mut MetricSums) -> Tensor {
        let imitation = pairs.logprobs.chosen_mean();
        tally.add("nll_loss", &-imitation.sum(tch::Kind::Double), imitation.numel() as f64);
        margin(&pairs.logprobs.chosen, &pairs.logprobs.rejected, self.beta, 0.0) - imitation * self.sft_coefficient
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
