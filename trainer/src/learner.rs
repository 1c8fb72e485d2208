//! One step's learning: credit, batches, losses, updates.

use crate::algorithm::{self, Algorithm};
use crate::batch::{Batch, Cut, MiniBatch, mini_batches};
use crate::config::Config;
use crate::objective::{Tally, effective_sample_share, mismatch_kl};
use crate::optimizer::{self, Optimizer, OptimizerState, Parameter, Rate, Role, Update};
use crate::prox::Prox;
use crate::snapshot::{Snapshot, State};
use crate::{Error, Result};
use model::logprob::Want;
use model::{Policy, Weights};
use schema::{Metrics, ScoredGroup, Seed};
use serde_json::json;
use tch::Tensor;

/// The algorithm, the optimizer and the constraint, and the parameters that they move.
pub(crate) struct Learner {
    algorithm: Box<dyn Algorithm>,
    optimizer: Box<dyn Optimizer>,
    prox: Option<Box<dyn Prox>>,
    parameters: Vec<Parameter>,
    rate: Rate,
    max_grad_norm: f64,
    temperature: f64,
    steps: u64,
    cut: Cut,
    seed: Seed,
}

impl Learner {
    pub(crate) fn new(config: &Config, policy: &Policy) -> Result<Self> {
        let gate_scale = config.optimizer.gate_learning_rate_scale();
        let parameter = |name: String, tensor: &Tensor| {
            let gate = name.rsplit('.').next() == Some("gate");
            let (role, learning_rate_scale) = if gate { (Role::Gate, gate_scale) } else { (Role::Weight, 1.0) };
            Parameter { learning_rate_scale, ..Parameter::new(name, tensor.shallow_clone(), role) }
        };
        let parameters = policy.adapter().tensors().map(|(name, tensor)| parameter(name, tensor)).collect();
        Ok(Self {
            algorithm: algorithm::build(&config.algorithm)?,
            optimizer: config.optimizer.build()?,
            prox: config.prox.as_ref().map(crate::prox::ProxConfig::build).transpose()?,
            parameters,
            rate: config.optimizer.rate(),
            max_grad_norm: config.optimizer.max_grad_norm(),
            temperature: config.rollout.sampler().logprob_temperature(),
            steps: config.steps,
            cut: Cut {
                micro_batch_tokens: config.micro_batch_tokens,
                vocab: policy.network().dimensions().vocab,
                device: policy.device(),
            },
            seed: Seed::new(config.seed).child("minibatches"),
        })
    }

    /// Learns from the samples of one step. Where no sample has a gradient (every group's rewards are alike), nothing
    /// moves, the optimizer's momentum included.
    pub(crate) fn update(&mut self, step: u64, scored: &[ScoredGroup], policy: &Policy) -> Result<Metrics> {
        let needs = self.algorithm.needs();
        let seed = self.seed.at(step);
        let mut batches = mini_batches(scored, &*self.algorithm, self.cut, &seed)?;
        let per_step = (needs.epochs * needs.minibatches) as u64;
        self.score_anchors(&mut batches, policy);

        let mut tally = Tally::new();
        let mut metrics = Metrics::new();
        let (mut taken, mut skipped, mut loss, mut norms, mut rate) = (0u64, 0u64, 0.0, 0.0, 0.0);
        for epoch in 0..needs.epochs {
            for (index, batch) in batches.iter().enumerate() {
                if batch.micro_batches.is_empty() {
                    continue;
                }
                loss += batch.micro_batches.iter().map(|part| self.accumulate(part, policy, &mut tally)).sum::<f64>();
                let number = (step - 1) * per_step + (epoch * needs.minibatches + index) as u64;
                rate = self.rate.at(number, self.steps * per_step);
                let update = optimizer::update(&mut *self.optimizer, &mut self.parameters, rate, self.max_grad_norm)?;
                match update {
                    Update::Taken { grad_norm } => {
                        taken += 1;
                        norms += grad_norm;
                        self.constrain(rate);
                    }
                    Update::Skipped { grad_norm } => {
                        skipped += 1;
                        tracing::warn!("step {step}: the gradient's norm is {grad_norm}; this update is skipped");
                    }
                }
            }
        }
        metrics.merge(tally.metrics());
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
        Ok(metrics)
    }

    /// Fills in the log-probabilities that must be those of the step's beginning.
    fn score_anchors(&self, batches: &mut [MiniBatch], policy: &Policy) {
        let needs = self.algorithm.needs();
        let several = needs.epochs * needs.minibatches > 1;
        for batch in batches.iter_mut().flat_map(|batch| &mut batch.micro_batches) {
            let score = |weights| policy.logprobs(&batch.packed, self.temperature, weights);
            let proximal = several.then(|| score(Weights::Policy));
            let reference = needs.reference.then(|| score(Weights::Reference));
            (batch.proximal_logprobs, batch.reference_logprobs) = (proximal, reference);
        }
    }

    /// Adds the gradient of one micro-batch; returns its share of the loss.
    fn accumulate(&self, batch: &Batch, policy: &Policy, tally: &mut Tally) -> f64 {
        let evaluation = policy.evaluate(&batch.packed, self.temperature, Want::Entropy);
        let (rows, logprobs, behaviour) = (&batch.rows, &evaluation.logprobs, &batch.behaviour_logprobs);
        let tokens = rows.trained_tokens() as f64;
        tally.add("mismatch_kl", &(mismatch_kl(logprobs, behaviour, rows) * tokens), tokens);
        tally.add("effective_sample_share", &(effective_sample_share(logprobs, behaviour, rows) * tokens), tokens);
        if let Some(entropy) = &evaluation.entropy {
            tally.add_tokens("entropy", entropy, rows);
        }
        let loss = self.algorithm.loss(batch, &evaluation, tally);
        evaluation.backward(&loss);
        loss.double_value(&[])
    }

    /// Applies the constraint to every gate.
    fn constrain(&mut self, learning_rate: f64) {
        let Some(prox) = &self.prox else { return };
        let _no_grad = tch::no_grad_guard();
        for parameter in self.parameters.iter_mut().filter(|parameter| parameter.role == Role::Gate) {
            prox.apply(&mut parameter.tensor, learning_rate * parameter.learning_rate_scale);
        }
    }

    /// Everything that [`Learner::restore`] needs.
    pub(crate) fn snapshot(&self, state: &State, policy: &Policy) -> Snapshot {
        let optimizer = self.optimizer.state();
        Snapshot {
            state: State {
                algorithm: self.algorithm.state(),
                optimizer: json!({ "rule": optimizer.rule, "scalars": optimizer.scalars }),
                ..state.clone()
            },
            adapter: policy.adapter().tensors().map(|(name, tensor)| (name, tensor.shallow_clone())).collect(),
            optimizer: optimizer.tensors,
        }
    }

    /// Goes on from a checkpoint; the policy's adapter is overwritten in place.
    pub(crate) fn restore(&mut self, snapshot: Snapshot, policy: &Policy) -> Result<State> {
        let Snapshot { state, adapter, optimizer: tensors } = snapshot;
        policy.adapter().restore(&adapter)?;
        self.algorithm.restore(&state.algorithm)?;
        let scalars = serde_json::from_value(state.optimizer["scalars"].clone())
            .map_err(|error| Error::input(format!("the checkpoint's optimizer state cannot be read: {error}")))?;
        let rule = state.optimizer["rule"].as_str().unwrap_or_default().to_owned();
        self.optimizer.restore(OptimizerState { rule, scalars, tensors })?;
        Ok(state)
    }
}
