//! The policy has become too sure: its entropy, averaged over the window, is below a floor.
//!
//! Samples of one prompt are then all alike, their rewards too, and nothing is left to learn from. Measured is
//! `entropy`, in nats per trained token; the samples named are those whose tokens were the most likely.

use super::{Action, Finding, Guard, largest_first, mean, places, positive, surprise};
use crate::Result;
use crate::algorithm::Algorithm;
use schema::{Metrics, ScoredGroup};
use serde::{Deserialize, Serialize};

/// `[guard.entropy_floor]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyFloor {
    /// The lowest mean entropy that is no alarm, in nats per token.
    pub limit: f64,
    /// Steps that are averaged.
    pub window: usize,
    /// What an alarm does.
    pub action: Action,
}

impl Default for EntropyFloor {
    fn default() -> Self {
        Self { limit: 0.05, window: 5, action: Action::Warn }
    }
}

impl Guard for EntropyFloor {
    fn action(&self) -> Action {
        self.action
    }

    fn window(&self) -> usize {
        self.window
    }

    fn check(&self, _algorithm: &dyn Algorithm) -> Result<()> {
        positive("limit", self.limit)
    }

    fn measure(&self, _samples: &[ScoredGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        Some(vec![metrics.get("entropy")?])
    }

    fn judge(&self, window: &[&[f64]], samples: &[ScoredGroup]) -> Option<Finding> {
        let entropy = mean(window, 0);
        (entropy < self.limit).then(|| Finding {
            message: format!("the entropy is {entropy:.4} nats per token, below the floor of {}", self.limit),
            samples: largest_first(places(samples).map(|(place, sample)| (place, -surprise(sample))).collect()),
        })
    }
}
