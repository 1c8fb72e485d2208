//! Sampling in the trainer's own thread, from the trainer's own tensors: always on-policy, nothing to synchronise.

use super::{Collector, Job, Progress};
use crate::Result;
use crate::config::EngineConfig;
use crate::engine::{Engine, Event, Request};
use model::Policy;
use schema::Group;

/// The collector that samples where it is called.
pub struct Inline {
    engine: Engine,
}

impl Inline {
    /// Samples from `policy`.
    pub fn new(policy: &Policy, config: EngineConfig) -> Self {
        Self { engine: Engine::new(policy, config) }
    }
}

impl Collector for Inline {
    fn publish(&mut self, policy: &Policy) -> Result<()> {
        self.engine.set_policy(policy);
        Ok(())
    }

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Group>> {
        let requests = job
            .prompts
            .iter()
            .zip(0..)
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
            }
            progress(state);
        })?;
        let policy = self.engine.policy().version();
        let groups = job.prompts.into_iter().zip(prompt_ids).zip(samples).map(|((prompt, prompt_ids), samples)| {
            Group { prompt, prompt_ids, policy: policy.clone(), settings: job.settings.clone(), samples }
        });
        Ok(groups.collect())
    }
}
