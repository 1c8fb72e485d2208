//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv
//! 1711.05101), in `PyTorch`'s form.
//!
//! ```text
//! w ← w (1 − η λ)
//! m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
//! w ← w − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! Gates of sparse adapters have a rule and a learning rate of their own, and no decay:
//!
//! ```text
//! shared   g ← g − η/(1 − β₁ᵗ) · m / max(ḡ, √v̂/10)     ḡ² = 1/n Σ v̂ over open gates; n counts closed ones too
//! adam     g ← g − η √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)
//! ```
//!
//! with v̂ = v/(1 − β₂ᵗ). `shared` is the plain step of a proximal gradient method but for one divisor ḡ that all gates
//! have in common, the root mean square of their gradients (one second moment for a block of parameters, as in Adam-mini,
//! Y. Zhang et al. 2024, arXiv 2406.16793). A gate moves by what it is worth to the loss beside the other gates, and the
//! threshold `η λ` that follows closes those worth less than λ times the root mean square: λ is about 1 for any model,
//! loss and scale. Where training has come to rest, every open gate has a gradient of λ ḡ, so a share of 1/λ² of the gates
//! is open at most. A gate of ten times the worth of ḡ moves by 10 η, and no gate moves further: ḡ falls with every gate
//! that closes, and is zero once all are closed. `adam`, the rule of SoRA's published code (ε before the bias correction),
//! divides by each gate's own gradient: every gate moves by about η, and a threshold is held against the constancy of a
//! gradient's sign instead of its size.

use super::schedule::in_range;
use super::{Optimizer, OptimizerState, Parameter, Rate, Role, Schedule, fit, working_copy};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Beginning of the names of a critic's parameters.
const CRITIC: &str = "critic.";

const RULE: &str = "adamw";

/// Most learning rates by which a gate moves in an update under `shared`.
pub const FARTHEST_STEP: f64 = 10.0;

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
    /// Rule of the step: `shared` or `adam`.
    pub rule: GateRule,
    /// Peak learning rate of `shared`, which follows the common schedule: how far a gate of common worth moves in an
    /// update.
    #[serde(alias = "lr")]
    pub learning_rate: f64,
    /// Factor of `adam` on the common learning rate.
    pub learning_rate_scale: f64,
    /// Decay rates β₁ and β₂ for gates, each at least 0 and below 1.
    pub betas: (f64, f64),
    /// Constant ε of `adam`, added to the root of the second moment before the bias correction; 1e-6 as in SoRA's code.
    pub eps: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            rule: GateRule::default(),
            learning_rate: 0.05,
            learning_rate_scale: 1.0,
            betas: (0.9, 0.999),
            eps: 1e-6,
        }
    }
}

/// Rule of a gate's step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateRule {
    /// A second moment that all gates share, so that each moves by what it is worth beside the others.
    #[default]
    Shared,
    /// Adam, as in SoRA's published code.
    Adam,
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
        in_range("gate.learning_rate", config.gate.learning_rate, 0.0, f64::MAX)?;
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
                if gate.rule == GateRule::Adam {
                    moments.move_gate(&mut weight, learning_rate, gate.betas, gate.eps);
                }
            }
        }
        if moments.master.is_some() {
            parameter.tensor.copy_(&weight);
        }
        Ok(())
    }
}

impl AdamW {
    /// Moves the gates, whose moments have advanced, in the unit that they share. Closed gates count as if they had no
    /// gradient, so that it does not matter whether they have been pruned. The gates of a critic have a unit of their own.
    fn move_gates(&mut self, parameters: &mut [Parameter], learning_rate: f64) {
        let gates = parameters.iter_mut().filter(|it| it.role == Role::Gate);
        let (critics, own): (Vec<_>, Vec<_>) = gates.partition(|it| it.name.starts_with(CRITIC));
        let betas = self.config.gate.betas;
        for gates in [own, critics].into_iter().filter(|gates| !gates.is_empty()) {
            let squares = |gate: &&mut Parameter| {
                let moments = &self.moments[&gate.name];
                let open = moments.second.where_self(&gate.tensor.ne(0.0), &moments.second.zeros_like());
                open.sum(Kind::Double) / moments.corrections(betas).1
            };
            let squares: Vec<Tensor> = gates.iter().map(squares).collect();
            let entries: usize = gates.iter().map(|gate| gate.full_size).sum();
            let unit = (Tensor::stack(&squares, 0).sum(Kind::Double) / entries as f64).sqrt();
            for gate in gates {
                let Some(moments) = self.moments.get_mut(&gate.name) else { continue };
                let mut weight = working_copy(gate, &mut moments.master);
                let unit = unit.to_kind(weight.kind());
                moments.move_by_unit(&mut weight, learning_rate * gate.learning_rate_scale, betas, &unit);
                if moments.master.is_some() {
                    gate.tensor.copy_(&weight);
                }
            }
        }
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

    fn move_by_unit(&self, gate: &mut Tensor, learning_rate: f64, betas: (f64, f64), unit: &Tensor) {
        let (first, second) = self.corrections(betas);
        let least = self.second.sqrt() / (second.sqrt() * FARTHEST_STEP);
        // Without any gradient the first moment is zero as well, and nothing moves.
        let divisor = least.maximum(unit).clamp_min(f64::from(f32::MIN_POSITIVE));
        let _ = gate.g_sub_(&((&self.first / divisor) * (learning_rate / first)));
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
        parameters.iter_mut().try_for_each(|parameter| self.update(parameter, learning_rate))?;
        if self.config.gate.rule == GateRule::Shared {
            self.move_gates(parameters, learning_rate);
        }
        Ok(())
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
