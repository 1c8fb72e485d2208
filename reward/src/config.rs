//! The `[[reward]]` tables of a config, and how they become one reward.

use crate::{Error, Result, Reward, Term, WeightedSum, rule};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One `[[reward]]` table: a rule or a model, its weight and, where one serves twice, a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name in metrics (`rewards/<name>/mean`) and in the store; the rule's own, or `model`, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The factor of this reward in the sum; 0 records it without training on it.
    #[serde(default = "one")]
    pub weight: f64,
    /// The rule and its settings, as in `rule.math_answer = {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<rule::Config>,
    /// Instead of a rule, a reward model, as in `model = { path = "runs/reward_model" }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
}

/// A network that grades or compares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The folder of the run that trained it.
    pub path: PathBuf,
}

/// Makes a reward that runs a network, which this crate cannot.
pub type OpenModel<'a> = dyn FnMut(&ModelConfig) -> Result<Box<dyn Reward>> + 'a;

impl Config {
    /// The name under which this reward is reported.
    pub fn name(&self) -> &str {
        let own = || self.rule.as_ref().map_or("model", rule::Config::name);
        self.name.as_deref().unwrap_or_else(own)
    }

    /// Refuses a prompt under which the rule would give every completion the same grade.
    ///
    /// # Errors
    ///
    /// Fails with the key to set. `prompt` is what the model continues, as text.
    pub fn check_prompt(&self, prompt: &str) -> Result<()> {
        match &self.rule {
            Some(rule::Config::Format(format)) => format.check_prompt(prompt).map_err(|error| self.named(error)),
            _ => Ok(()),
        }
    }

    fn named(&self, error: Error) -> Error {
        match error {
            Error::Input(problem) => Error::input(format!("reward `{}`: {problem}", self.name())),
            error => error,
        }
    }

    fn build(&self, open: &mut OpenModel<'_>) -> Result<Term> {
        let reward = match (&self.rule, &self.model) {
            (Some(rule), None) => rule.build(),
            (None, Some(model)) => open(model),
            (None, None) => Err(Error::input("it needs a `rule` or a `model`, such as rule.math_answer = {}")),
            (Some(_), Some(_)) => Err(Error::input("it has both a `rule` and a `model`; keep one of them")),
        };
        let reward = reward.map_err(|error| self.named(error))?;
        Ok(Term { name: self.name().to_owned(), weight: self.weight, reward })
    }
}

/// Builds every rule and joins them.
///
/// # Errors
///
/// Fails, by the config's fault, if there is no reward, a setting is bad, two rewards share a name, every weight is zero,
/// or a reward is a `model`.
pub fn build(configs: &[Config]) -> Result<WeightedSum> {
    build_with(configs, &mut |_| Err(Error::input("no network can run here, so it cannot be a `model`; use a `rule`")))
}

/// Builds every rule, and every model by `open`, and joins them.
///
/// # Errors
///
/// As [`build`], but for models; and if `open` fails.
pub fn build_with(configs: &[Config], open: &mut OpenModel<'_>) -> Result<WeightedSum> {
    WeightedSum::new(configs.iter().map(|config| config.build(open)).collect::<Result<_>>()?)
}

fn one() -> f64 {
    1.0
}
