//! Simple preference optimisation (Meng et al. 2024, `SimPO`, arXiv 2405.14734): no reference, and a margin to reach.
//!
//! What a policy is sampled by is the mean log-probability of a token, so that is what is compared; without a length
//! bias there is no need for a reference to hold it:
//!
//! ```text
//! ℓ = −log σ(β (log π(chosen)/L_c − log π(rejected)/L_r) − γ)  −  c · log π(chosen)/L_c
//! ```
//!
//! The term with `c` is not in the paper; TRL calls the two together CPO-SimPO.

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

/// `[algorithm.simpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimPo {
    /// The scale of a difference of mean log-probabilities.
    pub beta: f64,
    /// The margin, after scaling, at which a pair counts as undecided; TRL's `simpo_gamma`.
    #[serde(alias = "simpo_gamma")]
    pub gamma: f64,
    /// Weight of the chosen completion's negative log-likelihood per token; 0 turns it off.
    #[serde(alias = "cpo_alpha")]
    pub sft_coefficient: f64,
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
}

impl Default for SimPo {
    fn default() -> Self {
        Self { beta: 2.5, gamma: 1.375, sft_coefficient: 0.0, max_length: 1024 }
    }
}

impl SimPo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::checked("simpo", self.max_length, self.beta)?;
        not_negative("simpo", &[("gamma", self.gamma), ("sft_coefficient", self.sft_coefficient)])?;
        Ok(self)
    }
}

impl Algorithm for SimPo {
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
        let (chosen, rejected) = (pairs.scores.chosen_mean(), pairs.scores.rejected_mean());
        let losses = margin(&chosen, &rejected, self.beta, self.gamma) - &chosen * self.sft_coefficient;
        pairs.share(&losses, (chosen * self.beta, rejected * self.beta), batch, tally)
    }
}
