//! Sampling in the trainer's own thread, from the trainer's own tensors: always on-policy, nothing to synchronise.

use super::{Collector, Job, Progress};
use crate::Result;
use crate::config::EngineConfig;
use crate::engine::{Engine, Event, Request};
use model::Policy;
use schema::{Group, PolicyVersion};

/// The collector that samples where it is called.
pub struct Inline {
    engine: Engine,
    mixture: Option<Mixture>,
    fixed: bool,
}

/// Policies that are not the published one are numbered from here on, since a run's store knows one by each number.
const FIRST_OTHER: u64 = 1 << 32;

/// What else goes into the draws.
struct Mixture {
    /// The content hash of the other policy.
    other: String,
    share: f64,
}

impl Inline {
    /// Samples from `policy`.
    pub fn new(policy: &Policy, config: EngineConfig) -> Self {
        Self { engine: Engine::new(policy, config), mixture: None, fixed: false }
    }

    /// Samples from `policy` for ever, whatever is published.
    pub fn fixed(policy: &Policy, config: EngineConfig) -> Self {
        Self { fixed: true, ..Self::new(policy, config) }
    }

    /// Samples from the geometric mixture of what is published, `policy` at first, with `other`, which has the weight
    /// `share`. Such samples have the mixture's log-probabilities, and a policy hash that names both and the weight.
    pub fn mixture(policy: &Policy, other: &Policy, share: f64, config: EngineConfig) -> Self {
        let mixture = Mixture { other: other.version().hash.clone(), share };
        Self { engine: Engine::mixture(policy, other, share, config), mixture: Some(mixture), fixed: false }
    }

    /// Whom the samples are drawn from.
    fn version(&self) -> PolicyVersion {
        let version = self.engine.policy().version();
        match &self.mixture {
            Some(Mixture { other, share }) => {
                let hash = format!("{} mixed with {share} of {other}", version.hash);
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

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Group>> {
        let requests = job
            .prompts
            .iter()
            .zip(job.address.first..)
            .map(|(prompt, index)| {
                Ok(Request {
                    prompt_ids: self.engine.policy().tokenizer().prompt_ids(prompt)?,
                    samples: job.group_size,
                    settings: job.settings.clone(),
                    seed: job.seed.at(index),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let prompt_ids: Vec<_> = requests.iter().map(|request| request.prompt_ids.clone()).collect();

        let mut state = Progress { samples: job.prompts.len() * job.group_size, ..Progress::default() };
        let samples = self.engine.run(requests, &mut |event| {
            match event {
                Event::Token { .. } => state.tokens += 1,
                Event::Finished { .. } => state.finished += 1,
                Event::Likeliest { .. } => {}
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
