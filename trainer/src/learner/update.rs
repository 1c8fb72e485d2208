//! The moving parts of an update: parameters, optimizer, learning rate, constraints and pruning.

use crate::algorithm::CriticNeeds;
use crate::config::Config;
use crate::optimizer::{self, Kept, Optimizer, OptimizerConfig, OptimizerState, Parameter, Update};
use crate::prox::{Constraints, RunExtent, UpdateContext};
use crate::{Error, Result};
use model::adapter::LowRank;
use model::{Critic, Policy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Kind, Tensor};

/// The optimizer and the constraints, and the parameters that they move.
pub(super) struct Updates {
    optimizer: Box<dyn Optimizer>,
    rule: OptimizerConfig,
    constraints: Option<Constraints>,
    /// Closed ranks are cut away after every this many steps; 0 for never.
    prune_every: u64,
    parameters: Vec<Parameter>,
    /// Multiplies the learning rates of the critic's tensors.
    critic_scale: f64,
    /// Multiplies every learning rate; below 1 after a roll-back.
    rate_scale: f64,
    /// The last step of the run.
    last_step: u64,
}

impl Updates {
    /// The optimizer and the constraints of a config, over the tensors of policy and critic.
    ///
    /// # Errors
    /// If a setting of the optimizer or of a constraint is out of its range.
    pub(super) fn new(
        config: &Config,
        policy: &Policy,
        critic: Option<&Critic>,
        needs: Option<CriticNeeds>,
    ) -> Result<Self> {
        let extent = RunExtent::new(&config.optimizer, config.steps, policy.adapter().ranks());
        if let Some(prox) = &config.prox
            && let Some(warning) = prox.warning(config.optimizer.gate_rule(), extent.learning_rate)?
        {
            tracing::warn!("{warning}");
        }
        let critic_scale = needs.map_or(1.0, |needs| needs.learning_rate_scale);
        Ok(Self {
            optimizer: config.optimizer.build()?,
            rule: config.optimizer.clone(),
            constraints: config.prox.as_ref().map(|prox| prox.build(extent)).transpose()?,
            prune_every: config.prune.every,
            parameters: parameters(&config.optimizer, policy, critic, critic_scale),
            critic_scale,
            rate_scale: 1.0,
            last_step: config.steps,
        })
    }

    pub(super) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The last step of the run.
    pub(super) fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Multiplies the config's learning rate from now on.
    pub(super) fn scale_rate(&mut self, scale: f64) {
        self.rate_scale = scale;
    }

    /// The learning rate of the `number`-th of `total` updates.
    pub(super) fn rate(&self, number: u64, total: u64) -> f64 {
        self.rate_scale * self.rule.rate().at(number, total)
    }

    /// The steps that share this one's optimizer and learning-rate schedule. Where they begin, both begin afresh.
    ///
    /// # Errors
    /// If the optimizer cannot be built.
    pub(super) fn enter_stage(&mut self, step: u64) -> Result<Range<u64>> {
        let Some(constraints) = &self.constraints else { return Ok(1..self.last_step + 1) };
        let stage = constraints.stage_steps(step, self.last_step);
        if stage.start == step && step > 1 {
            self.restart()?;
        }
        Ok(stage)
    }

    /// Makes the optimizer forget its moments.
    ///
    /// # Errors
    /// If the optimizer cannot be built.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.optimizer = self.rule.build()?;
        Ok(())
    }

    /// Moves the parameters by their gradients, and applies the constraints.
    ///
    /// # Errors
    /// If a parameter has changed its shape, or is not finite afterwards.
    pub(super) fn take(&mut self, step: u64, rate: f64, policy: &Policy) -> Result<Update> {
        let _span = phase_span!("optimizer");
        let max_grad_norm = self.rule.max_grad_norm();
        let update = optimizer::update(&mut *self.optimizer, &mut self.parameters, rate, max_grad_norm)?;
        if matches!(update, Update::Taken { .. }) {
            self.constrain(step, rate, policy);
            self.check_finite(step, rate)?;
        }
        Ok(update)
    }

    /// Root mean square of the gates' gradients, which is what one unit of a penalty's threshold
    /// stands for; `None` without gates.
    pub(super) fn gate_gradient(&self) -> Option<f64> {
        let _no_grad = tch::no_grad_guard();
        let gates = self.parameters.iter().filter(|it| it.role == optimizer::Role::Gate && it.tensor.numel() > 0);
        let squares: Vec<(Tensor, usize)> =
            gates.map(|it| (it.gradient().square().sum(Kind::Double), it.tensor.numel())).collect();
        let entries: usize = squares.iter().map(|(_, entries)| entries).sum();
        let squares: Vec<Tensor> = squares.into_iter().map(|(square, _)| square).collect();
        let all = || Tensor::stack(&squares, 0).sum(Kind::Double).double_value(&[]);
        (entries > 0).then(|| (all() / entries as f64).sqrt())
    }

    /// Names the first parameter that an update has made NaN or infinite.
    fn check_finite(&self, step: u64, rate: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let sums: Vec<Tensor> = self.parameters.iter().map(|it| it.tensor.sum(Kind::Double)).collect();
        if sums.is_empty() || Tensor::stack(&sums, 0).isfinite().all().int64_value(&[]) == 1 {
            return Ok(());
        }
        let broken = self.parameters.iter().zip(sums).find(|(_, sum)| !sum.double_value(&[]).is_finite());
        let name = broken.map_or("", |(parameter, _)| parameter.name.as_str());
        Err(Error::runtime(format!(
            "the update of step {step} made `{name}` NaN or infinite, so nothing of it is saved; lower the learning rate, which is {rate:e}, or raise the optimizer's eps, and go on from the last checkpoint with --resume"
        )))
    }

    pub(super) fn forget_gradients(&mut self) {
        for parameter in &mut self.parameters {
            parameter.tensor.zero_grad();
        }
    }

    /// Adds the gradient of what the constraints add to the loss, once per update; returns it.
    pub(super) fn penalise(&self, policy: &Policy) -> f64 {
        let Some(penalty) = self.constraints.as_ref().and_then(|it| it.loss(&layers(policy))) else { return 0.0 };
        penalty.backward();
        penalty.double_value(&[])
    }

    /// Applies the constraints to the policy's gates. A critic's own adapter is left alone: it is not what is deployed.
    fn constrain(&self, step: u64, learning_rate: f64, policy: &Policy) {
        let Some(constraints) = &self.constraints else { return };
        let learning_rate = learning_rate * self.rule.gate_learning_rate_scale();
        constraints.apply(&layers(policy), UpdateContext { learning_rate, step, steps: self.last_step });
    }

    /// Cuts closed ranks away, if it is time to after this step.
    ///
    /// # Errors
    /// If the optimizer's moments do not fit the parameters.
    pub(super) fn prune_after(&mut self, step: u64, policy: &mut Policy, critic: Option<&Critic>) -> Result<()> {
        if self.prune_every > 0 && step.is_multiple_of(self.prune_every) {
            self.prune(policy, critic)?;
        }
        Ok(())
    }

    /// Cuts closed ranks out of the policy, and what the optimizer remembers of them.
    ///
    /// # Errors
    /// If the optimizer's moments do not fit the parameters.
    pub(super) fn prune(&mut self, policy: &mut Policy, critic: Option<&Critic>) -> Result<()> {
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
        self.collect(policy, critic);
        Ok(())
    }

    /// Takes up the tensors of a policy whose adapter has other shapes now.
    pub(super) fn collect(&mut self, policy: &Policy, critic: Option<&Critic>) {
        self.parameters = parameters(&self.rule, policy, critic, self.critic_scale);
    }

    /// The optimizer's state: numbers as JSON, and named tensors.
    pub(super) fn saved(&self) -> (Value, Vec<(String, Tensor)>) {
        let state = self.optimizer.state();
        (json!({ "rule": state.rule, "scalars": state.scalars }), state.tensors)
    }

    /// Takes the optimizer's state back.
    ///
    /// # Errors
    /// If it is another optimizer's, or cannot be read.
    pub(super) fn restore(&mut self, saved: &Value, tensors: Vec<(String, Tensor)>) -> Result<()> {
        let scalars = serde_json::from_value(saved["scalars"].clone())
            .map_err(|error| Error::input(format!("the checkpoint's optimizer state cannot be read: {error}")))?;
        let rule = saved["rule"].as_str().unwrap_or_default().to_owned();
        self.optimizer.restore(OptimizerState { rule, scalars, tensors })
    }

    #[cfg(test)]
    pub(super) fn optimizer(&self) -> &dyn Optimizer {
        &*self.optimizer
    }
}

fn layers(policy: &Policy) -> Vec<&LowRank> {
    policy.adapter().layers().collect()
}

/// Everything that is trained: the adapter, and the critic where there is one.
fn parameters(rule: &OptimizerConfig, policy: &Policy, critic: Option<&Critic>, critic_scale: f64) -> Vec<Parameter> {
    let gate_scale = rule.gate_learning_rate_scale();
    let parameter = |name: String, tensor: &Tensor, scale: f64| {
        let gate = name.rsplit('.').next() == Some("gate");
        let (role, own_scale) = if gate { (optimizer::Role::Gate, gate_scale) } else { (optimizer::Role::Weight, 1.0) };
        Parameter { learning_rate_scale: scale * own_scale, ..Parameter::new(name, tensor.shallow_clone(), role) }
    };
    let full_ranks: BTreeMap<&str, i64> = layers(policy).iter().map(|it| (it.name.as_str(), it.full_rank)).collect();
    let adapter = policy.adapter().tensors().map(|(name, tensor)| {
        let parameter = parameter(name, tensor, 1.0);
        let layer = parameter.name.strip_suffix(".gate").and_then(|layer| full_ranks.get(layer));
        Parameter { full_size: layer.map_or(parameter.full_size, |rank| *rank as usize), ..parameter }
    });
    let critic =
        critic.into_iter().flat_map(Critic::tensors).map(|(name, tensor)| parameter(name, tensor, critic_scale));
    adapter.chain(critic).collect()
}
