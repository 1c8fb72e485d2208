//! Sampling in other processes and on other machines, through the store.
//!
//! The trainer cuts a step's sampling into jobs and publishes its policy, the adapter alone; workers
//! (`proxrl rollout work`) lease jobs, draw them with an engine of their own from the newest published policy, and append
//! what they drew together with the job's end. The trainer waits for the jobs of its step, judges what was drawn, and
//! goes on as if it had drawn it itself. Both ends know the store and nothing of each other, so either may die and come
//! back at any moment: jobs that are done stay done, and those that are not are leased again.
//!
//! A job's prompts have the seeds that they would have had in the trainer, and a job carries its place in the step. So on
//! one kind of machine the samples are those that the trainer would have sampled, by any worker and in any number of attempts.
//!
//! With `max_staleness = 0` a step's jobs are drawn by the policy of that step. With `n`, the jobs of the `n` next steps
//! are there too: workers draw on while the trainer learns, and a sample's policy may be up to `n` versions behind the
//! one that learns from it. Every sample has the log-probabilities of the policy that drew it, so importance weights stay
//! exact; how far they are from one is in `effective_sample_share`.

pub(crate) mod job;
mod lease;
mod publication;
pub(crate) mod ranks;
mod remote;
mod worker;

pub use worker::{Work, Worked, work};

use super::RunContext;
use crate::Result;
use crate::config::CollectorConfig;
use model::Policy;
use ranks::RankCollector;
use remote::Remote;
use rollout::collector::{Collector, Inline};
use std::rc::Rc;

/// Opens the collector of a run, which samples from `policy` until another is published: workers if the config asks for
/// them, all ranks if there are several, and this process otherwise.
///
/// # Errors
/// If the policy cannot be published for workers.
pub(crate) fn open(context: &RunContext<'_>, policy: &Policy) -> Result<Box<dyn Collector>> {
    let local = || Inline::new(policy, context.config.rollout.engine.clone());
    Ok(match (&context.config.collector, context.team) {
        (Some(CollectorConfig::Remote(remote)), _) => Box::new(Remote::open(remote, context, policy, local())?),
        (None, Some(team)) => Box::new(RankCollector::new(Rc::clone(team), local())),
        (None, None) => Box::new(local()),
    })
}
