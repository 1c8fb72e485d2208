//! The door for comparisons: which of two samples is better?
//!
//! Preference methods need no number per sample, only how likely one beats the other. People, models and rules can all
//! say that; each kind of judge has its file, and [`Config`], the `[judge]` table, names one of them:
//!
//! | key | who judges |
//! |---|---|
//! | `rule.<name>` | a rule: the higher value wins, or wins with `σ(difference / temperature)` |
//! | `model` | a network: a reward model by the difference of its scores, or a preference model |
//! | `endpoint` | a model behind an OpenAI-compatible address |
//! | `command` | a program |
//!
//! A judge may prefer whatever it sees first. [`Fair`] stands before every judge and asks about each pair in both
//! orders. What a judge cannot say stays unjudged, with a reason: a failure is never a draw. A judge that runs a network
//! implements the trait where networks run.

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
    /// The sample's place in the group.
    pub place: usize,
}

impl<'a> Contestant<'a> {
    /// The sample itself.
    pub fn sample(&self) -> &'a Sample {
        &self.group.samples[self.place]
    }
}

/// Two samples that answer one prompt.
pub type Pair<'a> = (Contestant<'a>, Contestant<'a>);

/// Compares samples that answer one prompt, drawn by one policy or by two.
pub trait Judge {
    /// What kind of judge this is.
    fn name(&self) -> &'static str;

    /// Changes whenever the code or a setting changes who wins.
    fn version(&self) -> String;

    /// Whether it cannot matter which sample of a pair is named first.
    fn is_symmetric(&self) -> bool {
        false
    }

    /// For each pair the probability, in [0, 1], that the first beats the second, 0.5 being a draw, or the reason why the
    /// judge cannot say. One entry per pair, in order.
    fn compare(&mut self, pairs: &[Pair<'_>]) -> Vec<Grade>;
}

#[cfg(test)]
mod tests;
