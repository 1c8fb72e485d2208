//! Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417): DPO with a uniform reference, and imitation.
//!
//! ```text
//! ℓ = −log σ(β (log π(chosen) − log π(rejected)))  −  c · log π(chosen)/L_c
//! ```
//!
//! Without a reference nothing keeps the chosen completion likely while the margin grows, which is what the second term
//! is for. It is a mean over the tokens of each completion and then over pairs; TRL's is over all tokens of a batch.

use super::policy_gradient::not_negative;
use super::preference::{self, Pairs};
use super::{Algorithm, Credits, Evidence, Needs, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::margin;
use crate::objective::{Denominator, MetricSums};
use schema::Metrics;
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
    pub(super) fn checked(self) -> Result<Self> {
        preference::checked("cpo", self.max_length, self.beta)?;
        not_negative("cpo", &[("sft_coefficient", self.sft_coefficient)])?;
        Ok(self)
    }
}

impl Algorithm for Cpo {
    fn needs(&self) -> Needs {
        Needs { reference: false, ..preference::needs(self.max_length) }
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let imitation = pairs.scores.chosen_mean();
        tally.add("nll_loss", &-imitation.sum(tch::Kind::Double), imitation.numel() as f64);
        let losses =
            margin(&pairs.scores.chosen, &pairs.scores.rejected, self.beta, 0.0) - imitation * self.sft_coefficient;
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}
