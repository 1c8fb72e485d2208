//! Stochastic gradient descent with momentum, in `PyTorch`'s form.
//!
//! ```text
//! g ← ∇ + λ w          b ← μ b + g  (b = g at the first step)          w ← w − η b
//! ```

use super::schedule::in_range;
use super::{Optimizer, OptimizerState, Parameter, Rate, Role, Schedule, fit, working_copy};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

const RULE: &str = "sgd";

/// `[optimizer.sgd]`: stochastic gradient descent with momentum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgdConfig {
    /// Peak learning rate, reached after warm-up.
    #[serde(alias = "lr")]
    pub learning_rate: f64,
    /// Momentum μ: share of the previous step's direction that is kept, from 0 to 1; 0 for none.
    pub momentum: f64,
    /// Weight decay λ, added to the gradient as `λ w`. It applies to matrices only; 0 for none.
    pub weight_decay: f64,
    /// Optimizer updates over which the learning rate rises linearly to its peak; 0 for no warm-up.
    pub warmup_steps: u64,
    /// Schedule of the learning rate after warm-up: `constant`, `linear` or `cosine`.
    #[serde(alias = "lr_scheduler_type")]
    pub schedule: Schedule,
    /// Final learning rate of a falling schedule, as a share of `learning_rate`, from 0 to 1.
    #[serde(alias = "min_lr_ratio")]
    pub schedule_floor: f64,
    /// Largest global gradient norm, to which larger gradients are scaled down; 0 for no limit.
    pub max_grad_norm: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-2,
            momentum: 0.9,
            weight_decay: 0.0,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            schedule_floor: 0.0,
            max_grad_norm: 1.0,
        }
    }
}

impl SgdConfig {
    /// Returns the learning rate as a function of the update.
    pub fn rate(&self) -> Rate {
        Rate {
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            floor: self.schedule_floor,
        }
    }
}

/// SGD with the momentum buffer of each parameter.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    buffers: BTreeMap<String, Tensor>,
    masters: BTreeMap<String, Option<Tensor>>,
}

impl Sgd {
    /// Returns an optimizer without state.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn new(config: SgdConfig) -> Result<Self> {
        in_range("momentum", config.momentum, 0.0, 1.0)?;
        in_range("weight_decay", config.weight_decay, 0.0, f64::MAX)?;
        in_range("max_grad_norm", config.max_grad_norm, 0.0, f64::MAX)?;
        Ok(Self { config, buffers: BTreeMap::new(), masters: BTreeMap::new() })
    }

    fn update(&mut self, parameter: &mut Parameter, learning_rate: f64) -> Result<()> {
        let name = &parameter.name;
        let master = self.masters.entry(name.clone()).or_default();
        if let Some(master) = master {
            fit(name, master, parameter)?;
        }
        let mut weight = working_copy(parameter, master);
        let decay = if parameter.role == Role::Weight { self.config.weight_decay } else { 0.0 };
        let direction = parameter.gradient() + &weight * decay;
        if let Some(buffer) = self.buffers.get_mut(name) {
            fit(name, buffer, parameter)?;
            let _ = buffer.g_mul_scalar_(self.config.momentum).g_add_(&direction);
        } else {
            self.buffers.insert(name.clone(), direction.copy());
        }
        let step = &self.buffers[name] * (learning_rate * parameter.learning_rate_scale);
        let _ = weight.g_sub_(&step);
        if self.masters[name].is_some() {
            parameter.tensor.copy_(&weight);
        }
        Ok(())
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, parameters: &mut [Parameter], learning_rate: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        parameters.iter_mut().try_for_each(|parameter| self.update(parameter, learning_rate))
    }

    fn state(&self) -> OptimizerState {
        let buffers = self.buffers.iter().map(|(name, buffer)| (format!("buffer.{name}"), buffer.copy()));
        let masters = self.masters.iter().filter_map(|(name, master)| {
            let master = master.as_ref()?;
            Some((format!("master.{name}"), master.copy()))
        });
        OptimizerState { rule: RULE.to_owned(), scalars: BTreeMap::new(), tensors: buffers.chain(masters).collect() }
    }

    fn restore(&mut self, state: OptimizerState) -> Result<()> {
        state.expect_rule(RULE)?;
        (self.buffers, self.masters) = (BTreeMap::new(), BTreeMap::new());
        for (key, tensor) in state.tensors {
            match key.split_once('.') {
                Some(("master", name)) => drop(self.masters.insert(name.to_owned(), Some(tensor))),
                Some((_, name)) => drop(self.buffers.insert(name.to_owned(), tensor)),
                None => {}
            }
        }
        Ok(())
    }
}
