//! Old samples that come back into training.
//!
//! Samples come back in two forms. *Whole groups* ([`ReplaySampler::draw`]) suit group-relative methods, which need
//! every sample of a prompt because the advantages come from the group itself. *Single rows* ([`FillRule::fill`]) join
//! a fresh group whose rewards are all alike, so that it has something to compare with.
//!
//! Both choose numbers first and fetch only the blobs of the chosen rows, so a draw costs the same from a thousand
//! samples as from a million. Every row brings its provenance (run, step, policy, number) and the exact
//! log-probabilities of the policy that sampled it.
//!
//! | rule | draws |
//! |---|---|
//! | [`ReplaySampler::Uniform`] | whole groups of all earlier steps |
//! | [`Recent`] | whole groups of the last few steps |
//! | [`Stratified`] | whole groups of all earlier steps whose rewards differ |
//! | [`FillRule`] | rows of the same prompt and another reward |
//!
//! [`ReplaySource::within`] limits the age of what any rule draws.

mod ages;
mod fill;
mod sampler;
mod source;
mod stratified;
mod uniform;

pub use ages::{Ages, metrics};
pub use fill::{Fill, FillRule, ReplayedSample};
pub use sampler::{Recent, ReplaySampler};
pub use source::{ReplaySource, StepsOfRun};
pub use stratified::Stratified;

use crate::StoredGroup;

/// The reward of the sample `s`: the weighted sum, or NULL if a part that has a weight is ungraded.
const REWARD: &str = "(SELECT CASE
        WHEN COUNT(*) FILTER (WHERE r.weight <> 0) = COUNT(r.value) FILTER (WHERE r.weight <> 0)
        THEN SUM(r.weight * r.value) FILTER (WHERE r.weight <> 0) END
    FROM rewards r WHERE r.sample_id = s.id AND r.scoring = 0)";
/// An old group that is trained on again.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedGroup {
    /// The group, with the run, the step and the policy that sampled it.
    pub stored: StoredGroup,
    /// Its age in steps; of another run, the number of steps before that run's end.
    pub age: u64,
}
