//! Alarm when the policy has collapsed: its entropy, averaged over the window, is below a floor.
//!
//! The samples of a prompt are then all alike, and so are their rewards, so advantages vanish. Measured is `entropy`,
//! in nats per trained token; the reported samples are those with the most likely tokens.

use super::{Action, Finding, Guard, indexed, largest_first, mean, positive, surprise};
use crate::Result;
use crate::algorithm::Algorithm;
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};

/// `[guard.entropy_floor]`: alarm on an entropy collapse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntropyFloor {
    /// Lowest mean entropy without an alarm, in nats per token; above 0.
    pub limit: f64,
    /// Training steps that are averaged; at least 1.
    pub window: usize,
    /// Action of an alarm: `warn`, `roll_back` or `stop`.
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

    fn measure(&self, _samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        Some(vec![metrics.get("entropy")?])
    }

    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding> {
        let entropy = mean(window, 0);
        (entropy < self.limit).then(|| Finding {
            message: format!("the entropy is {entropy:.4} nats per token, below the floor of {}", self.limit),
            samples: largest_first(indexed(samples).map(|(index, sample)| (index, -surprise(sample))).collect()),
        })
    }
}
