//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv
//! 1711.05101), in `PyTorch`'s form.
//!
//! ```text
//! w ← w (1 − η λ)
//! m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
//! w ← w − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! Gates of sparse adapters have their own ε and no decay, and ε is added *before* the bias correction, as in the
//! optimizer of SoRA's published code: `g ← g − η √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)`.

use super::schedule::in_range;
use super::{Optimizer, OptimizerState, Parameter, Rate, Role, Schedule, fit, working_copy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

const RULE: &str = "adamw";

/// `[optimizer.adamw]`: Adam with decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate, reached after warm-up. 1e-5 suits full fine-tuning; adapters take 10 to 100 times as much.
    #[serde(alias = "lr")]
    pub learning_rate: f64,
    /// Decay rates β₁ and β₂ of the running means of the gradient and of its square, each at least 0 and below 1.
    pub betas: (f64, f64),
    /// Constant ε added to the root of the second moment; it bounds the step of a parameter with tiny gradients.
    #[serde(alias = "adam_epsilon", alias = "epsilon")]
    pub eps: f64,
    /// Decoupled weight decay λ, per unit of learning rate. It applies to matrices only; 0 for none.
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
    /// Settings for the gates of sparse adapters.
    pub gate: GateConfig,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-5,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            schedule_floor: 0.0,
            max_grad_norm: 1.0,
            gate: GateConfig::default(),
        }
    }
}

impl AdamWConfig {
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

/// `[optimizer.adamw.gate]`: the update of gates, which have no weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Factor on the learning rate of gates.
    pub learning_rate_scale: f64,
    /// Decay rates β₁ and β₂ for gates, each at least 0 and below 1.
    pub betas: (f64, f64),
    /// Constant ε for gates, added to the root of the second moment before the bias correction; 1e-6 as in SoRA's code.
    pub eps: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { learning_rate_scale: 1.0, betas: (0.9, 0.999), eps: 1e-6 }
    }
}

/// `AdamW` with its moments of each parameter.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

#[derive(Debug)]
struct Moments {
    /// Number of updates taken so far.
    steps: u64,
    /// Running mean of the gradient, shaped like the parameter.
    first: Tensor,
    /// Running mean of the squared gradient, shaped like the parameter.
    second: Tensor,
    /// Master copy in f32, for a parameter of a narrower kind.
    master: Option<Tensor>,
}

impl AdamW {
    /// Returns an optimizer without state.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        for (name, (first, second)) in [("betas", config.betas), ("gate.betas", config.gate.betas)] {
            in_range(name, first, 0.0, 1.0 - f64::EPSILON)?;
            in_range(name, second, 0.0, 1.0 - f64::EPSILON)?;
        }
        in_range("eps", config.eps, 0.0, f64::MAX)?;
        in_range("gate.eps", config.gate.eps, 0.0, f64::MAX)?;
        in_range("gate.learning_rate_scale", config.gate.learning_rate_scale, 0.0, f64::MAX)?;
        in_range("weight_decay", config.weight_decay, 0.0, f64::MAX)?;
        in_range("max_grad_norm", config.max_grad_norm, 0.0, f64::MAX)?;
        Ok(Self { config, moments: BTreeMap::new() })
    }

    fn update(&mut self, parameter: &mut Parameter, learning_rate: f64) -> Result<()> {
        let gradient = parameter.gradient();
        let name = &parameter.name;
        let moments = self.moments.entry(name.clone()).or_insert_with(|| Moments {
            steps: 0,
            first: gradient.zeros_like(),
            second: gradient.zeros_like(),
            master: None,
        });
        for state in [&mut moments.first, &mut moments.second].into_iter().chain(&mut moments.master) {
            fit(name, state, parameter)?;
        }
        let mut weight = working_copy(parameter, &mut moments.master);
        let learning_rate = learning_rate * parameter.learning_rate_scale;
        match parameter.role {
            Role::Weight => {
                let _ = weight.g_mul_scalar_(1.0 - learning_rate * self.config.weight_decay);
                moments.advance(&gradient, self.config.betas);
                moments.move_torch(&mut weight, learning_rate, self.config.betas, self.config.eps);
            }
            Role::Undecayed => {
                moments.advance(&gradient, self.config.betas);
                moments.move_torch(&mut weight, learning_rate, self.config.betas, self.config.eps);
            }
            Role::Gate => {
                let gate = &self.config.gate;
                moments.advance(&gradient, gate.betas);
                moments.move_gate(&mut weight, learning_rate, gate.betas, gate.eps);
            }
        }
        if moments.master.is_some() {
            parameter.tensor.copy_(&weight);
        }
        Ok(())
    }
}

impl Moments {
    fn advance(&mut self, gradient: &Tensor, (beta1, beta2): (f64, f64)) {
        self.steps += 1;
        let _ = self.first.lerp_(gradient, 1.0 - beta1);
        let _ = self.second.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
    }

    /// Returns the bias corrections `1 − β₁ᵗ` and `1 − β₂ᵗ`.
    fn corrections(&self, (beta1, beta2): (f64, f64)) -> (f64, f64) {
        let steps = self.steps as f64;
        (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps))
    }

    fn move_torch(&self, weight: &mut Tensor, learning_rate: f64, betas: (f64, f64), eps: f64) {
        let (first, second) = self.corrections(betas);
        let divisor = self.second.sqrt() / second.sqrt() + eps;
        let _ = weight.g_sub_(&((&self.first / divisor) * (learning_rate / first)));
    }

    fn move_gate(&self, gate: &mut Tensor, learning_rate: f64, betas: (f64, f64), eps: f64) {
        let (first, second) = self.corrections(betas);
        let divisor = self.second.sqrt() + eps;
        let _ = gate.g_sub_(&((&self.first / divisor) * (learning_rate * second.sqrt() / first)));
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, parameters: &mut [Parameter], learning_rate: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        parameters.iter_mut().try_for_each(|parameter| self.update(parameter, learning_rate))
    }

    fn state(&self) -> OptimizerState {
        let mut state = OptimizerState { rule: RULE.to_owned(), ..OptimizerState::default() };
        for (name, moments) in &self.moments {
            state.scalars.insert(format!("steps.{name}"), moments.steps as f64);
            state.tensors.push((format!("first.{name}"), moments.first.copy()));
            state.tensors.push((format!("second.{name}"), moments.second.copy()));
            state.tensors.extend(moments.master.iter().map(|master| (format!("master.{name}"), master.copy())));
        }
        state.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        state
    }

    fn restore(&mut self, state: OptimizerState) -> Result<()> {
        state.expect_rule(RULE)?;
        let mut tensors: BTreeMap<String, Tensor> = state.tensors.into_iter().collect();
        let mut moments = BTreeMap::new();
        for (key, steps) in state.scalars {
            let name = key.strip_prefix("steps.").ok_or_else(|| missing(&key))?;
            let mut take = |part: &str| tensors.remove(&format!("{part}.{name}"));
            let first = take("first").ok_or_else(|| missing(name))?;
            let second = take("second").ok_or_else(|| missing(name))?;
            let master = take("master");
            moments.insert(name.to_owned(), Moments { steps: steps as u64, first, second, master });
        }
        self.moments = moments;
        Ok(())
    }
}

fn missing(name: &str) -> Error {
    Error::input(format!("the saved optimizer state of `{name}` is incomplete; use an older checkpoint"))
}
