//! Samples that the policy draws: asked of a collector, judged, and committed to the store before anything is learned
//! from them. A resumed run finds the samples of a step that it has already paid for in the store.
//!
//! Dynamic sampling (Q. Yu et al. 2025, DAPO, arXiv 2503.14476): a group whose rewards are all alike teaches nothing,
//! so further prompts are asked, round by round, until the step has as many groups with a signal as it has prompts.
//! What that cost is counted, and every group is kept in the store, with a signal or without.
//!
//! Methods that compare the policy with another one get a second group for each prompt, right behind the policy's own.

use super::collector::ranks::Spread;
use super::{Desk, Home, Source, StepSamples};
use crate::Result;
use crate::algorithm::Schedule;
use crate::behavior::BehaviorPolicy;
use crate::config::CollectorConfig;
use crate::judge::comparisons;
use crate::objective::has_signal;
use crate::observer::Phase;
use crate::report::metrics;
use crate::sampling::collector::Remote;
use model::Policy;
use rollout::collector::{Address, Collector, Inline, Job};
use rollout::prompts::Epochs;
use schema::{Group, Prompt, SamplerSettings, ScoredGroup, Seed};
use std::rc::Rc;
use std::time::Instant;

/// Draws samples.
pub(crate) struct Rollouts {
    pub(crate) collector: Box<dyn Collector>,
    /// Draws another group for each prompt, of the same size, for the policy to be compared with.
    pub(crate) opponent: Option<Box<dyn Collector>>,
    /// The policy that is trained.
    pub(crate) policy: Policy,
    /// Which policy draws, slice by slice of each group.
    pub(crate) behavior: Box<dyn BehaviorPolicy>,
    pub(crate) prompts: Epochs,
    pub(crate) prompts_per_step: usize,
    pub(crate) group_size: usize,
    pub(crate) settings: SamplerSettings,
    pub(crate) seed: Seed,
    /// Steps beyond the present one that the collector is told of.
    pub(crate) lookahead: u64,
    /// The last step of the run.
    pub(crate) last_step: u64,
}

impl Source for Rollouts {
    fn begin(&mut self, home: &Home<'_>) -> Result<()> {
        if let Some(CollectorConfig::Remote(remote)) = &home.config.collector {
            self.collector = Box::new(Remote::open(remote, home, &self.policy)?);
        } else if let Some(team) = home.team {
            let local = Inline::new(&self.policy, home.config.rollout.engine.clone());
            self.collector = Box::new(Spread::new(Rc::clone(team), local));
        }
        Ok(())
    }

    fn publish(&mut self, policy: &Policy) -> Result<()> {
        if let Some(opponent) = &mut self.opponent {
            opponent.publish(policy)?;
        }
        self.policy = policy.share();
        Ok(self.collector.publish(policy)?)
    }

    fn step(&mut self, step: u64, schedule: &Schedule, desk: Desk<'_>) -> Result<StepSamples> {
        self.fresh(step, self.prompts_per_step, schedule, desk)
    }
}

impl Rollouts {
    /// The samples of the first `prompts` prompts of a step.
    pub(super) fn fresh(
        &mut self,
        step: u64,
        prompts: usize,
        schedule: &Schedule,
        mut desk: Desk<'_>,
    ) -> Result<StepSamples> {
        let drawn = if let Some(stored) = desk.store.step_groups(desk.run, step)? {
            stored.into_iter().map(|group| group.scored).collect()
        } else {
            let drawn = self.draw(step, prompts, schedule, &mut desk)?;
            let _span = phase_span!("append");
            desk.store.append_step(desk.run, step, &drawn, desk.adapter.as_deref())?;
            drawn
        };
        let measured = self.behavior.measure(&self.policy, &drawn, &self.seed.at(step).child("behavior"))?;
        let stale = staleness(&drawn, step).filter(|_| self.lookahead > 0);
        let mut samples = samples(drawn, prompts, schedule, self.opponent.is_some());
        if let Some((mean, most)) = stale {
            samples.metrics.set("sampling/staleness_mean", mean);
            samples.metrics.set("sampling/staleness_max", most);
        }
        samples.metrics.merge(measured);
        samples.metrics.set("time/reward_s", desk.judging.as_secs_f64());
        Ok(samples)
    }

    /// Draws round after round until enough groups carry a signal; a single round where that does not matter.
    fn draw(
        &mut self,
        step: u64,
        prompts: usize,
        schedule: &Schedule,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<ScoredGroup>> {
        let seed = self.seed.at(step);
        for later in (step + 1..=self.last_step).take(self.lookahead as usize) {
            let mut asked = self.prompts.step(later)?;
            asked.truncate(prompts);
            let address = Address { step: later, ..Address::default() };
            self.collector.announce(&self.job(asked, self.group_size, self.seed.at(later), address))?;
        }
        let first = self.prompts.step(step)?;
        let address = Address { step, ..Address::default() };
        let mut drawn = self.round(&first[..prompts], &seed, address, desk)?;
        for round in 1..schedule.max_rounds as u64 {
            if drawn.iter().filter(|group| has_signal(&group.rewards())).count() >= prompts {
                break;
            }
            let more = self.prompts.more(step, round)?;
            let address = Address { place: drawn.len(), ..address };
            drawn.extend(self.round(&more[..prompts], &seed.child("more").at(round), address, desk)?);
        }
        Ok(drawn)
    }

    fn job(&self, prompts: Vec<Prompt>, group_size: usize, seed: Seed, address: Address) -> Job {
        Job { prompts, group_size, settings: self.settings.clone(), seed, address }
    }

    fn round(
        &mut self,
        prompts: &[Prompt],
        seed: &Seed,
        address: Address,
        desk: &mut Desk<'_>,
    ) -> Result<Vec<ScoredGroup>> {
        let observer = &mut *desk.observer;
        observer.phase(Phase::Sampling);
        let collecting = phase_span!("collect");
        let slices = self.behavior.slices(self.group_size);
        let mut groups: Vec<Group> = Vec::new();
        for (slice, group_size) in (0..).zip(&slices) {
            if slice > 0 {
                let own = seed.child("behavior").at(slice);
                self.collector.publish(&self.behavior.next(&self.policy, &groups, &own)?)?;
            }
            // The first slice is drawn as the whole group would be.
            let seed = if slice == 0 { seed.clone() } else { seed.child("slice").at(slice) };
            let job = self.job(prompts.to_vec(), *group_size, seed, address);
            let drawn = self.collector.collect(job, &mut |progress| observer.progress(Phase::Sampling, progress))?;
            join(&mut groups, drawn);
        }
        if slices.len() > 1 {
            self.collector.publish(&self.policy)?;
        }
        let against = self.job(prompts.to_vec(), self.group_size, seed.child("opponent"), address);
        if let Some(opponent) = &mut self.opponent {
            let others = opponent.collect(against, &mut |progress| observer.progress(Phase::Sampling, progress))?;
            groups = groups.into_iter().zip(others).flat_map(|(own, other)| [own, other]).collect();
        }
        drop(collecting);
        observer.phase(Phase::Scoring);
        let _span = phase_span!("reward");
        let judging = Instant::now();
        let scored = desk.reward.score(groups)?;
        let judged = match &mut desk.judge {
            Some(bench) => bench.hear(scored)?,
            None => scored,
        };
        desk.judging += judging.elapsed();
        Ok(judged)
    }
}

/// How many versions behind the policy of this step the groups were drawn: in the mean and at most.
fn staleness(groups: &[ScoredGroup], step: u64) -> Option<(f64, f64)> {
    let ages: Vec<f64> =
        groups.iter().map(|group| (step - 1).saturating_sub(group.group().policy.version) as f64).collect();
    (!ages.is_empty()).then(|| (metrics::mean(&ages), ages.iter().copied().fold(0.0, f64::max)))
}

/// Adds the samples of a further slice to each group, which bears the name of the policy that is trained: whoever drew
/// them, their log-probabilities stand beside their tokens.
fn join(groups: &mut Vec<Group>, slice: Vec<Group>) {
    if groups.is_empty() {
        *groups = slice;
        return;
    }
    for (group, more) in groups.iter_mut().zip(slice) {
        group.samples.extend(more.samples);
    }
}

/// What is learned from, of what a step asking `prompts` prompts at a time drew, and what is worth knowing about it.
/// Where there are `opponents`, the metrics of the policy's own samples go without a prefix.
fn samples(fresh: Vec<ScoredGroup>, prompts: usize, schedule: &Schedule, opponents: bool) -> StepSamples {
    let mut metrics = if opponents {
        let (own, others) = with_opponents(&fresh);
        let mut metrics = metrics::samples(&own);
        if let Some(reward) = metrics::samples(&others).get("reward") {
            metrics.set("opponent/reward", reward);
        }
        metrics
    } else {
        metrics::samples(&fresh)
    };
    metrics.merge(comparisons::metrics(&fresh));
    let chosen = (schedule.max_rounds > 1).then(|| {
        let signal = fresh.iter().filter(|group| has_signal(&group.rewards()));
        let chosen: Vec<ScoredGroup> = signal.take(prompts).cloned().collect();
        let tokens = metrics::generated_tokens(&fresh);
        metrics.set("sampling/rounds", fresh.len().div_ceil(prompts) as f64);
        metrics.set("sampling/groups_kept", chosen.len() as f64);
        metrics.set("sampling/groups_dropped", (fresh.len() - chosen.len()) as f64);
        metrics.set("sampling/tokens_dropped", (tokens - metrics::generated_tokens(&chosen)) as f64);
        chosen
    });
    StepSamples { fresh, chosen, metrics }
}

/// The policy's groups and those of its opponent, which lie behind them one by one.
fn with_opponents(groups: &[ScoredGroup]) -> (Vec<ScoredGroup>, Vec<ScoredGroup>) {
    let every_second = |first: usize| groups.iter().skip(first).step_by(2).cloned().collect();
    (every_second(0), every_second(1))
}
