//! Online IPO (Calandriello et al. 2024, arXiv 2403.08635): self-play on the regularised preference game.
//!
//! On pairs that the policy draws itself, and with the probability `P` that one beats the other in place of a label,
//!
//! ```text
//! ℓ = (h − (P − ½)/β)²,   h = log(π / π_ref)(y) − log(π / π_ref)(y′),   y, y′ ∼ π
//! ```
//!
//! has in expectation the gradient of `β KL(π ‖ π_ref) − P(π ≻ π)` with the opponent held, times 4/β: each step is one of
//! mirror descent against oneself. It reaches the equilibrium where β is not too small; where it is, it circles (see the
//! [laboratory](crate::lab)), and `[algorithm.nash_mp]` does not. The identity is a test of the objective.

use super::policy_gradient::not_negative;
use super::preference::{self, Pairs};
use super::{Algorithm, Compares, Credits, Evidence, Needs, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::squared;
use crate::objective::{Denominator, MetricSums};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.online_ipo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineIpo {
    /// Weight of the KL penalty towards the base model in the game.
    pub beta: f64,
    /// A difference of rewards of this size wins with σ(1) = 73 %; 0: the greater reward wins for certain.
    pub judge_temperature: f64,
}

impl Default for OnlineIpo {
    fn default() -> Self {
        Self { beta: 0.1, judge_temperature: 0.0 }
    }
}

impl OnlineIpo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::positive("online_ipo", "beta", self.beta)?;
        not_negative("online_ipo", &[("judge_temperature", self.judge_temperature)])?;
        Ok(self)
    }
}

impl Algorithm for OnlineIpo {
    fn needs(&self) -> Needs {
        preference::drawn_needs(2, Compares::Neighbours)
    }

    /// Neighbours and not extremes: the identity holds for pairs drawn without a look at their rewards.
    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        Some(preference::neighbours(groups, self.judge_temperature))
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let losses = squared(&pairs.scores.ratio_margin(), &pairs.chosen_win_rate, self.beta);
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}
