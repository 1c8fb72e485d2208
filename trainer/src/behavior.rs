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
use schema::{GradedGroup, Group, Metrics, Seed};
use serde::{Deserialize, Serialize};

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

/// The policy that samples.
#[derive(Debug, Clone)]
pub(crate) enum BehaviorPolicy {
    /// The policy in training.
    OnPolicy,
    /// A policy that corrects the sampling error of the slices before.
    Props(Props),
}

impl BehaviorPolicy {
    /// The behaviour policy of a config; the policy in training if there is none.
    pub(crate) fn new(config: Option<&Config>) -> Self {
        match config {
            None => Self::OnPolicy,
            Some(Config::Props(props)) => Self::Props(props.clone()),
        }
    }

    /// The number of samples of a group in each slice; they add up to `group_size`.
    pub(crate) fn slices(&self, group_size: usize) -> Vec<usize> {
        match self {
            Self::OnPolicy => vec![group_size],
            Self::Props(props) => props.slices(group_size),
        }
    }

    /// The policy that samples the next slice, where `policy` is in training and `sampled` holds the slices so far.
    ///
    /// # Errors
    /// If the samples do not fit the policy.
    pub(crate) fn next(&self, policy: &Policy, sampled: &[Group], seed: &Seed) -> Result<Policy> {
        match self {
            Self::OnPolicy => Ok(policy.share()),
            Self::Props(props) => props.next(policy, sampled, seed),
        }
    }

    /// The metrics of the groups of a step, a function of the samples alone: a resumed run measures the same.
    ///
    /// # Errors
    /// If the samples do not fit the policy.
    pub(crate) fn measure(&self, policy: &Policy, groups: &[GradedGroup], seed: &Seed) -> Result<Metrics> {
        match self {
            Self::OnPolicy => Ok(Metrics::new()),
            Self::Props(props) => props.measure(policy, groups, seed),
        }
    }
}
