//! Anchored preference optimisation (D'Oosterlinck et al. 2024, arXiv 2408.06266): each completion has its own direction.
//!
//! DPO fixes a difference, and lets both completions become less likely. Here each is anchored to the reference, in the
//! way that fits how good the data are beside the policy:
//!
//! ```text
//! zero  ℓ = 1 − σ(β h_c) + σ(β h_r)              the chosen are better than the policy: up, and the rejected down
//! down  ℓ = σ(β h_c) + 1 − σ(β (h_c − h_r))      the policy is better than both: down, and the rejected more
//! ```
//!
//! TRL calls the two `apo_zero` and `apo_down`. They have nothing to do with `[algorithm.apo]`, which is accelerated.

use super::preference::{self, Pairs};
use super::{Algorithm, Credits, Evidence, Needs, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::{anchored_down, anchored_zero};
use crate::objective::{Denominator, MetricSums};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.anchored]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anchored {
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Which way the chosen completions go.
    pub form: AnchoredForm,
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
}

/// Which way the chosen completions go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchoredForm {
    /// Up: they are better than what the policy writes.
    #[default]
    #[serde(alias = "apo_zero")]
    Zero,
    /// Down: the policy writes better ones.
    #[serde(alias = "apo_down")]
    Down,
}

impl Default for Anchored {
    fn default() -> Self {
        Self { beta: 0.1, form: AnchoredForm::Zero, max_length: 1024 }
    }
}

impl Anchored {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::checked("anchored", self.max_length, self.beta)?;
        Ok(self)
    }
}

impl Algorithm for Anchored {
    fn needs(&self) -> Needs {
        preference::needs(self.max_length)
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let (chosen, rejected) = (pairs.scores.chosen_ratio(), pairs.scores.rejected_ratio());
        let losses = match self.form {
            AnchoredForm::Zero => anchored_zero(&chosen, &rejected, self.beta),
            AnchoredForm::Down => anchored_down(&chosen, &rejected, self.beta),
        };
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}
