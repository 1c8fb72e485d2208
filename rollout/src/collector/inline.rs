//! Sampling in the trainer's own thread, from the trainer's own tensors: always on-policy, with nothing to synchronise.

use super::{Collector, Job, SamplingProgress};
use crate::Result;
use crate::config::EngineConfig;
use crate::engine::{Engine, Event, Request};
use model::Policy;
use schema::{Group, PolicyVersion};

/// A collector that samples in the calling thread.
pub struct Inline {
    engine: Engine,
    mixture: Option<Mixture>,
    fixed: bool,
}

/// First version number of policies other than the published ones; the store of a run identifies a policy by number.
const FIRST_OTHER: u64 = 1 << 32;

/// The second policy of a mixture.
struct Mixture {
    /// Content hash of the second policy.
    second: String,
    /// Weight of the second policy, in [0, 1].
    weight: f64,
}

impl Inline {
    /// Creates a collector that samples from the published policy, `policy` at first.
    pub fn new(policy: &Policy, config: EngineConfig) -> Self {
        Self { engine: Engine::new(policy, config), mixture: None, fixed: false }
    }

    /// Creates a collector that always samples from `policy` and ignores publications.
    pub fn fixed(policy: &Policy, config: EngineConfig) -> Self {
        Self { fixed: true, ..Self::new(policy, config) }
    }

    /// Creates a collector that samples from the geometric mixture of the published policy, `policy` at first, with
    /// `second`, which has the given weight. Samples carry the mixture's log-probabilities, and a policy hash that names
    /// both policies and the weight.
    pub fn mixture(policy: &Policy, second: &Policy, weight: f64, config: EngineConfig) -> Self {
        let mixture = Mixture { second: second.version().hash.clone(), weight };
        Self { engine: Engine::mixture(policy, second, weight, config), mixture: Some(mixture), fixed: false }
    }

    /// Version and content hash of the policy that samples.
    fn version(&self) -> PolicyVersion {
        let version = self.engine.policy().version();
        match &self.mixture {
            Some(Mixture { second, weight }) => {
                let hash = format!("{} mixed with {weight} of {second}", version.hash);
                PolicyVersion { version: FIRST_OTHER + version.version, hash }
            }
            None if self.fixed => PolicyVersion { version: FIRST_OTHER + version.version, ..version.clone() },
            None => version.clone(),
        }
    }
}

impl Collector for Inline {
    fn publish(&mut self, policy: &Policy) -> Result<()> {
        if !self.fixed {
            self.engine.set_policy(policy);
        }
        Ok(())
    }

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(SamplingProgress)) -> Result<Vec<Group>> {
        let requests = job
            .prompts
            .iter()
            .zip(job.position.first_prompt..)
            .map(|(prompt, index)| {
                Ok(Request {
                    prompt_ids: self.engine.policy().tokenizer().prompt_ids(prompt)?,
                    samples: job.group_size,
                    settings: job.settings.clone(),
                    seed: job.seed.at(index),
                    top_logprobs: 0,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let prompt_ids: Vec<_> = requests.iter().map(|request| request.prompt_ids.clone()).collect();

        let mut state = SamplingProgress { samples: job.prompts.len() * job.group_size, ..SamplingProgress::default() };
        let samples = self.engine.run(requests, &mut |event| {
            match event {
                Event::Token { .. } => state.tokens += 1,
                Event::Finished { .. } => state.finished += 1,
            }
            progress(state);
        })?;
        let policy = self.version();
        let groups = job.prompts.into_iter().zip(prompt_ids).zip(samples).map(|((prompt, prompt_ids), samples)| {
            Group { prompt, prompt_ids, policy: policy.clone(), settings: job.settings.clone(), samples }
        });
        Ok(groups.collect())
    }
}
