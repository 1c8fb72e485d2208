//! One step's learning: units, log-probs, signals, batches, losses, updates.

mod companions;
mod mismatch;
mod update;

use crate::Result;
use crate::algorithm::{self, Algorithm, Evidence, Needs, Outputs, Schedule, StepEnd};
use crate::batch::{
    Batch, BatchRules, MicroBatchLimits, MiniBatch, Reads, SequenceLogprobs, StepData, mini_batches, per_sequence,
};
use crate::checkpoint::{Snapshot, State};
use crate::collected::{Collected, Unit};
use crate::companion::{Consults, Role};
use crate::config::Config;
use crate::distributed::Team;
use crate::objective::{KlEstimator, MetricSums, effective_sample_share, mismatch_kl};
use crate::optimizer::Update;
use crate::report::metrics;
use companions::Companions;
use mismatch::MismatchAlarm;
use model::adapter::Adapter;
use model::logprob::Want;
use model::{Critic, Policy};
use schema::{Group, Metrics, Sample, Seed};
use std::rc::Rc;
use tch::Tensor;
use update::Updates;

/// The algorithm with all that it moves: parameters, optimizer, constraints, and companions of the policy.
pub(crate) struct Learner {
    algorithm: Box<dyn Algorithm>,
    needs: Needs,
    critic: Option<Critic>,
    companions: Companions,
    updates: Updates,
    /// The sampling temperature, at which log-probs are taken.
    temperature: f64,
    limits: MicroBatchLimits,
    seed: Seed,
    mismatch: MismatchAlarm,
    /// The processes that learn together with this one.
    team: Option<Rc<Team>>,
}

impl Learner {
    /// The learner of a config, at the beginning of its run.
    ///
    /// # Errors
    /// If a setting of the algorithm, the optimizer or a constraint is out of its range.
    pub(crate) fn new(config: &Config, policy: &Policy) -> Result<Self> {
        let algorithm = algorithm::build(&config.algorithm)?;
        if let Some(warning) = algorithm.warning() {
            tracing::warn!("{warning}");
        }
        let needs = algorithm.needs();
        let critic = critic(config, &needs, policy)?;
        Ok(Self {
            updates: Updates::new(config, policy, critic.as_ref(), needs.critic)?,
            companions: Companions::new(&needs, policy, !config.model.adapter_from.is_empty()),
            // Rows of a file were sampled at no temperature.
            temperature: if needs.samples.are_sampled() { config.rollout.sampler().logprob_temperature() } else { 1.0 },
            limits: MicroBatchLimits {
                tokens: config.micro_batch_tokens,
                vocab: policy.network().dimensions().vocab,
                device: policy.device(),
            },
            seed: Seed::new(config.seed).child("minibatches"),
            mismatch: MismatchAlarm::new(config.algorithm.name()),
            team: None,
            algorithm,
            needs,
            critic,
        })
    }

    /// Learns together with other processes from now on, each of which computes a share of every update.
    pub(crate) fn join(&mut self, team: Rc<Team>) {
        self.team = Some(team);
    }

    /// The learning rule.
    pub(crate) fn algorithm(&self) -> &dyn Algorithm {
        &*self.algorithm
    }

    /// Multiplies the config's learning rate from now on.
    pub(crate) fn scale_rate(&mut self, scale: f64) {
        self.updates.scale_rate(scale);
    }

    /// Learns from the data of one step. Where no sequence has a gradient (every group's rewards are alike), nothing moves,
    /// the optimizer's momentum included. Where it is time to, ranks that have closed are cut away at the end.
    ///
    /// # Errors
    /// If the data cannot be batched, or another process is gone.
    pub(crate) fn update(&mut self, step: u64, collected: &Collected, policy: &mut Policy) -> Result<Metrics> {
        let metrics = self.learn(step, collected, policy)?;
        self.updates.prune_after(step, policy, self.critic.as_ref())?;
        Ok(metrics)
    }

    fn learn(&mut self, step: u64, collected: &Collected, policy: &Policy) -> Result<Metrics> {
        let stage = self.updates.enter_stage(step)?;
        self.algorithm.begin_step(step);
        let schedule = self.algorithm.schedule(step);
        let mut metrics = Metrics::new();
        let mut batches = self.batches(step, collected, policy, &mut metrics)?;
        self.complete_logprobs(&mut batches, &schedule, policy);
        let before_updates = self.companions.before_updates(policy);

        let planned = |steps: std::ops::Range<u64>| steps.map(|it| self.algorithm.schedule(it).updates()).sum::<u64>();
        let before = planned(stage.start..step);
        let total = before + planned(step..stage.end);
        let mut sums = MetricSums::new();
        let (mut taken, mut skipped, mut loss, mut norms, mut rate) = (0u64, 0u64, 0.0, 0.0, 0.0);
        let mut gate_gradients = Vec::new();
        'updates: for epoch in 0..schedule.epochs {
            for (index, batch) in batches.iter().enumerate() {
                if batch.micro_batches.is_empty() {
                    continue;
                }
                let mut own = MetricSums::new();
                let batch_loss = self.gradients_of(batch, &schedule, policy, &mut own)?;
                let too_far = schedule
                    .max_proximal_kl
                    .is_some_and(|limit| own.mean("proximal_kl").is_some_and(|moved| moved > limit));
                sums.merge(own);
                if too_far {
                    self.updates.forget_gradients();
                    metrics.set("updates/stopped_by_kl", 1.0);
                    break 'updates;
                }
                loss += batch_loss + self.updates.penalise(policy);
                gate_gradients.extend(self.updates.gate_gradient());
                rate = self.updates.rate(before + (epoch * schedule.minibatches + index) as u64, total);
                match self.updates.take(step, rate, policy)? {
                    Update::Taken { grad_norm } => {
                        taken += 1;
                        norms += grad_norm;
                    }
                    Update::Skipped { grad_norm } => {
                        skipped += 1;
                        tracing::warn!("step {step}: the gradient's norm is {grad_norm}; this update is skipped");
                    }
                }
            }
        }
        metrics.merge(sums.metrics());
        self.warn_of_mismatch(step, collected, &metrics, policy);
        if taken > 0 {
            metrics.set("loss", loss / (taken + skipped) as f64);
            metrics.set("grad_norm", norms / taken as f64);
            metrics.set("learning_rate", rate);
            if !gate_gradients.is_empty() {
                let sum: f64 = gate_gradients.iter().sum();
                metrics.set("adapter/gate_gradient", sum / gate_gradients.len() as f64);
            }
        }
        metrics.set("updates/taken", taken as f64);
        metrics.set("updates/skipped_not_finite", skipped as f64);
        metrics.set("tokens/trained", batches.iter().map(|batch| batch.trained_tokens).sum::<i64>() as f64);
        let computed = batches.iter().flat_map(|batch| &batch.micro_batches).map(|batch| batch.packed.target_tokens());
        metrics.set("tokens/computed", computed.sum::<usize>() as f64);
        self.companions.renew(step, before_updates, policy)?;
        metrics.merge(self.end_step(step, collected, policy)?);
        self.algorithm.finish_step(&mut metrics, collected.samples());
        Ok(metrics)
    }

    /// Loss and gradients of one optimizer batch, added up over the processes that share it.
    fn gradients_of(
        &self,
        batch: &MiniBatch,
        schedule: &Schedule,
        policy: &Policy,
        sums: &mut MetricSums,
    ) -> Result<f64> {
        let mine = |index: usize| self.team.as_ref().is_none_or(|team| team.owns(index));
        let parts = batch.micro_batches.iter().enumerate().filter(|(index, _)| mine(*index));
        let loss: f64 = parts.map(|(_, part)| self.accumulate(part, schedule, policy, sums)).sum();
        let Some(team) = &self.team else { return Ok(loss) };
        let (loss, of_all) = team.add_up(self.updates.parameters(), loss, sums)?;
        *sums = of_all;
        Ok(loss)
    }

    /// Applies the method's changes at the end of a step, and returns their metrics.
    fn end_step(&mut self, step: u64, collected: &Collected, policy: &Policy) -> Result<Metrics> {
        let loss = || Ok(self.measure(collected, policy)?.get("loss").unwrap_or_default());
        let (last_step, companions) = (self.updates.last_step(), self.companions.adapters());
        let changes = self.algorithm.end_step(&StepEnd { step, last_step, policy, companions, loss: &loss })?;
        for (role, adapter) in changes.companions {
            self.companions.set(role, adapter);
        }
        if changes.restart_optimizer {
            self.updates.restart()?;
        }
        Ok(changes.metrics)
    }

    fn warn_of_mismatch(&mut self, step: u64, collected: &Collected, metrics: &Metrics, policy: &Policy) {
        let fresh = collected.groups().iter().all(|group| group.group().policy.hash == policy.version().hash);
        let corrects = self.algorithm.schedule(step).replay.is_some();
        let mismatch = &mut self.mismatch;
        let warning = if fresh {
            mismatch.check(metrics)
        } else {
            mismatch.check_unweighted(metrics, corrects).or_else(|| mismatch.check_old(metrics))
        };
        if let Some(warning) = warning {
            tracing::warn!("step {step}: {warning}");
        }
    }

    /// Measurements of the algorithm on data that it does not learn from, by its own metrics' names and `loss`.
    ///
    /// # Errors
    /// If the data cannot be batched.
    pub(crate) fn measure(&self, collected: &Collected, policy: &Policy) -> Result<Metrics> {
        let _no_grad = tch::no_grad_guard();
        let mut metrics = Metrics::new();
        let (batches, schedule) = self.whole_batches(collected, policy, &mut metrics)?;
        let mut sums = MetricSums::new();
        let mut loss = 0.0;
        for batch in batches.iter().flat_map(|batch| &batch.micro_batches) {
            loss += self.accumulate(batch, &schedule, policy, &mut sums);
        }
        metrics.merge(sums.metrics());
        metrics.set("loss", loss / batches.len().max(1) as f64);
        Ok(metrics)
    }

    /// An estimate of KL(sampling policy ‖ the policy with `adapter`) of a whole sample, in nats, at the temperature that the
    /// samples were drawn at.
    ///
    /// # Errors
    /// If a sample cannot be packed.
    pub(crate) fn kl(&self, groups: &[Group], policy: &Policy, adapter: &Adapter) -> Result<f64> {
        let temperature = groups.first().map_or(1.0, |group| group.settings.logprob_temperature());
        let columns = per_sequence(groups, self.limits, |packed| vec![policy.logprobs(packed, temperature, adapter)])?;
        let samples = groups.iter().flat_map(|group| &group.samples);
        let ratio = |(sample, columns): (&Sample, Vec<Vec<f32>>)| -> f64 {
            let other = columns.into_iter().next().unwrap_or_default();
            sample.logprobs.iter().zip(other).map(|(own, other)| f64::from(*own) - f64::from(other)).sum()
        };
        let ratios: Vec<f64> = samples.zip(columns.into_iter().flatten()).map(ratio).collect();
        Ok(metrics::mean(&ratios))
    }

    /// Loss and gradients of a whole step, of which nothing is applied.
    #[cfg(test)]
    pub(crate) fn gradients(&self, collected: &Collected, policy: &Policy) -> (f64, Vec<Tensor>) {
        let whole = self.whole_batches(collected, policy, &mut Metrics::new());
        let (batches, schedule) = whole.expect("the samples are consistent");
        let parts = batches.iter().flat_map(|batch| &batch.micro_batches);
        let loss = parts.map(|part| self.accumulate(part, &schedule, policy, &mut MetricSums::new())).sum();
        (loss, self.updates.parameters().iter().map(|parameter| parameter.tensor.grad()).collect())
    }

    /// The batches of a single pass by the first step's schedule.
    fn whole_batches(
        &self,
        collected: &Collected,
        policy: &Policy,
        metrics: &mut Metrics,
    ) -> Result<(Vec<MiniBatch>, Schedule)> {
        let mut batches = self.batches(1, collected, policy, metrics)?;
        let schedule = Schedule { epochs: 1, minibatches: 1, ..self.algorithm.schedule(1) };
        self.complete_logprobs(&mut batches, &schedule, policy);
        Ok((batches, schedule))
    }

    /// Builds units, gives signals and cuts batches.
    fn batches(
        &self,
        step: u64,
        collected: &Collected,
        policy: &Policy,
        metrics: &mut Metrics,
    ) -> Result<Vec<MiniBatch>> {
        let (algorithm, schedule) = (&*self.algorithm, self.algorithm.schedule(step));
        let units = algorithm.units(collected);
        let logprobs = self.logprobs(&units, &schedule, policy)?;
        let logprobs = logprobs.as_deref();
        if let Some(logprobs) = logprobs {
            metrics.merge(metrics::replayed(&units, logprobs, &policy.version().hash));
        }
        let signals = algorithm.signals(&Evidence { collected, units: &units, logprobs }, metrics);
        let rules = BatchRules {
            reads: self.needs.reads,
            zero_advantage: self.needs.zero_advantage,
            minibatches: schedule.minibatches,
            shares: self.team.as_ref().map_or(1, |team| team.size()),
            trains_on: &|sequence| algorithm.trains_on(sequence),
            denominator: &|trained| algorithm.denominator(trained),
        };
        let data = StepData { units: &units, signals: &signals, logprobs };
        mini_batches(&data, &rules, self.limits, &self.seed.at(step))
    }

    /// The log-probs that are known before signals are given; `None` if none are.
    fn logprobs(
        &self,
        units: &[Unit<'_>],
        schedule: &Schedule,
        policy: &Policy,
    ) -> Result<Option<Vec<Vec<SequenceLogprobs>>>> {
        let _span = phase_span!("score");
        if self.needs.signal_reads_logprobs {
            return self.every_logprob(units, schedule, policy).map(Some);
        }
        let of_data_set = !self.needs.samples.are_sampled();
        match self.companions.consulted(Consults::Loss, schedule)[..] {
            [(Role::Reference, reference)] if of_data_set => self
                .companions
                .of_rows(units, self.limits, |packed| policy.logprobs(packed, self.temperature, reference))
                .map(Some),
            _ => Ok(None),
        }
    }

    /// Log-probs of every sequence of the step under the policy and under every companion that signals are given by.
    fn every_logprob(
        &self,
        units: &[Unit<'_>],
        schedule: &Schedule,
        policy: &Policy,
    ) -> Result<Vec<Vec<SequenceLogprobs>>> {
        let companions = self.companions.consulted(Consults::Signal, schedule);
        let found = per_sequence(units, self.limits, |packed| {
            let mut columns = match &self.critic {
                Some(critic) => {
                    let (logprobs, values) = policy.logprobs_and_values(packed, self.temperature, critic);
                    vec![logprobs, values]
                }
                None => vec![policy.logprobs(packed, self.temperature, policy.adapter())],
            };
            let others = companions.iter().map(|(_, adapter)| policy.logprobs(packed, self.temperature, adapter));
            columns.extend(others);
            columns
        })?;
        let sequence = |columns: Vec<Vec<f32>>| {
            let mut columns = columns.into_iter();
            let logprobs = columns.next().unwrap_or_default();
            let values = self.critic.as_ref().and_then(|_| columns.next()).unwrap_or_default();
            let companions = companions.iter().map(|(role, _)| *role).zip(columns).collect();
            SequenceLogprobs { policy: logprobs, companions, values }
        };
        Ok(found.into_iter().map(|unit| unit.into_iter().map(sequence).collect()).collect())
    }

    /// Fills in the log-probs that must be those of the step's beginning and are not known yet.
    fn complete_logprobs(&self, batches: &mut [MiniBatch], schedule: &Schedule, policy: &Policy) {
        if self.needs.reads == Reads::SequenceEnds {
            return;
        }
        let _no_grad = tch::no_grad_guard();
        for batch in batches.iter_mut().flat_map(|batch| &mut batch.micro_batches) {
            let logprobs = |adapter| {
                let _span = phase_span!("score");
                policy.logprobs(&batch.packed, self.temperature, adapter)
            };
            if schedule.updates() > 1 && batch.proximal_logprobs.is_none() {
                batch.proximal_logprobs = Some(logprobs(policy.adapter()));
            }
            for (role, adapter) in self.companions.consulted(Consults::Loss, schedule) {
                if batch.logprobs_of(role).is_none() {
                    let found = logprobs(adapter);
                    batch.companion_logprobs.set(role, found);
                }
            }
        }
    }

    /// Adds the gradient of one micro-batch, unless gradients are off; returns its share of the loss.
    fn accumulate(&self, batch: &Batch, schedule: &Schedule, policy: &Policy, sums: &mut MetricSums) -> f64 {
        match (self.needs.reads, &self.critic) {
            (Reads::SequenceEnds, Some(critic)) => self.accumulate_ends(batch, critic, policy, sums),
            _ => self.accumulate_tokens(batch, schedule, policy, sums),
        }
    }

    fn accumulate_ends(&self, batch: &Batch, critic: &Critic, policy: &Policy, sums: &mut MetricSums) -> f64 {
        let forward = phase_span!("forward");
        let values = policy.evaluate_values(&batch.packed, critic);
        drop(forward);
        let nothing = values.leaf.narrow(0, 0, 0);
        let outputs = Outputs { values: Some(&values.leaf), ..Outputs::of(&nothing) };
        let loss = self.algorithm.loss(batch, outputs, sums);
        if loss.requires_grad() {
            let _span = phase_span!("backward");
            values.backward(&loss);
        }
        loss.double_value(&[])
    }

    fn accumulate_tokens(&self, batch: &Batch, schedule: &Schedule, policy: &Policy, sums: &mut MetricSums) -> f64 {
        let sampled = self.needs.samples.are_sampled();
        let want = if sampled { Want::Entropy } else { Want::Fit };
        let diverging = self.companions.consulted(Consults::Divergence, schedule);
        let forward = phase_span!("forward");
        let mut evaluation = policy.evaluate(&batch.packed, self.temperature, want, self.critic.as_ref());
        for (_, adapter) in &diverging {
            policy.add_divergence(&mut evaluation, &batch.packed, adapter);
        }
        drop(forward);
        let logprobs = &evaluation.logprobs;
        // Where an opponent's samples are learned from too, it is right that its log-probs are not the policy's.
        if sampled && self.needs.samples.opponent().is_none() {
            measure_policies(batch, logprobs, sums);
        }
        if let Some(hits) = &evaluation.argmax_hit {
            sums.add_tokens("mean_token_accuracy", hits, &batch.rows);
        }
        if let Some(entropy) = &evaluation.entropy {
            sums.add_tokens("entropy", entropy, &batch.rows);
        }
        let divergences = diverging.iter().map(|(role, _)| *role).zip(&evaluation.divergences);
        let outputs = Outputs {
            logprobs,
            entropy: evaluation.entropy.as_ref(),
            values: evaluation.values.as_ref().map(|values| &values.leaf),
            divergences: divergences.map(|(role, divergence)| (role, &divergence.leaf)).collect(),
        };
        let loss = self.algorithm.loss(batch, outputs, sums);
        if loss.requires_grad() {
            let _span = phase_span!("backward");
            evaluation.backward(&loss);
        }
        loss.double_value(&[])
    }

    /// The policy that a run would end with now: the trained one, or the end of the previous iteration where the next one
    /// has just begun.
    pub(crate) fn deployed(&self, policy: &Policy) -> Policy {
        policy.with_adapter(self.companions.deployed(policy).share())
    }

    /// Everything that [`Learner::restore`] needs.
    pub(crate) fn snapshot(&self, state: &State, policy: &Policy) -> Snapshot {
        let (optimizer, moments) = self.updates.saved();
        let copies = |tensors: &mut dyn Iterator<Item = (String, &Tensor)>| {
            tensors.map(|(name, tensor)| (name, tensor.shallow_clone())).collect::<Vec<_>>()
        };
        let mut snapshot = Snapshot::new(State { algorithm: self.algorithm.state(), optimizer, ..state.clone() });
        snapshot.insert("adapter", copies(&mut policy.adapter().tensors()));
        snapshot.insert("optimizer", moments);
        if let Some(critic) = &self.critic {
            snapshot.insert("critic", copies(&mut critic.tensors()));
        }
        for (file, adapter) in self.companions.files() {
            snapshot.insert(file, copies(&mut adapter.tensors()));
        }
        snapshot
    }

    /// Takes the critic of a checkpoint over, if the algorithm has one.
    ///
    /// # Errors
    /// If the checkpoint has none, or one of other shapes.
    pub(crate) fn restore_critic(&self, snapshot: &Snapshot) -> Result<()> {
        match &self.critic {
            Some(critic) => Ok(critic.restore(snapshot.part("critic")?)?),
            None => Ok(()),
        }
    }

    /// Goes on from a checkpoint; the policy's adapter is overwritten, and shrinks to the ranks that were kept.
    ///
    /// # Errors
    /// If a part is missing, has other shapes, or is another algorithm's or optimizer's.
    pub(crate) fn restore(&mut self, mut snapshot: Snapshot, policy: &mut Policy) -> Result<State> {
        policy.adapter_mut().restore(snapshot.part("adapter")?)?;
        self.updates.collect(policy, self.critic.as_ref());
        self.restore_critic(&snapshot)?;
        self.companions.restore(&snapshot, policy)?;
        let moments = snapshot.take("optimizer")?;
        let state = snapshot.state;
        self.algorithm.restore(&state.algorithm)?;
        self.updates.restore(&state.optimizer, moments)?;
        Ok(state)
    }
}

/// The distances between the policies that sampled, began the step and are.
fn measure_policies(batch: &Batch, logprobs: &Tensor, sums: &mut MetricSums) {
    let (rows, behaviour) = (&batch.rows, batch.behaviour());
    let tokens = rows.trained_tokens() as f64;
    // What the updates of this step have moved is not a mismatch: that is `proximal_kl`.
    let began = batch.proximal_logprobs.as_ref().unwrap_or(logprobs);
    sums.add("mismatch_kl", &(mismatch_kl(began, behaviour, rows) * tokens), tokens);
    sums.add("effective_sample_share", &(effective_sample_share(logprobs, behaviour, rows) * tokens), tokens);
    if let Some(proximal) = &batch.proximal_logprobs {
        // k3 of the sampled tokens, which come from the step's first policy: KL(proximal ‖ policy).
        sums.add_tokens("proximal_kl", &KlEstimator::K3.estimate(proximal, &logprobs.detach()), rows);
    }
}

/// The critic that the algorithm asks for.
fn critic(config: &Config, needs: &Needs, policy: &Policy) -> Result<Option<Critic>> {
    let Some(needs) = needs.critic else { return Ok(None) };
    let own = || {
        let seed = Seed::new(config.seed).child("critic");
        config.model.adapter.build(policy.network().linears(), &seed, policy.device())
    };
    let adapter = needs.own_adapter.then(own).transpose()?;
    Ok(Some(Critic::new(policy.network(), adapter, policy.device())))
}

#[cfg(test)]
mod iterations;
#[cfg(test)]
mod tests;
