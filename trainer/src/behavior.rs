//! The behaviour policy of a step: the trained policy, or one beside it that corrects the sampling error.
//!
//! A group is sampled in slices. Before each slice but the first, the behaviour policy receives the samples so far and
//! returns the policy of the next slice. Log-probabilities are stored as the sampling policy gave them.

mod props;
mod visits;

pub use props::{Adapts, Props};
pub use visits::Visits;

use crate::Result;
use model::Policy;
use schema::{Group, Metrics, ScoredGroup, Seed};
use serde::{Deserialize, Serialize};

/// A rule that chooses the sampling policy of each slice of a group.
pub(crate) trait BehaviorPolicy {
    /// Returns the number of samples in each slice of a group; they add up to `group_size`.
    fn slices(&self, group_size: usize) -> Vec<usize>;

    /// Returns the policy that samples the next slice. `policy` is the trained policy and `sampled` holds the groups so
    /// far.
    fn next(&self, policy: &Policy, sampled: &[Group], seed: &Seed) -> Result<Policy>;

    /// Returns diagnostics of the groups of a step. They depend on the samples alone, so that a resumed run reports the
    /// same.
    fn measure(&self, policy: &Policy, groups: &[ScoredGroup], seed: &Seed) -> Result<Metrics>;
}

/// Behaviour policy of a run: `[behavior.<name>]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    /// `[behavior.props]`: robust on-policy sampling.
    Props(Props),
}

impl Config {
    /// Returns an error for a setting outside its range.
    pub(crate) fn check(&self, group_size: usize) -> Result<()> {
        match self {
            Self::Props(props) => props.check(group_size),
        }
    }
}

/// Builds the behaviour policy of a config; the trained policy if there is none.
pub(crate) fn build(config: Option<&Config>) -> Box<dyn BehaviorPolicy> {
    match config {
        None => Box::new(OnPolicy),
        Some(Config::Props(props)) => Box::new(props.clone()),
    }
}

/// On-policy sampling: the trained policy samples the whole group.
#[derive(Debug, Clone, Copy)]
struct OnPolicy;

impl BehaviorPolicy for OnPolicy {
    fn slices(&self, group_size: usize) -> Vec<usize> {
        vec![group_size]
    }

    fn next(&self, policy: &Policy, _sampled: &[Group], _seed: &Seed) -> Result<Policy> {
        Ok(policy.share())
    }

    fn measure(&self, _policy: &Policy, _groups: &[ScoredGroup], _seed: &Seed) -> Result<Metrics> {
        Ok(Metrics::new())
    }
}
