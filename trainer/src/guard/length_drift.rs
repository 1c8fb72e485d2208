//! Alarm when the reward rises while completions get much longer or much shorter: the reward may come from length
//! alone.
//!
//! Two consecutive windows of reward and mean completion length, in tokens, are compared:
//!
//! ```text
//! alarm if  reward later > reward earlier  and  |length later / length earlier − 1| > limit
//! ```
//!
//! This can be wanted, for example when a policy learns to reason, so inspect the reported samples: the longest first,
//! or the shortest if lengths fall.

use super::{Action, Finding, Guard, indexed, largest_first, mean, positive};
use crate::Result;
use crate::algorithm::Algorithm;
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};

/// `[guard.length_drift]`: alarm on a reward that rises with the length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LengthDrift {
    /// Largest change of the mean length without an alarm, as a share of the earlier length; above 0.
    pub limit: f64,
    /// Training steps of each of the two windows that are compared.
    pub window: usize,
    /// Action of an alarm: `warn`, `roll_back` or `stop`.
    pub action: Action,
}

impl Default for LengthDrift {
    fn default() -> Self {
        Self { limit: 0.5, window: 10, action: Action::Warn }
    }
}

impl Guard for LengthDrift {
    fn action(&self) -> Action {
        self.action
    }

    fn window(&self) -> usize {
        2 * self.window
    }

    fn check(&self, _algorithm: &dyn Algorithm) -> Result<()> {
        positive("limit", self.limit)
    }

    fn measure(&self, _samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        Some(vec![metrics.get("reward")?, metrics.get("completions/mean_length")?])
    }

    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding> {
        let (earlier, later) = window.split_at(self.window);
        let [rewards, lengths] = [0, 1].map(|number| (mean(earlier, number), mean(later, number)));
        let change = lengths.1 / lengths.0 - 1.0;
        let longer = change.signum();
        (rewards.1 > rewards.0 && change.abs() > self.limit).then(|| Finding {
            message: format!(
                "the reward rose from {:.3} to {:.3} while the mean length went from {:.1} to {:.1} tokens, by more than {:.0} %",
                rewards.0,
                rewards.1,
                lengths.0,
                lengths.1,
                100.0 * self.limit
            ),
            samples: largest_first(
                indexed(samples).map(|(index, sample)| (index, longer * sample.len() as f64)).collect(),
            ),
        })
    }
}
