//! Which old samples come back into training.
//!
//! Samples come back in whole groups, because a group-relative method needs every sample of a prompt. A sampler draws
//! numbers first and fetches the blobs of what it drew alone, so a draw costs the same from a thousand samples as from
//! a million.

mod recent;

pub use recent::Recent;

use crate::{Result, RunId, Store, StoredGroup};
use schema::Seed;

/// A rule that picks old groups of a run.
pub trait ReplaySampler: Send {
    /// Draws up to `count` different groups that `run` stored before step `now`; fewer if the rule admits fewer. The
    /// draw depends on the seed and on the store's content alone: callers pass the branch of their run's tree that
    /// belongs to this step.
    fn draw(&self, store: &Store, run: RunId, now: u64, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>>;
}

/// An old group that is to be trained on again.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedGroup {
    /// The group, with the run, the step and the policy that drew it.
    pub stored: StoredGroup,
    /// How many steps ago it was drawn.
    pub age: u64,
}
