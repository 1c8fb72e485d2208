//! Online DPO (Guo et al. 2024, arXiv 2402.04792): the policy draws its own pairs, and what judges them is the label.
//!
//! Each group's best and worst sample, by the run's rewards, are a pair for the loss of DPO or of IPO; the reference is
//! the base model throughout. Nothing becomes stale, which is what offline DPO suffers from. Where rewards are equal the
//! first sample wins, as in TRL, or the pair is skipped.
//!
//! ```text
//! sigmoid  ℓ = −log σ(β h)                h = log(π / π_ref)(better) − log(π / π_ref)(worse)
//! ipo      ℓ = (h − 1/(2β))²
//! ```

use super::preference::{self, Against, Pairs, Ties};
use super::{Algorithm, Compares, Credits, Evidence, Needs, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::{LabelNoise, sigmoid, squared};
use crate::objective::{Denominator, MetricSums};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.online_dpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineDpo {
    /// How strongly the policy is held to the base model.
    pub beta: f64,
    /// What becomes of the margin.
    #[serde(alias = "loss_type")]
    pub loss: OnlineLoss,
    /// What becomes of a pair whose rewards are equal.
    pub ties: Ties,
}

/// What becomes of the margin of a drawn pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnlineLoss {
    /// DPO's.
    #[default]
    Sigmoid,
    /// IPO's, on sums over tokens.
    Ipo,
}

impl Default for OnlineDpo {
    fn default() -> Self {
        Self { beta: 0.1, loss: OnlineLoss::Sigmoid, ties: Ties::FirstWins }
    }
}

impl OnlineDpo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::positive("online_dpo", "beta", self.beta)?;
        Ok(self)
    }
}

impl Algorithm for OnlineDpo {
    fn needs(&self) -> Needs {
        preference::drawn_needs(2, Compares::Group)
    }

    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        Some(self.ties.resolve(preference::best_and_worst(groups, 0.0, Against::Partner)))
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let h = pairs.scores.ratio_margin();
        let losses = match self.loss {
            OnlineLoss::Sigmoid => sigmoid(&h, self.beta, LabelNoise::None),
            OnlineLoss::Ipo => squared(&h, &h.ones_like(), self.beta),
        };
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}
