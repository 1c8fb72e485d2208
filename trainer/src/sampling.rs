//! Samples of a step: sampled now, replayed from the store, or read from a data set.
//!
//! The loop ([`crate::train`]) asks a `Source` for the `StepRequest` of a step: the groups that exist already, and the
//! number of prompts to sample for. It collects, grades and stores what is asked for, and the source selects the groups
//! that the step trains on.

pub(crate) mod collector;
mod examples;
mod fresh;
mod replayed;

pub use collector::{Work, Worked, work};
pub(crate) use examples::{Examples, Reader};
pub(crate) use fresh::Fresh;
pub(crate) use replayed::{Offline, Past, Replayed, replays};

use crate::Result;
use crate::algorithm::Schedule;
use crate::checkpoint::bucket::Shared;
use crate::collected::{Collected, lengths};
use crate::config::Config;
use crate::distributed::Team;
use crate::report::metrics;
use model::Policy;
use rollout::collector::SamplingProgress;
use schema::{GradedGroup, Group, Metrics};
use std::path::Path;
use std::rc::Rc;
use store::{RunId, Store};

/// The run that a source samples for.
#[derive(Clone, Copy)]
pub(crate) struct RunContext<'a> {
    /// The run's config.
    pub config: &'a Config,
    /// The run's number in the store.
    pub run: RunId,
    /// The run folder.
    pub folder: &'a Path,
    /// The run's copy in a bucket, if `share.url` names one.
    pub shared: Option<&'a Rc<Shared>>,
    /// The ranks that train together, if there are several.
    pub team: Option<&'a Rc<Team>>,
}

/// The step that a source is asked about.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a> {
    /// The step, counted from 1.
    pub step: u64,
    /// The algorithm's schedule of this step.
    pub schedule: Schedule,
    /// The store of the run.
    pub store: &'a Store,
    /// The run's number there.
    pub run: RunId,
}

/// The samples that a step needs.
#[derive(Debug)]
pub(crate) struct StepRequest {
    /// The step, counted from 1.
    pub step: u64,
    /// The algorithm's schedule of this step.
    pub schedule: Schedule,
    /// Prompts of one round of sampling; 0 if the step samples nothing.
    pub prompts: usize,
    /// Data that exists already: replayed groups, or examples of a data set.
    pub existing: Collected,
    /// Metrics of the existing data.
    pub metrics: Metrics,
}

impl StepRequest {
    /// A step that samples for `prompts` prompts in each round and takes no existing groups.
    pub(crate) fn sampled(context: &StepContext<'_>, prompts: usize) -> Self {
        let StepContext { step, schedule, .. } = *context;
        Self { step, schedule, prompts, existing: Collected::Groups(Vec::new()), metrics: Metrics::new() }
    }

    /// A step that trains on existing data alone.
    pub(crate) fn existing(context: &StepContext<'_>, existing: Collected, metrics: Metrics) -> Self {
        Self { existing, metrics, ..Self::sampled(context, 0) }
    }

    /// Returns `true` if `round` (from 0) is to be sampled after the rounds that gave `groups`: as long as fewer groups carry a
    /// signal than there are prompts, and the schedule allows another round.
    pub(crate) fn wants_round(&self, round: usize, groups: &[GradedGroup]) -> bool {
        let signals = || groups.iter().filter(|group| self.schedule.filter_by.has_signal(group)).count();
        self.prompts > 0 && (round == 0 || (round < self.schedule.max_rounds && signals() < self.prompts))
    }
}

/// The samples of one step.
#[derive(Debug)]
pub(crate) struct StepSamples {
    /// Groups that the step sampled, in the order of the store: each of the policy's before its opponent's, if it has one.
    pub fresh: Vec<GradedGroup>,
    /// The data to train on.
    pub trained: Collected,
    /// Metrics of both.
    pub metrics: Metrics,
}

impl StepSamples {
    /// The completions of the fresh groups or, if the step sampled none, of the data to train on: tokens of the prompt and
    /// of the completion, for each.
    pub(crate) fn seen(&self) -> Vec<(usize, usize)> {
        if self.fresh.is_empty() { self.trained.lengths() } else { lengths(&self.fresh) }
    }

    /// The number of sampled tokens.
    pub(crate) fn generated_tokens(&self) -> u64 {
        metrics::generated_tokens(&self.fresh)
    }
}

/// Supplies each step with samples: the same ones if the step is repeated after a crash.
///
/// A source that samples nothing implements [`Source::request`] alone.
pub(crate) trait Source {
    /// Makes `policy` the one that is sampled from.
    ///
    /// # Errors
    /// If a collector cannot take it over.
    fn publish(&mut self, _policy: &Policy) -> Result<()> {
        Ok(())
    }

    /// Returns the samples that a step needs.
    ///
    /// # Errors
    /// If existing groups cannot be read, or there are none.
    fn request(&mut self, context: &StepContext<'_>) -> Result<StepRequest>;

    /// Samples one round (from 0) of a step that has `groups` groups so far. Called only if the request asks for prompts.
    ///
    /// # Errors
    /// If there is no prompt, or the sampling fails.
    fn collect(
        &mut self,
        _request: &StepRequest,
        _round: usize,
        _groups: usize,
        _progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Vec<Group>> {
        Ok(Vec::new())
    }

    /// Selects the groups to train on from those that exist and those that the step sampled, and returns them with the
    /// step's metrics.
    ///
    /// # Errors
    /// If the fresh groups cannot be measured, or old samples that join them cannot be read.
    fn select(
        &mut self,
        _context: &StepContext<'_>,
        request: StepRequest,
        fresh: Vec<GradedGroup>,
    ) -> Result<StepSamples> {
        Ok(StepSamples { fresh, trained: request.existing, metrics: request.metrics })
    }
}
