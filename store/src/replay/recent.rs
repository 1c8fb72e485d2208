//! The last few steps, each of their groups equally likely.
//!
//! The window of `ReMix` (Liang et al. 2025, arXiv 2507.06892): old enough to be worth re-using, young enough for its
//! importance ratios to stay near one. Two steps are what its authors use.

use super::{ReplaySampler, ReplayedGroup, Source, Uniform};
use crate::Result;
use schema::Seed;
use serde::{Deserialize, Serialize};

/// Draws uniformly, without replacement, from the groups of the last `steps` steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recent {
    /// How many steps back the window reaches, the current step not counted. 1 is the step before this one.
    pub steps: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self { steps: 2 }
    }
}

impl ReplaySampler for Recent {
    fn draw_from(&self, source: &Source<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        Uniform.draw_from(&source.within(self.steps), count, seed)
    }
}
