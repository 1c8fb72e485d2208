//! A penalty for being too long, or for being far from a length.
//!
//! With a limit: 0 up to `max`, then linearly down to -1 at `max + ramp`. With a target: 0 at `target`, then linearly
//! down to -1 at a distance of `ramp` on either side.
//!
//! ```text
//! value = -min(1, excess / ramp)      excess = n - max, if positive      or  |n - target|
//! ```

use crate::reward::each;
use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group, Sample};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Either `target` or `max` must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The best length, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// The longest length without a penalty, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The distance at which the penalty reaches -1, in `unit`; 0 stands for the target or the limit itself.
    pub ramp: u64,
    /// The unit of length.
    pub unit: Unit,
}

/// The unit of length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Sampled tokens, the end-of-sequence token included.
    Tokens,
    /// Characters (Unicode scalar values) of the decoded text.
    Characters,
}

impl Unit {
    fn count(self, sample: &Sample) -> u64 {
        match self {
            Self::Tokens => sample.len() as u64,
            Self::Characters => sample.text.chars().count() as u64,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { target: None, max: None, ramp: 0, unit: Unit::Tokens }
    }
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Fails unless exactly one of `target` and `max` is given, and is not zero.
    pub fn build(&self) -> Result<Length> {
        let goal = match (self.target, self.max) {
            (Some(length), None) => Goal::Near(length),
            (None, Some(length)) => Goal::AtMost(length),
            _ => return Err(Error::input("give either `target` or `max`")),
        };
        let (Goal::Near(length) | Goal::AtMost(length)) = goal;
        if length == 0 {
            return Err(Error::input("a length of 0 cannot be asked for"));
        }
        let ramp = if self.ramp == 0 { length } else { self.ramp };
        Ok(Length { config: self.clone(), goal, ramp })
    }
}

/// A linear penalty in [-1, 0].
pub struct Length {
    config: Config,
    goal: Goal,
    ramp: u64,
}

/// A length to hit, or one not to pass.
#[derive(Clone, Copy)]
enum Goal {
    Near(u64),
    AtMost(u64),
}

impl Length {
    fn value(&self, length: u64) -> f32 {
        let excess = match self.goal {
            Goal::Near(target) => length.abs_diff(target),
            Goal::AtMost(max) => length.saturating_sub(max),
        };
        // Written so that no excess is 0 and not -0.
        0.0 - (excess as f64 / self.ramp as f64).min(1.0) as f32
    }
}

impl Reward for Length {
    fn name(&self) -> &'static str {
        "length"
    }

    fn version(&self) -> String {
        fingerprint(1, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(-1.0..=0.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        each(groups, |_, sample| Grade::of(self.value(self.config.unit.count(sample))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{group, values};

    fn check(config: &Config, table: &[(u64, f32)]) {
        let length = config.build().unwrap();
        for (n, expected) in table {
            assert_eq!(length.value(*n), *expected, "length {n} under {config:?}");
        }
    }

    #[test]
    fn a_target_pulls_from_both_sides() {
        let config = Config { target: Some(40), ..Config::default() };
        check(&config, &[(40, 0.0), (30, -0.25), (50, -0.25), (0, -1.0), (80, -1.0), (1_000, -1.0)]);
        check(&Config { ramp: 10, ..config }, &[(40, 0.0), (35, -0.5), (45, -0.5), (30, -1.0), (20, -1.0)]);
    }

    #[test]
    fn a_limit_pushes_from_above() {
        let config = Config { max: Some(100), ramp: 50, ..Config::default() };
        check(&config, &[(0, 0.0), (100, 0.0), (125, -0.5), (150, -1.0), (u64::MAX, -1.0)]);
    }

    #[test]
    fn tokens_or_characters() {
        // The helper's samples have one token per byte; "é" is two bytes and one character.
        let group = group("", None, &["éé"]);
        let config = Config { target: Some(4), ..Config::default() };
        assert_eq!(values(&mut config.build().unwrap(), &group), [Some(0.0)]);
        let config = Config { unit: Unit::Characters, ..config };
        assert_eq!(values(&mut config.build().unwrap(), &group), [Some(-0.5)]);
    }

    #[test]
    fn one_goal_it_must_be() {
        let default = Config::default();
        for config in [
            default.clone(),
            Config { target: Some(1), max: Some(2), ..default.clone() },
            Config { target: Some(0), ..default },
        ] {
            assert!(config.build().err().expect("a bad goal").is_input(), "{config:?}");
        }
    }
}
