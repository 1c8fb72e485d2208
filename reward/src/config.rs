//! The `[[reward]]` tables of a config, and how they become one reward.

use crate::{Error, Result, Term, WeightedSum, rule};
use serde::{Deserialize, Serialize};

/// One `[[reward]]` table: a rule, its weight and, where one rule serves twice, a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name in metrics (`rewards/<name>/mean`) and in the store; the rule's own if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The factor of this reward in the sum; 0 records it without training on it.
    #[serde(default = "one")]
    pub weight: f64,
    /// The rule and its settings, as in `rule.math_answer = {}`.
    pub rule: rule::Config,
}

impl Config {
    /// The name under which this reward is reported.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.rule.name())
    }
}

/// Builds every rule and joins them. Errors, all of them the config's: no reward at all, a bad setting, two of one
/// name, no weight other than zero.
pub fn build(configs: &[Config]) -> Result<WeightedSum> {
    let terms = configs.iter().map(|config| {
        let name = config.name();
        let reward = config.rule.build().map_err(|error| Error::input(format!("reward `{name}`: {error}")))?;
        Ok(Term { name: name.to_owned(), weight: config.weight, reward })
    });
    WeightedSum::new(terms.collect::<Result<_>>()?)
}

fn one() -> f64 {
    1.0
}
