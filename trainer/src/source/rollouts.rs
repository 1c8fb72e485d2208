//! Samples that the policy draws: asked of a collector, judged, and committed to the store before anything is learned
//! from them. A resumed run finds the samples of a step that it has already paid for in the store.
//!
//! Dynamic sampling (Q. Yu et al. 2025, DAPO, arXiv 2503.14476): a group whose rewards are all alike teaches nothing,
//! so further prompts are asked, round by round, until the step has as many groups with a signal as it has prompts.
//! What that cost is counted, and every group is kept in the store, with a signal or without.
//!
//! Methods that compare the policy with another one get a second group for each prompt, right behind the policy's own.

use super::{Desk, Source, StepSamples};
use crate::algorithm::Schedule;
use crate::objective::has_signal;
use crate::run::Phase;
use crate::{Result, measure};
use model::Policy;
use rollout::collector::{Collector, Job};
use rollout::prompts::Epochs;
use schema::{Prompt, SamplerSettings, ScoredGroup, Seed};

/// Draws samples.
pub(crate) struct Rollouts {
    pub(crate) collector: Box<dyn Collector>,
    /// Draws another group for each prompt, of the same size, for the policy to be compared with.
    pub(crate) opponent: Option<Box<dyn Collector>>,
    pub(crate) prompts: Epochs,
    pub(crate) prompts_per_step: usize,
    pub(crate) group_size: usize,
    pub(crate) settings: SamplerSettings,
    pub(crate) seed: Seed,
}

impl Source for Rollouts {
    fn publish(&mut self, policy: &Policy) -> Result<()> {
        if let Some(opponent) = &mut self.opponent {
            opponent.publish(policy)?;
        }
        Ok(self.collector.publish(policy)?)
    }

    fn step(&mut self, step: u64, schedule: &Schedule, mut desk: Desk<'_>) -> Result<StepSamples> {
        let drawn = if let Some(stored) = desk.store.step_groups(desk.run, step)? {
            stored.into_iter().map(|group| group.scored).collect()
        } else {
            let drawn = self.draw(step, schedule, &mut desk)?;
            desk.store.append_step(desk.run, step, &drawn, desk.adapter.as_deref())?;
            drawn
        };
        Ok(self.samples(drawn, schedule))
    }
}

impl Rollouts {
    /// Draws round after round until enough groups carry a signal; a single round where that does not matter.
    fn draw(&mut self, step: u64, schedule: &Schedule, desk: &mut Desk<'_>) -> Result<Vec<ScoredGroup>> {
        let seed = self.seed.at(step);
        let mut drawn = self.round(self.prompts.step(step)?, seed.clone(), desk)?;
        for round in 1..schedule.max_rounds as u64 {
            if drawn.iter().filter(|group| has_signal(&group.rewards())).count() >= self.prompts_per_step {
                break;
            }
            drawn.extend(self.round(self.prompts.more(step, round)?, seed.child("more").at(round), desk)?);
        }
        Ok(drawn)
    }

    fn round(&mut self, prompts: Vec<Prompt>, seed: Seed, desk: &mut Desk<'_>) -> Result<Vec<ScoredGroup>> {
        let job = Job { prompts, group_size: self.group_size, settings: self.settings.clone(), seed };
        let observer = &mut *desk.observer;
        observer.phase(Phase::Sampling);
        let other = Job { seed: job.seed.child("opponent"), ..job.clone() };
        let mut groups = self.collector.collect(job, &mut |progress| observer.progress(Phase::Sampling, progress))?;
        if let Some(opponent) = &mut self.opponent {
            let others = opponent.collect(other, &mut |progress| observer.progress(Phase::Sampling, progress))?;
            groups = groups.into_iter().zip(others).flat_map(|(own, other)| [own, other]).collect();
        }
        observer.phase(Phase::Scoring);
        Ok(desk.reward.score(groups)?)
    }

    fn samples(&self, fresh: Vec<ScoredGroup>, schedule: &Schedule) -> StepSamples {
        let mut metrics = if self.opponent.is_some() {
            let (own, others) = with_opponents(&fresh);
            let mut metrics = measure::samples(&own);
            if let Some(reward) = measure::samples(&others).get("reward") {
                metrics.set("opponent/reward", reward);
            }
            metrics
        } else {
            measure::samples(&fresh)
        };
        let chosen = (schedule.max_rounds > 1).then(|| {
            let signal = fresh.iter().filter(|group| has_signal(&group.rewards()));
            let chosen: Vec<ScoredGroup> = signal.take(self.prompts_per_step).cloned().collect();
            let tokens = measure::generated_tokens(&fresh);
            metrics.set("sampling/rounds", fresh.len().div_ceil(self.prompts_per_step) as f64);
            metrics.set("sampling/groups_kept", chosen.len() as f64);
            metrics.set("sampling/groups_dropped", (fresh.len() - chosen.len()) as f64);
            metrics.set("sampling/tokens_dropped", (tokens - measure::generated_tokens(&chosen)) as f64);
            chosen
        });
        StepSamples { fresh, chosen, metrics }
    }
}

/// The policy's groups and those of its opponent, which lie behind them one by one.
fn with_opponents(groups: &[ScoredGroup]) -> (Vec<ScoredGroup>, Vec<ScoredGroup>) {
    let every_second = |first: usize| groups.iter().skip(first).step_by(2).cloned().collect();
    (every_second(0), every_second(1))
}
