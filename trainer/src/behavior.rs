//! Which policy draws the samples of a step: the one that is trained, or one beside it.
//!
//! A group is drawn in slices. Before each slice but the first, a behaviour policy sees what the slices so far have
//! drawn and says which policy goes on. Log-probabilities are stored as the drawing policy gave them.

mod props;
mod visits;

pub use props::{Adapts, Props};
pub use visits::Visits;

use crate::Result;
use model::Policy;
use schema::{Group, Metrics, ScoredGroup, Seed};
use serde::{Deserialize, Serialize};

/// Which policy draws.
pub(crate) trait BehaviorPolicy {
    /// How many samples of a group each slice draws; they add up to `group_size`.
    fn slices(&self, group_size: usize) -> Vec<usize>;

    /// The policy that draws the next slice, where `policy` is the one that is trained and `drawn` holds what the slices
    /// so far gave.
    fn next(&self, policy: &Policy, drawn: &[Group], seed: &Seed) -> Result<Policy>;

    /// What is worth knowing of the groups of a step, by what was drawn alone: a resumed run says the same.
    fn measure(&self, policy: &Policy, groups: &[ScoredGroup], seed: &Seed) -> Result<Metrics>;
}

/// `[behavior.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    /// `[behavior.props]`
    Props(Props),
}

impl Config {
    /// Refuses settings that make no sense.
    pub(crate) fn check(&self, group_size: usize) -> Result<()> {
        match self {
            Self::Props(props) => props.check(group_size),
        }
    }
}

/// The behaviour policy of a config; the policy that is trained if there is none.
pub(crate) fn build(config: Option<&Config>) -> Box<dyn BehaviorPolicy> {
    match config {
        None => Box::new(OnPolicy),
        Some(Config::Props(props)) => Box::new(props.clone()),
    }
}

/// The policy that is trained draws.
#[derive(Debug, Clone, Copy)]
struct OnPolicy;

impl BehaviorPolicy for OnPolicy {
    fn slices(&self, group_size: usize) -> Vec<usize> {
        vec![group_size]
    }

    fn next(&self, policy: &Policy, _drawn: &[Group], _seed: &Seed) -> Result<Policy> {
        Ok(policy.share())
    }

    fn measure(&self, _policy: &Policy, _groups: &[ScoredGroup], _seed: &Seed) -> Result<Metrics> {
        Ok(Metrics::new())
    }
}
