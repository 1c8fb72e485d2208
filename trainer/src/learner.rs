//! One step's learning: scores, credit, batches, losses, updates.

mod iterate;
mod mismatch;
mod references;

use crate::algorithm::{
    self, Algorithm, Credits, Divergences, Evidence, Outputs, Reads, SampleScores, Samples, Schedule,
};
use crate::batch::{Batch, Cut, Material, MiniBatch, mini_batches, score_samples};
use crate::checkpoint::restore::{HAT, REFERENCE};
use crate::checkpoint::{Snapshot, State};
use crate::config::Config;
use crate::distributed::Team;
use crate::objective::{KlEstimator, MetricSums, effective_sample_share, mismatch_kl};
use crate::optimizer::{self, Kept, Optimizer, OptimizerConfig, OptimizerState, Parameter, Role, Update};
use crate::prox::{Constraints, RunExtent, UpdateContext};
use crate::report::metrics;
use crate::{Error, Result};
use iterate::{Average, Progress};
use mismatch::MismatchAlarm;
use model::adapter::{Adapter, LowRank};
use model::logprob::Want;
use model::{Critic, Policy};
use references::References;
use schema::{GradedGroup, Group, Metrics, Sample, Seed, Verdict};
use serde_json::json;
use std::ops::Range;
use std::rc::Rc;
use tch::Tensor;

/// The file of a checkpoint that holds the policy of one step earlier.
const PREVIOUS: &str = "previous";

/// The algorithm, the optimizer and the constraint, and the parameters that they move.
pub(crate) struct Learner {
    algorithm: Box<dyn Algorithm>,
    critic: Option<Critic>,
    /// The reference policy's adapter: none, for the untouched network, or a copy of the one that training, or its
    /// present iteration, began with.
    reference: Adapter,
    references: References,
    iterations: Option<Progress>,
    anchor: Option<Average>,
    /// The policy's adapter as it was before the last step's updates, where the algorithm needs it.
    previous: Adapter,
    optimizer: Box<dyn Optimizer>,
    update_rule: OptimizerConfig,
    constraints: Option<Constraints>,
    /// Closed ranks are cut away after every this many steps; 0 for never.
    prune_every: u64,
    parameters: Vec<Parameter>,
    /// Multiplies every learning rate; below 1 after a roll-back.
    rate_scale: f64,
    temperature: f64,
    steps: u64,
    cut: Cut,
    seed: Seed,
    mismatch: MismatchAlarm,
    /// The processes that learn together with this one.
    team: Option<Rc<Team>>,
}

impl Learner {
    pub(crate) fn new(config: &Config, policy: &Policy) -> Result<Self> {
        let algorithm = algorithm::build(&config.algorithm)?;
        let critic = critic(config, &*algorithm, policy)?;
        let needs = algorithm.needs();
        let setting = RunExtent::new(&config.optimizer, config.steps, policy.adapter().ranks());
        Ok(Self {
            parameters: parameters(&config.optimizer, &*algorithm, policy, critic.as_ref()),
            algorithm,
            critic,
            reference: if config.model.adapter_from.is_empty() && needs.iterations.is_none() {
                Adapter::none()
            } else {
                policy.adapter().copy()
            },
            iterations: needs.iterations.map(|needs| Progress::new(needs, policy, &config.optimizer)),
            anchor: needs.anchor.map(|follows| Average::new(policy, follows)),
            previous: if needs.previous { policy.adapter().copy() } else { Adapter::none() },
            references: References::default(),
            optimizer: config.optimizer.build()?,
            rate_scale: 1.0,
            // What is read from a file was drawn at no temperature.
            temperature: match needs.samples {
                Samples::Drawn { .. } => config.rollout.sampler().logprob_temperature(),
                Samples::Demonstrations | Samples::Pairs => 1.0,
            },
            update_rule: config.optimizer.clone(),
            constraints: config.prox.as_ref().map(|prox| prox.build(setting)).transpose()?,
            prune_every: config.prune.every,
            steps: config.steps,
            cut: Cut {
                micro_batch_tokens: config.micro_batch_tokens,
                vocab: policy.network().dimensions().vocab,
                device: policy.device(),
            },
            seed: Seed::new(config.seed).child("minibatches"),
            mismatch: MismatchAlarm::new(config.algorithm.name()),
            team: None,
        })
    }

    /// Learns together with other processes from now on, each of which computes a share of every update.
    pub(crate) fn join(&mut self, team: Rc<Team>) {
        self.team = Some(team);
    }

    /// The rule that it learns by.
    pub(crate) fn algorithm(&self) -> &dyn Algorithm {
        &*self.algorithm
    }

    /// Multiplies the config's learning rate from now on.
    pub(crate) fn scale_rate(&mut self, scale: f64) {
        self.rate_scale = scale;
    }

    /// Learns from the samples of one step. Where no sample has a gradient (every group's rewards are alike), nothing
    /// moves, the optimizer's momentum included. Where it is time to, ranks that have closed are cut away at the end.
    pub(crate) fn update(&mut self, step: u64, groups: &[GradedGroup], policy: &mut Policy) -> Result<Metrics> {
        let metrics = self.learn(step, groups, policy)?;
        if self.prune_every > 0 && step.is_multiple_of(self.prune_every) {
            self.prune(policy)?;
        }
        Ok(metrics)
    }

    fn learn(&mut self, step: u64, groups: &[GradedGroup], policy: &Policy) -> Result<Metrics> {
        let stage = self.enter_stage(step)?;
        let rate_of = self.update_rule.rate();
        let schedule = self.algorithm.schedule(step);
        let mut metrics = Metrics::new();
        let mut batches = self.batches(step, groups, policy, &mut metrics)?;
        self.score_anchors(&mut batches, &schedule, policy);
        let began = self.algorithm.needs().previous.then(|| policy.adapter().copy());

        let updates = |steps: Range<u64>| steps.map(|step| self.algorithm.schedule(step).updates()).sum::<u64>();
        let before = updates(stage.start..step);
        let total = before + updates(step..stage.end);
        let mut tally = MetricSums::new();
        let (mut taken, mut skipped, mut loss, mut norms, mut rate) = (0u64, 0u64, 0.0, 0.0, 0.0);
        'updates: for epoch in 0..schedule.epochs {
            for (index, batch) in batches.iter().enumerate() {
                if batch.micro_batches.is_empty() {
                    continue;
                }
                let mut own = MetricSums::new();
                let mine = |place: usize| self.team.as_ref().is_none_or(|team| team.owns(place));
                let parts = batch.micro_batches.iter().enumerate().filter(|(place, _)| mine(*place));
                let mut batch_loss: f64 =
                    parts.map(|(_, part)| self.accumulate(part, &schedule, policy, &mut own)).sum();
                if let Some(team) = &self.team {
                    (batch_loss, own) = team.add_up(&self.parameters, batch_loss, &own)?;
                }
                let too_far = schedule
                    .max_proximal_kl
                    .is_some_and(|limit| own.mean("proximal_kl").is_some_and(|moved| moved > limit));
                tally.merge(own);
                if too_far {
                    self.forget_gradients();
                    metrics.set("updates/stopped_by_kl", 1.0);
                    break 'updates;
                }
                loss += batch_loss + self.penalise(policy);
                let number = before + (epoch * schedule.minibatches + index) as u64;
                rate = self.rate_scale * rate_of.at(number, total);
                let max_grad_norm = self.update_rule.max_grad_norm();
                let _span = phase_span!("optimizer");
                match optimizer::update(&mut *self.optimizer, &mut self.parameters, rate, max_grad_norm)? {
                    Update::Taken { grad_norm } => {
                        taken += 1;
                        norms += grad_norm;
                        self.constrain(step, rate, policy);
                    }
                    Update::Skipped { grad_norm } => {
                        skipped += 1;
                        tracing::warn!("step {step}: the gradient's norm is {grad_norm}; this update is skipped");
                    }
                }
            }
        }
        self.previous = began.unwrap_or_default();
        if schedule.renew_reference {
            self.reference = policy.adapter().copy();
        }
        metrics.merge(tally.metrics());
        let fresh = groups.iter().all(|group| group.group().policy.hash == policy.version().hash);
        let warning = if fresh { self.mismatch.check(&metrics) } else { self.mismatch.check_old(&metrics) };
        if let Some(warning) = warning {
            tracing::warn!("step {step}: {warning}");
        }
        if taken > 0 {
            metrics.set("loss", loss / (taken + skipped) as f64);
            metrics.set("grad_norm", norms / taken as f64);
            metrics.set("learning_rate", rate);
        }
        metrics.set("updates/taken", taken as f64);
        metrics.set("updates/skipped_not_finite", skipped as f64);
        metrics.set("tokens/trained", batches.iter().map(|batch| batch.trained_tokens).sum::<i64>() as f64);
        let computed = batches.iter().flat_map(|batch| &batch.micro_batches).map(|batch| batch.packed.scored_tokens());
        metrics.set("tokens/computed", computed.sum::<usize>() as f64);
        let samples = groups.iter().map(|group| group.group().samples.len()).sum();
        self.algorithm.finish_step(&mut metrics, samples);
        if let Some(anchor) = &self.anchor {
            anchor.follow(step, policy)?;
        }
        metrics.merge(self.end_iteration(step, groups, policy)?);
        Ok(metrics)
    }

    /// What the algorithm measures on samples that it does not learn from, by its own metrics' names and `loss`.
    pub(crate) fn measure(&self, groups: &[GradedGroup], policy: &Policy) -> Result<Metrics> {
        let _no_grad = tch::no_grad_guard();
        let mut metrics = Metrics::new();
        let mut batches = self.batches(1, groups, policy, &mut metrics)?;
        let schedule = Schedule { epochs: 1, minibatches: 1, ..self.algorithm.schedule(1) };
        self.score_anchors(&mut batches, &schedule, policy);
        let mut tally = MetricSums::new();
        let mut loss = 0.0;
        for batch in batches.iter().flat_map(|batch| &batch.micro_batches) {
            loss += self.accumulate(batch, &schedule, policy, &mut tally);
        }
        metrics.merge(tally.metrics());
        metrics.set("loss", loss / batches.len().max(1) as f64);
        Ok(metrics)
    }

    /// An estimate of KL(who drew the samples ‖ the policy with `adapter`) of a whole sample, in nats, at the temperature
    /// that they were drawn at.
    pub(crate) fn kl(&self, groups: &[Group], policy: &Policy, adapter: &Adapter) -> Result<f64> {
        let temperature = groups.first().map_or(1.0, |group| group.settings.logprob_temperature());
        let bare = |group: &Group| {
            let verdicts = vec![Verdict::default(); group.samples.len()];
            GradedGroup::new(group.clone(), verdicts).map_err(|error| Error::runtime(error.to_string()))
        };
        let groups: Vec<GradedGroup> = groups.iter().map(bare).collect::<Result<_>>()?;
        let scores = score_samples(&groups, self.cut, |packed| vec![policy.logprobs(packed, temperature, adapter)])?;
        let samples = groups.iter().flat_map(|group| &group.group().samples);
        let ratio = |(sample, columns): (&Sample, Vec<Vec<f32>>)| -> f64 {
            let other = columns.into_iter().next().unwrap_or_default();
            sample.logprobs.iter().zip(other).map(|(own, other)| f64::from(*own) - f64::from(other)).sum()
        };
        let ratios: Vec<f64> = samples.zip(scores.into_iter().flatten()).map(ratio).collect();
        Ok(metrics::mean(&ratios))
    }

    /// Loss and gradients of a whole step, of which nothing is applied.
    #[cfg(test)]
    pub(crate) fn gradients(&self, groups: &[GradedGroup], policy: &Policy) -> (f64, Vec<Tensor>) {
        let mut batches = self.batches(1, groups, policy, &mut Metrics::new()).expect("the samples are consistent");
        let schedule = Schedule { epochs: 1, minibatches: 1, ..self.algorithm.schedule(1) };
        self.score_anchors(&mut batches, &schedule, policy);
        let parts = batches.iter().flat_map(|batch| &batch.micro_batches);
        let loss = parts.map(|part| self.accumulate(part, &schedule, policy, &mut MetricSums::new())).sum();
        (loss, self.parameters.iter().map(|parameter| parameter.tensor.grad()).collect())
    }

    /// Gives credit and cuts batches.
    fn batches(
        &self,
        step: u64,
        groups: &[GradedGroup],
        policy: &Policy,
        metrics: &mut Metrics,
    ) -> Result<Vec<MiniBatch>> {
        let arranged = self.algorithm.arrange(groups);
        let groups = arranged.as_deref().unwrap_or(groups);
        let needs = self.algorithm.needs();
        let scores = match needs.samples {
            _ if needs.scored_credit => Some(self.score(groups, policy)?),
            Samples::Pairs | Samples::Demonstrations if needs.reference => {
                Some(self.references.scores(groups, self.cut, |packed| {
                    let _span = phase_span!("score");
                    policy.logprobs(packed, self.temperature, &self.reference)
                })?)
            }
            _ => None,
        };
        let scores = scores.as_deref();
        if let Some(scores) = scores {
            metrics.merge(metrics::replayed(groups, scores, &policy.version().hash));
        }
        let credits: Credits = self.algorithm.credit(&Evidence { groups, scores }, metrics);
        let material = Material { groups, credits: &credits, scores };
        let (schedule, seed) = (self.algorithm.schedule(step), self.seed.at(step));
        let shares = self.team.as_ref().map_or(1, |team| team.size());
        mini_batches(&material, &*self.algorithm, &schedule, self.cut, shares, &seed)
    }

    /// Scores every sample of the step under every policy that the algorithm asks for.
    fn score(&self, groups: &[GradedGroup], policy: &Policy) -> Result<Vec<Vec<SampleScores>>> {
        let _span = phase_span!("score");
        let reference = self.algorithm.needs().reference;
        let scores = score_samples(groups, self.cut, |packed| {
            let mut columns = match &self.critic {
                Some(critic) => {
                    let (logprobs, values) = policy.logprobs_and_values(packed, self.temperature, critic);
                    vec![logprobs, values]
                }
                None => vec![policy.logprobs(packed, self.temperature, policy.adapter())],
            };
            if reference {
                columns.push(policy.logprobs(packed, self.temperature, &self.reference));
            }
            if let Some(anchor) = &self.anchor {
                columns.push(policy.logprobs(packed, self.temperature, &anchor.adapter));
            }
            columns
        })?;
        let sample = |columns: Vec<Vec<f32>>| {
            let mut columns = columns.into_iter();
            let logprobs = columns.next().unwrap_or_default();
            let values = self.critic.as_ref().and_then(|_| columns.next()).unwrap_or_default();
            let reference = if reference { columns.next().unwrap_or_default() } else { Vec::new() };
            SampleScores { logprobs, values, reference, anchor: columns.next().unwrap_or_default() }
        };
        Ok(scores.into_iter().map(|group| group.into_iter().map(sample).collect()).collect())
    }

    /// Fills in the log-probabilities that must be those of the step's beginning and are not known yet.
    fn score_anchors(&self, batches: &mut [MiniBatch], schedule: &Schedule, policy: &Policy) {
        let needs = self.algorithm.needs();
        if needs.reads == Reads::Ends {
            return;
        }
        for batch in batches.iter_mut().flat_map(|batch| &mut batch.micro_batches) {
            let score = |adapter| {
                let _span = phase_span!("score");
                policy.logprobs(&batch.packed, self.temperature, adapter)
            };
            if schedule.updates() > 1 && batch.proximal_logprobs.is_none() {
                batch.proximal_logprobs = Some(score(policy.adapter()));
            }
            if needs.reference && batch.reference_logprobs.is_none() {
                batch.reference_logprobs = Some(score(&self.reference));
            }
            if let Some(anchor) = self.anchor.as_ref().filter(|_| batch.anchor_logprobs.is_none()) {
                batch.anchor_logprobs = Some(score(&anchor.adapter));
            }
            if schedule.score_previous && needs.divergences == Divergences::OfDraws {
                batch.previous_logprobs = Some(score(&self.previous));
            }
        }
    }

    /// Adds the gradient of one micro-batch, unless gradients are off; returns its share of the loss.
    fn accumulate(&self, batch: &Batch, schedule: &Schedule, policy: &Policy, tally: &mut MetricSums) -> f64 {
        let needs = self.algorithm.needs();
        if let (Reads::Ends, Some(critic)) = (needs.reads, &self.critic) {
            let forward = phase_span!("forward");
            let values = policy.evaluate_values(&batch.packed, critic);
            drop(forward);
            let nothing = values.leaf.narrow(0, 0, 0);
            let outputs = Outputs { values: Some(&values.leaf), ..Outputs::of(&nothing) };
            let loss = self.algorithm.loss(batch, outputs, tally);
            if loss.requires_grad() {
                let _span = phase_span!("backward");
                values.backward(&loss);
            }
            return loss.double_value(&[]);
        }
        let drawn = matches!(needs.samples, Samples::Drawn { .. });
        let want = if drawn { Want::Entropy } else { Want::Fit };
        let forward = phase_span!("forward");
        let mut evaluation = policy.evaluate(&batch.packed, self.temperature, want, self.critic.as_ref());
        if needs.divergences == Divergences::Exact {
            let others = std::iter::once(&self.reference).chain(schedule.score_previous.then_some(&self.previous));
            others.for_each(|adapter| policy.add_divergence(&mut evaluation, &batch.packed, adapter));
        }
        drop(forward);
        let logprobs = &evaluation.logprobs;
        // Where an opponent's samples are learned from too, nothing is wrong if its log-probabilities are not the policy's.
        if drawn && needs.opponent.is_none() {
            tally_policies(batch, logprobs, tally);
        }
        if let Some(hits) = &evaluation.argmax_hit {
            tally.add_tokens("mean_token_accuracy", hits, &batch.rows);
        }
        if let Some(entropy) = &evaluation.entropy {
            tally.add_tokens("entropy", entropy, &batch.rows);
        }
        let outputs = Outputs {
            logprobs,
            entropy: evaluation.entropy.as_ref(),
            values: evaluation.values.as_ref().map(|values| &values.leaf),
            reference_kl: evaluation.divergences.first().map(|divergence| &divergence.leaf),
            previous_kl: evaluation.divergences.get(1).map(|divergence| &divergence.leaf),
        };
        let loss = self.algorithm.loss(batch, outputs, tally);
        if loss.requires_grad() {
            let _span = phase_span!("backward");
            evaluation.backward(&loss);
        }
        loss.double_value(&[])
    }

    fn forget_gradients(&mut self) {
        for parameter in &mut self.parameters {
            parameter.tensor.zero_grad();
        }
    }

    /// The steps that share this one's optimizer and learning-rate schedule. Where they begin, both begin afresh.
    fn enter_stage(&mut self, step: u64) -> Result<Range<u64>> {
        let Some(constraints) = &self.constraints else { return Ok(1..self.steps + 1) };
        let stage = constraints.stage_steps(step, self.steps);
        if stage.start == step && step > 1 {
            self.optimizer = self.update_rule.build()?;
        }
        Ok(stage)
    }

    /// Adds the gradient of what the constraints add to the loss, once per update; returns it.
    fn penalise(&self, policy: &Policy) -> f64 {
        let Some(penalty) = self.constraints.as_ref().and_then(|it| it.loss(&layers(policy))) else { return 0.0 };
        penalty.backward();
        penalty.double_value(&[])
    }

    /// Applies the constraints to the policy's gates. A critic's own adapter is left alone: it is not what is deployed.
    fn constrain(&self, step: u64, learning_rate: f64, policy: &Policy) {
        let Some(constraints) = &self.constraints else { return };
        let learning_rate = learning_rate * self.update_rule.gate_learning_rate_scale();
        constraints.apply(&layers(policy), UpdateContext { learning_rate, step, steps: self.steps });
    }

    /// Cuts closed ranks out of the policy, and what the optimizer remembers of them.
    fn prune(&mut self, policy: &mut Policy) -> Result<()> {
        let cuts = policy.adapter_mut().prune();
        if cuts.is_empty() {
            return Ok(());
        }
        let shape = |name: &str| {
            self.parameters.iter().find(|parameter| parameter.name == name).map(|parameter| parameter.tensor.size())
        };
        let kept: Vec<Kept> = cuts
            .iter()
            .flat_map(|cut| cut.axes().map(|(name, axis)| (name, axis, cut.kept.shallow_clone())))
            .filter_map(|(name, axis, indices)| Some(Kept { shape: shape(&name)?, name, axis, indices }))
            .collect();
        self.optimizer.prune(&kept)?;
        self.parameters = parameters(&self.update_rule, &*self.algorithm, policy, self.critic.as_ref());
        Ok(())
    }

    /// Everything that [`Learner::restore`] needs.
    pub(crate) fn snapshot(&self, state: &State, policy: &Policy) -> Snapshot {
        let optimizer = self.optimizer.state();
        let copies = |tensors: &mut dyn Iterator<Item = (String, &Tensor)>| {
            tensors.map(|(name, tensor)| (name, tensor.shallow_clone())).collect::<Vec<_>>()
        };
        let mut snapshot = Snapshot::new(State {
            algorithm: self.algorithm.state(),
            optimizer: json!({ "rule": optimizer.rule, "scalars": optimizer.scalars }),
            ..state.clone()
        });
        snapshot.insert("adapter", copies(&mut policy.adapter().tensors()));
        snapshot.insert("optimizer", optimizer.tensors);
        if let Some(critic) = &self.critic {
            snapshot.insert("critic", copies(&mut critic.tensors()));
        }
        for (name, adapter) in [(REFERENCE, &self.reference), (PREVIOUS, &self.previous)] {
            if adapter.layers().next().is_some() {
                snapshot.insert(name, copies(&mut adapter.tensors()));
            }
        }
        for (part, adapter) in self.companions() {
            snapshot.insert(part, copies(&mut adapter.tensors()));
        }
        snapshot
    }

    /// The adapters that move beside the policy's, and the parts of a checkpoint that hold them.
    fn companions(&self) -> impl Iterator<Item = (&'static str, &Adapter)> {
        let hat = self.iterations.as_ref().map(|progress| (HAT, &progress.hat));
        hat.into_iter().chain(self.anchor.as_ref().map(|anchor| ("anchor", &anchor.adapter)))
    }

    fn companions_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Adapter)> {
        let hat = self.iterations.as_mut().map(|progress| (HAT, &mut progress.hat));
        hat.into_iter().chain(self.anchor.as_mut().map(|anchor| ("anchor", &mut anchor.adapter)))
    }

    /// Takes the critic of a checkpoint over, if the algorithm has one.
    pub(crate) fn restore_critic(&self, snapshot: &Snapshot) -> Result<()> {
        match &self.critic {
            Some(critic) => Ok(critic.restore(snapshot.part("critic")?)?),
            None => Ok(()),
        }
    }

    /// Goes on from a checkpoint; the policy's adapter is overwritten, and shrinks to the ranks that were kept.
    pub(crate) fn restore(&mut self, mut snapshot: Snapshot, policy: &mut Policy) -> Result<State> {
        policy.adapter_mut().restore(snapshot.part("adapter")?)?;
        self.parameters = parameters(&self.update_rule, &*self.algorithm, policy, self.critic.as_ref());
        self.restore_critic(&snapshot)?;
        if self.algorithm.needs().previous {
            self.previous = policy.adapter().copy();
            self.previous.restore(snapshot.part(PREVIOUS)?)?;
        }
        if let Ok(tensors) = snapshot.part(REFERENCE) {
            self.reference = policy.adapter().copy();
            self.reference.restore(tensors)?;
        }
        for (part, adapter) in self.companions_mut() {
            adapter.restore(snapshot.part(part)?)?;
        }
        let tensors = snapshot.take("optimizer")?;
        let state = snapshot.state;
        self.algorithm.restore(&state.algorithm)?;
        let scalars = serde_json::from_value(state.optimizer["scalars"].clone())
            .map_err(|error| Error::input(format!("the checkpoint's optimizer state cannot be read: {error}")))?;
        let rule = state.optimizer["rule"].as_str().unwrap_or_default().to_owned();
        self.optimizer.restore(OptimizerState { rule, scalars, tensors })?;
        Ok(state)
    }
}

fn layers(policy: &Policy) -> Vec<&LowRank> {
    policy.adapter().layers().collect()
}

/// How far the policies that drew, began and are, lie apart.
fn tally_policies(batch: &Batch, logprobs: &Tensor, tally: &mut MetricSums) {
    let (rows, behaviour) = (&batch.rows, &batch.behaviour_logprobs);
    let tokens = rows.trained_tokens() as f64;
    // What the updates of this step have moved is not a mismatch: that is `proximal_kl`.
    let began = batch.proximal_logprobs.as_ref().unwrap_or(logprobs);
    tally.add("mismatch_kl", &(mismatch_kl(began, behaviour, rows) * tokens), tokens);
    tally.add("effective_sample_share", &(effective_sample_share(logprobs, behaviour, rows) * tokens), tokens);
    if let Some(proximal) = &batch.proximal_logprobs {
        // k3 of the drawn tokens, which come from the step's first policy: KL(proximal ‖ policy).
        tally.add_tokens("proximal_kl", &KlEstimator::K3.estimate(proximal, &logprobs.detach()), rows);
    }
}

/// The critic that the algorithm asks for.
fn critic(config: &Config, algorithm: &dyn Algorithm, policy: &Policy) -> Result<Option<Critic>> {
    let Some(needs) = algorithm.needs().critic else { return Ok(None) };
    let own = || {
        let seed = Seed::new(config.seed).child("critic");
        config.model.adapter.build(policy.network().linears(), &seed, policy.device())
    };
    let adapter = needs.own_adapter.then(own).transpose()?;
    Ok(Some(Critic::new(policy.network(), adapter, policy.device())))
}

/// Everything that is trained: the adapter, and the critic where there is one.
fn parameters(
    update_rule: &OptimizerConfig,
    algorithm: &dyn Algorithm,
    policy: &Policy,
    critic: Option<&Critic>,
) -> Vec<Parameter> {
    let gate_scale = update_rule.gate_learning_rate_scale();
    let parameter = |name: String, tensor: &Tensor, scale: f64| {
        let gate = name.rsplit('.').next() == Some("gate");
        let (role, own_scale) = if gate { (Role::Gate, gate_scale) } else { (Role::Weight, 1.0) };
        Parameter { learning_rate_scale: scale * own_scale, ..Parameter::new(name, tensor.shallow_clone(), role) }
    };
    let critic_scale = algorithm.needs().critic.map_or(1.0, |needs| needs.learning_rate_scale);
    let adapter = policy.adapter().tensors().map(|(name, tensor)| parameter(name, tensor, 1.0));
    let critic =
        critic.into_iter().flat_map(Critic::tensors).map(|(name, tensor)| parameter(name, tensor, critic_scale));
    adapter.chain(critic).collect()
}

#[cfg(test)]
mod tests;
