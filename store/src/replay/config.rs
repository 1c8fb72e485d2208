//! The replay rule as a config names it: one key, such as `recent = { steps = 2 }`.

use super::{Recent, ReplaySampler, StalenessLimit, Stratified, Uniform};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// `replay = …`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    /// Groups of the last few steps.
    Recent(Recent),
    /// Groups of every earlier step.
    Uniform(UniformConfig),
    /// Groups that carry a signal, and rows for those that do not.
    Stratified(StratifiedConfig),
}

impl Default for Config {
    fn default() -> Self {
        Self::Recent(Recent::default())
    }
}

/// `uniform = { … }`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniformConfig {
    /// The greatest age of a group in steps; 0 for no limit.
    pub max_age: u64,
}

/// `stratified = { … }`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StratifiedConfig {
    /// The greatest age of a group or row in steps; 0 for no limit.
    pub max_age: u64,
    /// Old rows that join a group without signal, at most.
    pub rows: usize,
    /// Rewards differ if they are further apart than this.
    pub min_difference: f64,
}

impl Default for StratifiedConfig {
    fn default() -> Self {
        let Stratified { rows, min_difference } = Stratified::default();
        Self { max_age: 0, rows, min_difference }
    }
}

impl Config {
    /// The rule. A window of no steps, or filling with no rows, is an error of the input.
    pub fn build(&self) -> Result<Box<dyn ReplaySampler>> {
        Ok(match self {
            Self::Recent(recent) => {
                at_least_one("replay.recent.steps", recent.steps)?;
                Box::new(recent.clone())
            }
            Self::Uniform(UniformConfig { max_age }) => limited(*max_age, Uniform),
            Self::Stratified(StratifiedConfig { max_age, rows, min_difference }) => {
                at_least_one("replay.stratified.rows", *rows as u64)?;
                if !min_difference.is_finite() || *min_difference < 0.0 {
                    return Err(Error::Setting(format!(
                        "replay.stratified.min_difference is {min_difference}; it must be 0 or more"
                    )));
                }
                limited(*max_age, Stratified { rows: *rows, min_difference: *min_difference })
            }
        })
    }
}

/// The rule with a limit on age, unless that is 0.
fn limited(max_age: u64, rule: impl ReplaySampler + 'static) -> Box<dyn ReplaySampler> {
    if max_age == 0 { Box::new(rule) } else { Box::new(StalenessLimit { max_age, rule: Box::new(rule) }) }
}

fn at_least_one(key: &str, value: u64) -> Result<()> {
    if value == 0 { Err(Error::Setting(format!("{key} must be at least 1, but is 0"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_a_key_and_unknown_keys_are_refused() {
        let parse = |json: &str| serde_json::from_str::<Config>(json);
        assert_eq!(parse(r#"{"recent": {"steps": 3}}"#).unwrap(), Config::Recent(Recent { steps: 3 }));
        assert_eq!(parse(r#"{"recent": {}}"#).unwrap(), Config::default());
        assert_eq!(parse(r#"{"uniform": {}}"#).unwrap(), Config::Uniform(UniformConfig { max_age: 0 }));
        let Config::Stratified(stratified) = parse(r#"{"stratified": {"max_age": 9}}"#).unwrap() else { panic!() };
        assert_eq!((stratified.max_age, stratified.rows, stratified.min_difference), (9, 1, 0.0));
        for wrong in [r#"{"recent": {"step": 3}}"#, r#"{"uniform": {"steps": 1}}"#, r#"{"newest": {}}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_that_admit_nothing_are_refused() {
        let refused = [
            Config::Recent(Recent { steps: 0 }),
            Config::Stratified(StratifiedConfig { rows: 0, ..StratifiedConfig::default() }),
            Config::Stratified(StratifiedConfig { min_difference: -1.0, ..StratifiedConfig::default() }),
        ];
        for config in refused {
            assert!(config.build().err().is_some_and(|error| error.is_input()), "{config:?}");
        }
        assert!(Config::default().build().is_ok());
    }
}
