//! Where the samples of a step come from: drawn now, drawn earlier, or read from a file.

pub(crate) mod collector;
mod examples;
mod fresh;
mod replayed;

pub use collector::{Work, Worked, work};
pub(crate) use examples::{Examples, Reader};
pub(crate) use fresh::Rollouts;
pub(crate) use replayed::{Offline, Past, Replayed};

use crate::Result;
use crate::algorithm::Schedule;
use crate::checkpoint::bucket::Shared;
use crate::config::Config;
use crate::distributed::Team;
use crate::judge::Bench;
use crate::observer::Observer;
use crate::report::metrics;
use model::Policy;
use reward::WeightedSum;
use schema::{Metrics, ScoredGroup};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use store::{RunId, Store};

/// What a source works with.
pub(crate) struct Desk<'a> {
    /// Where samples are kept.
    pub store: &'a Store,
    /// The run that they belong to.
    pub run: RunId,
    /// What they are worth.
    pub reward: &'a mut WeightedSum,
    /// Who compares them, where anybody does.
    pub judge: Option<&'a mut Bench>,
    /// Where the weights of the present policy are kept, if they are.
    pub adapter: Option<String>,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
    /// What judging this step's samples has taken so far.
    pub judging: Duration,
}

/// The samples of one step.
#[derive(Debug, Default)]
pub(crate) struct StepSamples {
    /// What this step drew.
    pub fresh: Vec<ScoredGroup>,
    /// What to learn from, where that is not all that was drawn.
    pub chosen: Option<Vec<ScoredGroup>>,
    /// What is worth knowing about them.
    pub metrics: Metrics,
}

impl StepSamples {
    /// What to learn from.
    pub(crate) fn trained(&self) -> &[ScoredGroup] {
        self.chosen.as_deref().unwrap_or(&self.fresh)
    }

    /// What the step drew or, where it drew nothing, read.
    pub(crate) fn seen(&self) -> &[ScoredGroup] {
        if self.fresh.is_empty() { self.trained() } else { &self.fresh }
    }

    /// Tokens that were drawn.
    pub(crate) fn generated_tokens(&self) -> u64 {
        metrics::generated_tokens(&self.fresh)
    }
}

/// Where a run is at home.
pub(crate) struct Home<'a> {
    /// The config of the run.
    pub config: &'a Config,
    /// Its number in the store.
    pub run: RunId,
    /// Its folder.
    pub folder: &'a Path,
    /// Where it is shared with other machines.
    pub shared: Option<&'a Rc<Shared>>,
    /// The processes that train it together.
    pub team: Option<&'a Rc<Team>>,
}

/// Supplies each step with samples.
pub(crate) trait Source {
    /// Tells where the run is at home, once, before its first step.
    fn begin(&mut self, _home: &Home<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes this policy the one that the next samples come from.
    fn publish(&mut self, policy: &Policy) -> Result<()>;

    /// The samples of a step: the same ones if it is asked again after a crash.
    fn step(&mut self, step: u64, schedule: &Schedule, desk: Desk<'_>) -> Result<StepSamples>;
}
