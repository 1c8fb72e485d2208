//! A penalty for saying the same again: the share of n-grams that occurred before.
//!
//! ```text
//! value = -max_penalty · (1 - distinct n-grams / all n-grams)
//! ```
//!
//! As in "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv:2502.03373), with n = 3 as in open-r1: loops are
//! the first thing a policy falls into when length is rewarded. A completion shorter than n has no penalty.

use crate::reward::each;
use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group, Sample};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::hash::Hash;
use std::ops::RangeInclusive;

/// Settings of the repetition penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The length n of the n-grams, in `unit`.
    pub n: usize,
    /// The penalty of a completion that is nothing but repetition; a positive number.
    pub max_penalty: f32,
    /// The unit of n-grams.
    pub unit: Unit,
}

/// The unit of n-grams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Words between white space, in lower case.
    Words,
    /// Sampled tokens: for languages that are written without spaces.
    Tokens,
}

impl Default for Config {
    fn default() -> Self {
        Self { n: 3, max_penalty: 1.0, unit: Unit::Words }
    }
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Fails if a setting is out of range.
    pub fn build(&self) -> Result<Repetition> {
        if self.n == 0 {
            return Err(Error::input("`n` must be at least 1"));
        }
        if !(self.max_penalty.is_finite() && self.max_penalty >= 0.0) {
            return Err(Error::input(format!("`max_penalty` ({}) must not be negative", self.max_penalty)));
        }
        Ok(Repetition { config: self.clone() })
    }
}

/// The penalty, from minus `max_penalty` to 0.
pub struct Repetition {
    config: Config,
}

impl Repetition {
    fn value(&self, sample: &Sample) -> f32 {
        let repeated = match self.config.unit {
            Unit::Tokens => repeated(&sample.ids, self.config.n),
            Unit::Words => {
                let text = sample.text.to_lowercase();
                repeated(&text.split_whitespace().collect::<Vec<_>>(), self.config.n)
            }
        };
        // Written so that no repetition is 0 and not -0.
        0.0 - self.config.max_penalty * repeated
    }
}

/// The share of n-grams that occurred before; 0 if there are none.
fn repeated<T: Hash + Eq>(items: &[T], n: usize) -> f32 {
    let all = (items.len() + 1).saturating_sub(n);
    if all == 0 {
        return 0.0;
    }
    let distinct = items.windows(n).collect::<HashSet<_>>().len();
    (1.0 - distinct as f64 / all as f64) as f32
}

impl Reward for Repetition {
    fn name(&self) -> &'static str {
        "repetition"
    }

    fn version(&self) -> String {
        fingerprint(1, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(-self.config.max_penalty..=0.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        each(groups, |_, sample| Grade::of(self.value(sample)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{group, values};

    fn check(config: &Config, text: &str, expected: f32) {
        let values = values(&mut config.build().unwrap(), &group("", None, &[text]));
        assert_eq!(values, [Some(expected)], "{text:?} under {config:?}");
    }

    #[test]
    fn the_share_of_trigrams_seen_before() {
        let config = Config::default();
        check(&config, "", 0.0);
        check(&config, "one two", 0.0);
        check(&config, "one two three four", 0.0);
        // Six words hold four trigrams, all `ha ha ha`: one distinct, three of four repeated.
        check(&config, "ha Ha HA ha ha ha", -0.75);
        // `a b c`, `b c a`, `c a b`, `a b c`: one of four repeated.
        check(&config, "a b c a b c", -0.25);
        check(&Config { max_penalty: 2.0, ..config }, "a b c a b c", -0.5);
    }

    #[test]
    fn tokens_serve_where_there_are_no_spaces() {
        // One token per byte: `aa` four times in "aaaaa".
        check(&Config { n: 2, unit: Unit::Tokens, ..Config::default() }, "aaaaa", -0.75);
        check(&Config { n: 2, ..Config::default() }, "aaaaa", 0.0);
    }

    #[test]
    fn settings_are_checked() {
        assert!(Config { n: 0, ..Config::default() }.build().is_err());
        assert!(Config { max_penalty: -1.0, ..Config::default() }.build().is_err());
    }
}
