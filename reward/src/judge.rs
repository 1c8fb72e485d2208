//! Judges: each compares two samples and says how likely the first is better.
//!
//! Preference methods need no number per sample, only how likely one beats the other. Each kind of judge has its file, and
//! [`Config`], the `[judge]` table, names one of them:
//!
//! | key | judge |
//! |---|---|
//! | `rule.<name>` | a rule: the higher value wins, or wins with `σ(difference / temperature)` |
//! | `model` | a network: a reward model by the difference of its rewards, or a preference model |
//! | `endpoint` | a model behind an OpenAI-compatible address |
//! | `command` | a program |
//!
//! A judge may have position bias. [`Fair`] wraps every judge and asks about each pair in both orders. A comparison that
//! fails is missing, with a reason: a failure is never a tie. A judge that runs a network implements the trait in a crate
//! that runs networks.

mod by_reward;
mod command;
mod config;
mod endpoint;
mod fair;

pub use by_reward::ByReward;
pub use command::Command;
pub use config::{Config, OpenJudge};
pub use endpoint::{Config as EndpointConfig, Endpoint};
pub use fair::Fair;

use schema::{Grade, Group, Sample};

/// One side of a comparison: a sample in its group.
#[derive(Debug, Clone, Copy)]
pub struct Contestant<'a> {
    /// The group that holds the sample, and the prompt that it answers.
    pub group: &'a Group,
    /// The sample's index in the group.
    pub index: usize,
}

impl<'a> Contestant<'a> {
    /// The sample itself.
    pub fn sample(&self) -> &'a Sample {
        &self.group.samples[self.index]
    }
}

/// Two samples that answer one prompt.
pub type Matchup<'a> = (Contestant<'a>, Contestant<'a>);

/// A judge: compares samples that answer one prompt, sampled by one policy or by two.
pub trait Judge {
    /// The kind of judge.
    fn name(&self) -> &'static str;

    /// A version that changes whenever the code or a setting changes the outcome of a comparison.
    fn version(&self) -> String;

    /// Returns true if the order of a pair cannot matter.
    fn is_symmetric(&self) -> bool {
        false
    }

    /// For each pair the probability, in [0, 1], that the first beats the second, 0.5 being a tie, or the reason why it is
    /// missing. One entry per pair, in order.
    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade>;
}

#[cfg(test)]
mod tests;
