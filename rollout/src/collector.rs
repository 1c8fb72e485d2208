//! When and where sampling happens.

mod inline;

pub use inline::Inline;

use crate::Result;
use model::Policy;
use schema::{Group, Prompt, SamplerSettings, Seed};

/// The sampling work of one training step.
#[derive(Debug, Clone)]
pub struct Job {
    /// What to ask.
    pub prompts: Vec<Prompt>,
    /// How many answers to each.
    pub group_size: usize,
    /// How to draw them.
    pub settings: SamplerSettings,
    /// Where the randomness of this job comes from.
    pub seed: Seed,
    /// Where in its run it belongs.
    pub address: Address,
}

/// Where in a run some sampling work belongs; zeros outside of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Address {
    /// The step that will learn from it.
    pub step: u64,
    /// The place of its first group in the step.
    pub place: usize,
    /// The number under the job's seed of its first prompt: a piece of a job draws what the whole would have drawn there.
    pub first: u64,
}

/// How far a collection has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Samples that are complete.
    pub finished: usize,
    /// Samples in all.
    pub samples: usize,
    /// Tokens drawn so far.
    pub tokens: usize,
}

/// Turns prompts into groups of samples.
pub trait Collector {
    /// Makes this policy the one that the next collection samples from.
    fn publish(&mut self, policy: &Policy) -> Result<()>;

    /// Tells of a job that will be asked for later. A collector that draws elsewhere may begin with it.
    fn announce(&mut self, _job: &Job) -> Result<()> {
        Ok(())
    }

    /// Draws every sample of the job; one group per prompt, in order.
    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Group>>;
}
