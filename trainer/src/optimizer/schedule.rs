//! The learning rate as a pure function of the update's number.
//!
//! It rises linearly over `warmup_steps` updates, then stays, or falls linearly or along a half cosine to a floor. The
//! first update already has a rate above zero: with `w` warm-up updates, update `s` has the share `(s + 1)/(w + 1)`.
//! Hugging Face's `s/w` wastes the first one.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Schedule of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at its peak.
    #[default]
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Falls linearly to the floor.
    Linear,
    /// Falls along a half cosine to the floor.
    #[serde(alias = "cosine_with_min_lr")]
    Cosine,
}

/// Learning rate as a function of the update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Peak rate, reached after warm-up.
    pub learning_rate: f64,
    /// Updates over which the rate rises to its peak.
    pub warmup_steps: u64,
    /// Schedule after warm-up.
    pub schedule: Schedule,
    /// Final rate of a falling schedule, as a share of the peak.
    pub floor: f64,
}

impl Rate {
    /// Returns the learning rate of update `step`, counted from 0, in a run of `total` updates.
    pub fn at(&self, step: u64, total: u64) -> f64 {
        self.learning_rate * self.share(step, total)
    }

    fn share(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let decaying = total.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decaying as f64).min(1.0);
        let remaining = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        self.floor + (1.0 - self.floor) * remaining
    }

    /// Returns an error for a negative or infinite rate, or a floor outside 0 to 1.
    pub(super) fn validate(&self) -> Result<()> {
        in_range("learning_rate", self.learning_rate, 0.0, f64::MAX)?;
        in_range("schedule_floor", self.floor, 0.0, 1.0)
    }
}

/// Returns an error for a setting outside its range.
pub(super) fn in_range(name: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let most = if high == f64::MAX { "finite".to_owned() } else { format!("at most {high}") };
    Err(Error::input(format!("optimizer setting `{name}` is {value}; it must be at least {low} and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(schedule: Schedule, floor: f64, steps: &[u64]) -> Vec<f64> {
        let rate = Rate { learning_rate: 2.0, warmup_steps: 3, schedule, floor };
        steps.iter().map(|step| rate.at(*step, 11) / 2.0).collect()
    }

    fn check(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-12), "{actual:?} {expected:?}");
    }

    #[test]
    fn warm_up_starts_above_zero_and_ends_at_the_full_rate() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            check(&shares(schedule, 0.1, &[0, 1, 2, 3]), &[0.25, 0.5, 0.75, 1.0]);
        }
    }

    #[test]
    fn each_schedule_halfway_at_the_end_and_beyond() {
        // Eight updates decay: number 7 is halfway, number 11 would be the one after the last.
        check(&shares(Schedule::Constant, 0.0, &[7, 11, 99]), &[1.0, 1.0, 1.0]);
        check(&shares(Schedule::Linear, 0.0, &[7, 9, 11, 99]), &[0.5, 0.25, 0.0, 0.0]);
        check(&shares(Schedule::Linear, 0.2, &[7, 11]), &[0.6, 0.2]);
        check(&shares(Schedule::Cosine, 0.0, &[5, 7, 11]), &[0.5 * (1.0 + 0.5_f64.sqrt()), 0.5, 0.0]);
        check(&shares(Schedule::Cosine, 0.1, &[7, 99]), &[0.55, 0.1]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_rises() {
        let rate = Rate { learning_rate: 1.0, warmup_steps: 9, schedule: Schedule::Cosine, floor: 0.0 };
        check(&[rate.at(0, 2), rate.at(1, 2)], &[0.1, 0.2]);
        assert!(rate.at(9, 9).is_finite());
    }
}
