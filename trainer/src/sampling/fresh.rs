//! Fresh samples: asked of a collector, round after round, slice after slice of each group.
//!
//! Dynamic sampling (Q. Yu et al. 2025, DAPO, arXiv 2503.14476): a group whose rewards are all alike teaches nothing,
//! so further prompts are sampled, round by round, until as many groups carry a signal as the step has prompts. Every
//! group is kept in the store, with a signal or without; `sampling/*` says what the rounds cost.
//!
//! Methods that compare the policy with an opponent get a second group for each prompt, right behind the policy's own.

use super::{RunContext, Source, StepContext, StepRequest, StepSamples, collector};
use crate::Result;
use crate::algorithm::Schedule;
use crate::behavior::BehaviorPolicy;
use crate::collected::{Collected, duels, in_store_order};
use crate::config::CollectorConfig;
use crate::judge::comparisons;
use crate::report::metrics;
use model::Policy;
use rollout::collector::{Collector, Job, JobPosition, SamplingProgress};
use rollout::prompts::Epochs;
use schema::{GradedGroup, Group, Prompt, SamplerSettings, Seed};

/// Samples from the policy in training.
pub(crate) struct Fresh {
    collector: Box<dyn Collector>,
    /// Samples another group for each prompt, of the same size, for the policy to be compared with.
    opponent: Option<Box<dyn Collector>>,
    /// The policy in training.
    policy: Policy,
    /// The policy that samples each slice of a group.
    behavior: BehaviorPolicy,
    prompts: Epochs,
    prompts_per_step: usize,
    group_size: usize,
    settings: SamplerSettings,
    seed: Seed,
    /// Steps beyond the present one that the collector is told of.
    lookahead: u64,
    /// The last step of the run.
    last_step: u64,
}

impl Fresh {
    /// Samples for the run of `context`, from `policy` until another is published.
    ///
    /// # Errors
    /// If a collector cannot be opened or cannot take over the policy.
    pub(crate) fn open(
        context: &RunContext<'_>,
        prompts: Epochs,
        opponent: Option<Box<dyn Collector>>,
        policy: &Policy,
    ) -> Result<Self> {
        let config = context.config;
        let mut fresh = Self {
            collector: collector::open(context, policy)?,
            opponent,
            policy: policy.share(),
            behavior: BehaviorPolicy::new(config.behavior.as_ref()),
            prompts,
            prompts_per_step: config.rollout.prompts_per_step,
            group_size: config.rollout.group_size,
            settings: config.rollout.sampler(),
            seed: Seed::new(config.seed).child("rollout"),
            lookahead: config.collector.as_ref().map_or(0, CollectorConfig::lookahead),
            last_step: config.steps,
        };
        if let Some(opponent) = &mut fresh.opponent {
            opponent.publish(policy)?;
        }
        Ok(fresh)
    }

    /// Tells the collector of the steps after `step`, which it may begin with.
    fn announce(&mut self, step: u64, prompts: usize) -> Result<()> {
        for later in (step + 1..=self.last_step).take(self.lookahead as usize) {
            let mut asked = self.prompts.step(later)?;
            asked.truncate(prompts);
            let position = JobPosition { step: later, ..JobPosition::default() };
            self.collector.announce(&self.job(asked, self.group_size, self.seed.at(later), position))?;
        }
        Ok(())
    }

    fn job(&self, prompts: Vec<Prompt>, group_size: usize, seed: Seed, position: JobPosition) -> Job {
        Job { prompts, group_size, settings: self.settings.clone(), seed, position }
    }

    /// Samples one group per prompt, slice by slice, and one of the opponent behind it, if there is one.
    fn round(
        &mut self,
        prompts: &[Prompt],
        seed: &Seed,
        position: JobPosition,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Vec<Group>> {
        let slices = self.behavior.slices(self.group_size);
        let mut groups: Vec<Group> = Vec::new();
        for (slice, group_size) in (0..).zip(&slices) {
            if slice > 0 {
                let own = seed.child("behavior").at(slice);
                self.collector.publish(&self.behavior.next(&self.policy, &groups, &own)?)?;
            }
            // The first slice is sampled as the whole group would be.
            let seed = if slice == 0 { seed.clone() } else { seed.child("slice").at(slice) };
            let job = self.job(prompts.to_vec(), *group_size, seed, position);
            let sampled = self.collector.collect(job, progress)?;
            join(&mut groups, sampled);
        }
        if slices.len() > 1 {
            self.collector.publish(&self.policy)?;
        }
        let against = self.job(prompts.to_vec(), self.group_size, seed.child("opponent"), position);
        if let Some(opponent) = &mut self.opponent {
            let others = opponent.collect(against, progress)?;
            groups = in_store_order(groups, others);
        }
        Ok(groups)
    }
}

impl Source for Fresh {
    fn publish(&mut self, policy: &Policy) -> Result<()> {
        if let Some(opponent) = &mut self.opponent {
            opponent.publish(policy)?;
        }
        self.policy = policy.share();
        Ok(self.collector.publish(policy)?)
    }

    fn request(&mut self, context: &StepContext<'_>) -> Result<StepRequest> {
        Ok(StepRequest::sampled(context, self.prompts_per_step))
    }

    fn collect(
        &mut self,
        request: &StepRequest,
        round: usize,
        groups: usize,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Vec<Group>> {
        let StepRequest { step, prompts, .. } = *request;
        let (seed, number) = (self.seed.at(step), round as u64);
        let (asked, seed) = if round == 0 {
            self.announce(step, prompts)?;
            (self.prompts.step(step)?, seed)
        } else {
            (self.prompts.more(step, number)?, seed.child("more").at(number))
        };
        let position = JobPosition { step, first_group: groups, ..JobPosition::default() };
        self.round(&asked[..prompts], &seed, position, progress)
    }

    fn select(
        &mut self,
        _context: &StepContext<'_>,
        request: StepRequest,
        fresh: Vec<GradedGroup>,
    ) -> Result<StepSamples> {
        let StepRequest { step, schedule, prompts, .. } = request;
        let behavior = self.behavior.measure(&self.policy, &fresh, &self.seed.at(step).child("behavior"))?;
        let stale = staleness(&fresh, step).filter(|_| self.lookahead > 0);
        let mut samples = samples(fresh, prompts, &schedule, self.opponent.is_some());
        if let Some((mean, most)) = stale {
            samples.metrics.set("sampling/staleness_mean", mean);
            samples.metrics.set("sampling/staleness_max", most);
        }
        samples.metrics.merge(behavior);
        Ok(samples)
    }
}

/// The mean and the largest age of the groups' policies, in versions before the policy of this step.
fn staleness(groups: &[GradedGroup], step: u64) -> Option<(f64, f64)> {
    let ages: Vec<f64> =
        groups.iter().map(|group| (step - 1).saturating_sub(group.group().policy.version) as f64).collect();
    (!ages.is_empty()).then(|| (metrics::mean(&ages), ages.iter().copied().fold(0.0, f64::max)))
}

/// Adds the samples of a further slice to each group. The group keeps the version of the policy in training; the
/// log-probabilities beside the tokens are those of the policy that sampled them.
fn join(groups: &mut Vec<Group>, slice: Vec<Group>) {
    if groups.is_empty() {
        *groups = slice;
        return;
    }
    for (group, more) in groups.iter_mut().zip(slice) {
        group.samples.extend(more.samples);
    }
}

/// Selects the groups to train on from those of a step with `prompts` prompts in each round, and returns them with their
/// metrics. With `opponents`, the metrics of the policy's own samples have no prefix.
fn samples(fresh: Vec<GradedGroup>, prompts: usize, schedule: &Schedule, opponents: bool) -> StepSamples {
    let mut metrics = if opponents {
        let (own, others): (Vec<GradedGroup>, Vec<GradedGroup>) =
            duels(&fresh).map(|(own, opponent)| (own.clone(), opponent.clone())).unzip();
        let mut metrics = metrics::samples(&own);
        if let Some(reward) = metrics::samples(&others).get("reward") {
            metrics.set("opponent/reward", reward);
        }
        metrics
    } else {
        metrics::samples(&fresh)
    };
    metrics.merge(comparisons::metrics(&fresh));
    if schedule.max_rounds == 1 {
        let trained = if opponents { Collected::duels_of(&fresh) } else { Collected::Groups(fresh.clone()) };
        return StepSamples { fresh, trained, metrics };
    }
    let signal = fresh.iter().filter(|group| schedule.filter_by.has_signal(group));
    let chosen: Vec<GradedGroup> = signal.take(prompts).cloned().collect();
    let tokens = metrics::generated_tokens(&fresh);
    metrics.set("sampling/rounds", fresh.len().div_ceil(prompts) as f64);
    metrics.set("sampling/groups_kept", chosen.len() as f64);
    metrics.set("sampling/groups_dropped", (fresh.len() - chosen.len()) as f64);
    metrics.set("sampling/tokens_dropped", (tokens - metrics::generated_tokens(&chosen)) as f64);
    StepSamples { fresh, trained: Collected::Groups(chosen), metrics }
}
