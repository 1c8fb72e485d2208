//! A limit on age around any other rule.
//!
//! The older a row, the further its policy is from the present one, and the fewer of its importance ratios survive
//! clipping: a bound on age is the simplest guard that needs no evaluation of the row.

use super::{Fill, ReplaySampler, ReplayedGroup, Source};
use crate::Result;
use schema::{GradedGroup, Seed};

/// Another rule, over what is at most `max_age` steps old.
pub struct StalenessLimit {
    /// The greatest age in steps; 1 is the step before this one.
    pub max_age: u64,
    /// The rule that draws.
    pub rule: Box<dyn ReplaySampler>,
}

impl ReplaySampler for StalenessLimit {
    fn draw_from(&self, source: &Source<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        self.rule.draw_from(&source.within(self.max_age), count, seed)
    }

    fn fill(&self, source: &Source<'_>, groups: &[GradedGroup], seed: &Seed) -> Result<Vec<Fill>> {
        self.rule.fill(&source.within(self.max_age), groups, seed)
    }
}
