//! The `[judge]` table of a config.

use super::{ByReward, Command, Endpoint, Fair, Judge, endpoint};
use crate::rule::{self, command};
use crate::{Error, ModelConfig, Result};
use serde::{Deserialize, Serialize};

/// `[judge]`: the judge that compares two samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A rule and its settings, as in `rule.math_answer = {}`: the sample with the higher value wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<rule::Config>,
    /// A network: the run of a reward model or of a preference model, as in `model = { path = "runs/preference" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    /// A model behind an OpenAI-compatible address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<endpoint::Config>,
    /// A program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<command::Config>,
    /// Of a rule or a reward model: a difference of values of this size wins with σ(1) = 73 %; 0: the higher value wins
    /// for certain.
    pub temperature: f64,
    /// Ask about each pair in both orders and average, which removes position bias.
    pub swap: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { rule: None, model: None, endpoint: None, command: None, temperature: 1.0, swap: true }
    }
}

/// A function that opens a judge which runs a network; the number is the temperature.
pub type OpenJudge<'a> = dyn FnMut(&ModelConfig, f64) -> Result<Box<dyn Judge>> + 'a;

impl Config {
    /// Checks the settings, as far as that is possible before a network is loaded.
    ///
    /// # Errors
    ///
    /// As [`Config::build`].
    pub fn check(&self) -> Result<()> {
        let mut open = |_: &ModelConfig, _: f64| Ok(Box::new(NotLoaded) as Box<dyn Judge>);
        self.build(&mut open).map(drop)
    }

    /// Makes the judge, [`Fair`] unless the config says otherwise; `open` makes one that runs a network.
    ///
    /// # Errors
    ///
    /// Fails if the config names no judge or several, a setting is bad, or `open` fails.
    pub fn build(&self, open: &mut OpenJudge<'_>) -> Result<Fair> {
        let named = |error: Error| match error {
            Error::Input(problem) => Error::input(format!("[judge]: {problem}")),
            error => error,
        };
        Ok(Fair::new(self.open(open).map_err(named)?, self.swap))
    }

    fn open(&self, open: &mut OpenJudge<'_>) -> Result<Box<dyn Judge>> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::input(format!("`temperature` ({}) must be 0 or more", self.temperature)));
        }
        Ok(match (&self.rule, &self.model, &self.endpoint, &self.command) {
            (Some(rule), None, None, None) => Box::new(ByReward::new(rule.build()?, self.temperature)),
            (None, Some(model), None, None) => open(model, self.temperature)?,
            (None, None, Some(endpoint), None) => Box::new(Endpoint::new(endpoint)?),
            (None, None, None, Some(command)) => Box::new(Command::new(command)?),
            (None, None, None, None) => {
                return Err(Error::input(
                    "it names no judge; give it a `rule`, a `model`, an `endpoint` or a `command`, such as rule.math_answer = {}",
                ));
            }
            _ => {
                return Err(Error::input(
                    "it names several judges; keep one of `rule`, `model`, `endpoint`, `command`",
                ));
            }
        })
    }
}

/// A stand-in for a network that is not loaded yet.
struct NotLoaded;

impl Judge for NotLoaded {
    fn name(&self) -> &'static str {
        "model"
    }

    fn version(&self) -> String {
        String::new()
    }

    fn compare(&mut self, pairs: &[super::Matchup<'_>]) -> Vec<schema::Grade> {
        vec![schema::Grade::missing("no network is loaded"); pairs.len()]
    }
}
