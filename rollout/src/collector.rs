//! Collectors: turning the sampling work of a training step into groups of samples.

mod inline;

pub use inline::Inline;

use crate::Result;
use model::Policy;
use schema::{Group, Prompt, SamplerSettings, Seed};

/// The sampling work of one training step.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompts, one group of samples each.
    pub prompts: Vec<Prompt>,
    /// Samples per prompt.
    pub group_size: usize,
    /// Temperature, truncation, length and stop strings of the samples.
    pub settings: SamplerSettings,
    /// Source of randomness: prompt `i` of the job uses the branch `seed.at(position.first_prompt + i)`.
    pub seed: Seed,
    /// Position of the job in its run.
    pub position: JobPosition,
}

/// The position of a job in its run; all zero outside of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobPosition {
    /// The step that learns from the samples.
    pub step: u64,
    /// Index in the step of the job's first group.
    pub first_group: usize,
    /// Index under the job's seed of its first prompt. A part of a job that sets it samples exactly what the whole job
    /// would have sampled there.
    pub first_prompt: u64,
}

/// Progress of a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SamplingProgress {
    /// Completed samples.
    pub finished: usize,
    /// Samples of the whole job.
    pub samples: usize,
    /// Tokens sampled so far.
    pub tokens: usize,
}

/// A source of samples for the training loop: in the trainer's own thread ([`Inline`]), on other ranks, or on remote
/// workers.
///
/// The loop calls, in this order and for each step: [`publish`](Self::publish) once the policy has changed, optionally
/// [`announce`](Self::announce) for jobs of later steps, then [`collect`](Self::collect). Equal jobs under equal
/// policies must give equal samples, because a resumed run repeats the calls of the interrupted one. Each group records
/// the version and content hash of the policy that sampled it, so a collector may be behind the published policy as
/// long as it says so there.
pub trait Collector {
    /// Makes `policy` the one to sample from in the next collection.
    ///
    /// # Errors
    ///
    /// If the policy cannot be handed to the sampler, for example because the store or another rank does not answer.
    fn publish(&mut self, policy: &Policy) -> Result<()>;

    /// Announces a job that will be collected later, so that a collector which samples elsewhere can start early. The
    /// default does nothing.
    ///
    /// # Errors
    ///
    /// If the job cannot be queued.
    fn announce(&mut self, _job: &Job) -> Result<()> {
        Ok(())
    }

    /// Samples the whole job, blocking until it is complete. Returns one group of `group_size` samples per prompt, in
    /// the order of the prompts. `progress` is called whenever tokens or samples have been added.
    ///
    /// # Errors
    ///
    /// If a prompt does not fit into the model's context, or sampling fails. No part of the job is returned then.
    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(SamplingProgress)) -> Result<Vec<Group>>;
}
