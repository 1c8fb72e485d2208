//! Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, plus
//! imitation.
//!
//! ```text
//! ℓ = −log σ(β (log π(chosen) − log π(rejected)))  −  c · log π(chosen)/L_c
//! ```
//!
//! Without a reference the chosen completion may become unlikely while the margin grows; the second term prevents that.
//! It is a mean over the tokens of each completion and then over pairs; TRL's is over all tokens of a batch.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::objective::MetricSums;
use crate::objective::preference::margin;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.cpo]`: contrastive preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cpo {
    /// Scale β of a difference of log-probabilities.
    pub beta: f64,
    /// Weight c of the chosen completion's negative log-likelihood per token.
    #[serde(alias = "cpo_alpha")]
    pub sft_coefficient: f64,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
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

    fn losses(&self, pairs: &PairBatch, sums: &mut MetricSums) -> Tensor {
        let imitation = pairs.logprobs.chosen_mean();
        sums.add("nll_loss", &-imitation.sum(tch::Kind::Double), imitation.numel() as f64);
        margin(&pairs.logprobs.chosen, &pairs.logprobs.rejected, self.beta, 0.0) - imitation * self.sft_coefficient
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
