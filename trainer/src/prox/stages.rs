//! Stages of a rising threshold: `SoRA`'s sparsifying schedule.
//!
//! Training starts with a small threshold. Each later stage takes a larger one and starts from the weights of the stage
//! before it, with a fresh optimizer and a fresh learning-rate schedule, so one run yields the whole curve of quality
//! against rank. (The published code keeps the first stage's optimizer and schedule, whose rate has fallen to zero by
//! then: its later stages only shrink gates.)

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `[prox.stages]`: a threshold that rises in stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stages {
    /// Number of thresholds, the penalty's own included.
    #[serde(alias = "lambda_num")]
    pub count: usize,
    /// Last threshold; the first is the penalty's own.
    #[serde(alias = "max_lambda")]
    pub last: f64,
    /// Spacing of the thresholds between: `linear`, `geometric` or `log_linear`.
    #[serde(default)]
    pub spacing: Spacing,
    /// Training steps of each stage after the first, which takes the rest of the run; 0 for equal shares.
    #[serde(default)]
    pub steps: u64,
}

impl Stages {
    /// Returns the range of steps of each stage, counted from 1, in a run of `total` steps.
    ///
    /// # Errors
    /// If there is not at least one step for each stage.
    pub fn ranges(&self, total: u64) -> Result<Vec<Range<u64>>> {
        let count = self.count as u64;
        let later = self.steps.saturating_mul(count.saturating_sub(1));
        if count > total || later >= total {
            return Err(Error::input(format!(
                "prox.stages: {count} stages do not fit into {total} steps; raise `steps` of the run or lower \
                 `prox.stages.steps`"
            )));
        }
        let begin = |stage: u64| match (stage, self.steps) {
            (0, _) => 1,
            (_, 0) => 1 + stage * total / count,
            (_, each) => 1 + total - each * (count - stage),
        };
        Ok((0..count).map(|stage| begin(stage)..begin(stage + 1).max(begin(stage) + 1)).collect())
    }
}

/// Spacing of the thresholds of a sparsifying schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equal differences.
    #[default]
    Linear,
    /// Equal ratios; the first threshold must be above zero. SoRA's `exp_linear`.
    #[serde(alias = "exp_linear")]
    Geometric,
    /// Equal differences of `exp(ξ)`, nearly linear for thresholds far below 1. SoRA's `log_linear`.
    LogLinear,
}

/// Returns the thresholds of SoRA's sparsifying schedule: `stages` values from `first` to `last`.
///
/// # Errors
/// If there is no stage, or equal ratios are asked for from a threshold that is not above zero.
pub fn threshold_stages(first: f64, last: f64, stages: usize, spacing: Spacing) -> Result<Vec<f64>> {
    if stages == 0 {
        return Err(Error::input("a sparsifying schedule of 0 stages; give at least 1"));
    }
    if spacing == Spacing::Geometric && (first <= 0.0 || last <= 0.0) {
        return Err(Error::input(format!(
            "a geometric sparsifying schedule from {first} to {last}; both ends must be above 0, or use `linear`"
        )));
    }
    let between = |low: f64, high: f64, stage: usize| low + (high - low) * stage as f64 / (stages - 1).max(1) as f64;
    let threshold = |stage| match spacing {
        Spacing::Linear => between(first, last, stage),
        Spacing::Geometric => between(first.ln(), last.ln(), stage).exp(),
        Spacing::LogLinear => between(first.exp(), last.exp(), stage).ln(),
    };
    Ok((0..stages).map(threshold).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::close;
    use super::*;

    #[test]
    fn stages_of_a_sparsifying_schedule() {
        let geometric = threshold_stages(1e-4, 7e-4, 7, Spacing::Geometric).unwrap();
        close(&geometric, &[1e-4, 1.3831e-4, 1.9129e-4, 2.6458e-4, 3.6593e-4, 5.0611e-4, 7e-4], 1e-8);
        let linear = threshold_stages(0.0, 7e-4, 7, Spacing::Linear).unwrap();
        close(&linear, &[0.0, 1.166_67e-4, 2.333_33e-4, 3.5e-4, 4.666_67e-4, 5.833_33e-4, 7e-4], 1e-9);
        let log_linear = threshold_stages(1e-4, 7e-4, 7, Spacing::LogLinear).unwrap();
        close(&log_linear, &[1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4], 1e-7);
        assert_eq!(threshold_stages(0.5, 1.0, 1, Spacing::Linear).unwrap(), [0.5]);
        assert!(threshold_stages(0.0, 1.0, 3, Spacing::Geometric).unwrap_err().is_input());
        assert!(threshold_stages(0.0, 1.0, 0, Spacing::Linear).unwrap_err().is_input());
    }

    #[test]
    fn stages_share_a_run() {
        let stages = |count, steps| Stages { count, last: 1.0, spacing: Spacing::Linear, steps };
        assert_eq!(stages(3, 0).ranges(10).unwrap(), [1..4, 4..7, 7..11]);
        assert_eq!(stages(3, 2).ranges(10).unwrap(), [1..7, 7..9, 9..11]);
        assert_eq!(stages(1, 0).ranges(5).unwrap()[0], 1..6);
        assert_eq!(stages(4, 0).ranges(4).unwrap(), [1..2, 2..3, 3..4, 4..5]);
        for (count, steps) in [(5, 0), (3, 2)] {
            assert!(stages(count, steps).ranges(4).unwrap_err().is_input());
        }
    }
}
