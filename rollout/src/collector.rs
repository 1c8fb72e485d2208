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

    /// Draws every sample of the job; one group per prompt, in order.
    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Group>>;
}
