//! Update rules over named parameters.
//!
//! libtorch's own optimizers cannot be saved through its bindings, so ours are tensor code: each rule is one file, works
//! in place without gradients, and gives its whole state as named tensors and numbers, so that an interrupted run goes
//! on bit for bit. Arithmetic is in f32 even for bf16 parameters, of which an f32 master copy is kept: a step of 1e-5
//! on a weight of 0.02 is below the spacing of bf16 and would be lost.

mod adamw;
mod schedule;
mod sgd;

pub use adamw::{AdamW, AdamWConfig, GateConfig};
pub use schedule::{Rate, Schedule};
pub use sgd::{Sgd, SgdConfig};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// What a parameter is, which decides how an update rule treats it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// A matrix: updated with weight decay.
    #[default]
    Weight,
    /// A bias or a scale: updated without weight decay.
    Undecayed,
    /// A gate of a sparse adapter: updated without weight decay and with settings of its own.
    Gate,
}

/// A trainable tensor, its name and how it is updated.
#[derive(Debug)]
pub struct Parameter {
    /// The name under which its state is saved; unique.
    pub name: String,
    /// The leaf tensor that carries the gradient; shares storage with the model.
    pub tensor: Tensor,
    /// What it is.
    pub role: Role,
    /// Multiplies the learning rate; 1 for the common rate.
    pub learning_rate_scale: f64,
}

impl Parameter {
    /// A parameter at the common learning rate.
    pub fn new(name: impl Into<String>, tensor: Tensor, role: Role) -> Self {
        Self { name: name.into(), tensor, role, learning_rate_scale: 1.0 }
    }

    /// The kind that its update is computed in: f64 for f64, f32 for everything else.
    fn working_kind(&self) -> Kind {
        if self.tensor.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Its gradient in the working kind. A parameter that took no part in the loss has a zero gradient: whether
    /// libtorch has allocated one depends on whether the run was interrupted, and the update must not.
    pub(crate) fn gradient(&self) -> Tensor {
        let gradient = self.tensor.grad();
        let kind = self.working_kind();
        if gradient.defined() { gradient.to_kind(kind) } else { self.tensor.zeros_like().to_kind(kind) }
    }
}

/// Everything that an update rule remembers between steps.
#[derive(Debug, Default)]
pub struct OptimizerState {
    /// The rule that it belongs to.
    pub rule: String,
    /// Numbers by name.
    pub scalars: BTreeMap<String, f64>,
    /// Tensors by name, in alphabetical order.
    pub tensors: Vec<(String, Tensor)>,
}

impl OptimizerState {
    /// Cuts what belongs to one parameter: entries are named after what they are, a dot, and the parameter.
    fn prune(&mut self, cut: &Kept) {
        let of_it = |key: &str| key.split_once('.').is_some_and(|(_, name)| name == cut.name);
        let alike = self.tensors.iter().filter(|(key, _)| of_it(key)).all(|(_, tensor)| tensor.size() == cut.shape);
        if alike {
            for (_, tensor) in self.tensors.iter_mut().filter(|(key, _)| of_it(key)) {
                *tensor = tensor.index_select(cut.axis, &cut.places);
            }
        } else {
            self.tensors.retain(|(key, _)| !of_it(key));
            self.scalars.retain(|key, _| !of_it(key));
        }
    }

    /// Refuses the state of another rule.
    fn expect_rule(&self, rule: &str) -> Result<()> {
        if self.rule == rule {
            return Ok(());
        }
        let found = &self.rule;
        Err(Error::input(format!(
            "the checkpoint holds the state of optimizer `{found}`, the config asks for `{rule}`; resume with the \
             optimizer that the run was started with"
        )))
    }
}

/// Entries of a parameter that stay when others are pruned.
#[derive(Debug)]
pub struct Kept {
    /// The parameter's name.
    pub name: String,
    /// Its shape before.
    pub shape: Vec<i64>,
    /// The axis that was cut.
    pub axis: i64,
    /// The places along that axis that stay, `[count]` i64.
    pub places: Tensor,
}

/// An update rule.
pub trait Optimizer {
    /// Moves each parameter against its gradient, in place. The learning rate is that of this step; it is multiplied
    /// by the parameter's own scale. Gradients are left as they are.
    ///
    /// # Errors
    /// If restored state does not fit a parameter.
    fn step(&mut self, parameters: &mut [Parameter], learning_rate: f64) -> Result<()>;

    /// All that [`Optimizer::restore`] needs to go on exactly here. The tensors are copies.
    fn state(&self) -> OptimizerState;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// If it belongs to another rule or is incomplete.
    fn restore(&mut self, state: OptimizerState) -> Result<()>;

    /// Follows parameters that were pruned. What is remembered of a parameter in the parameter's own shape is cut
    /// alike; a parameter that anything of another shape is remembered of is forgotten and starts anew.
    ///
    /// # Errors
    /// As [`Optimizer::restore`].
    fn prune(&mut self, cuts: &[Kept]) -> Result<()> {
        let mut state = self.state();
        for cut in cuts {
            state.prune(cut);
        }
        self.restore(state)
    }
}

/// The choice of an update rule in the config: `[optimizer.adamw]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay.
    Adamw(AdamWConfig),
    /// Stochastic gradient descent with momentum.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw(AdamWConfig::default())
    }
}

impl OptimizerConfig {
    /// A fresh optimizer.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn build(&self) -> Result<Box<dyn Optimizer>> {
        self.rate().validate()?;
        Ok(match self {
            Self::Adamw(config) => Box::new(AdamW::new(config.clone())?),
            Self::Sgd(config) => Box::new(Sgd::new(config.clone())?),
        })
    }

    /// The learning rate over the run.
    pub fn rate(&self) -> Rate {
        match self {
            Self::Adamw(config) => config.rate(),
            Self::Sgd(config) => config.rate(),
        }
    }

    /// What the learning rate of gates is multiplied by: the [`Parameter::learning_rate_scale`] of gates.
    pub fn gate_learning_rate_scale(&self) -> f64 {
        match self {
            Self::Adamw(config) => config.gate.learning_rate_scale,
            Self::Sgd(_) => 1.0,
        }
    }

    /// Gradients are scaled down to this global norm; 0 for no limit.
    pub fn max_grad_norm(&self) -> f64 {
        match self {
            Self::Adamw(config) => config.max_grad_norm,
            Self::Sgd(config) => config.max_grad_norm,
        }
    }
}

/// How an update ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// The parameters moved.
    Taken {
        /// The global gradient norm before clipping.
        grad_norm: f64,
    },
    /// A gradient was not finite: nothing moved, and the optimizer's state is as before.
    Skipped {
        /// The norm, infinite or not a number.
        grad_norm: f64,
    },
}

impl Update {
    /// The global gradient norm before clipping.
    pub fn grad_norm(self) -> f64 {
        match self {
            Self::Taken { grad_norm } | Self::Skipped { grad_norm } => grad_norm,
        }
    }

    /// Whether the parameters moved.
    pub fn is_taken(self) -> bool {
        matches!(self, Self::Taken { .. })
    }
}

/// One update: clips the gradients to a global norm, steps unless one is not finite, and zeroes them.
///
/// # Errors
/// As [`Optimizer::step`].
pub fn update(
    optimizer: &mut dyn Optimizer,
    parameters: &mut [Parameter],
    learning_rate: f64,
    max_grad_norm: f64,
) -> Result<Update> {
    let grad_norm = clip_global_norm(parameters, max_grad_norm);
    let finite = grad_norm.is_finite();
    if finite {
        optimizer.step(parameters, learning_rate)?;
    }
    zero_gradients(parameters);
    Ok(if finite { Update::Taken { grad_norm } } else { Update::Skipped { grad_norm } })
}

/// Scales all gradients so that their joint Euclidean norm is at most `max` (0 for no limit), and returns the norm from
/// before. A norm that is not finite is returned without scaling: the step is to be skipped.
pub fn clip_global_norm(parameters: &mut [Parameter], max: f64) -> f64 {
    let _guard = tch::no_grad_guard();
    let mut gradients: Vec<Tensor> =
        parameters.iter().map(|parameter| parameter.tensor.grad()).filter(Tensor::defined).collect();
    if gradients.is_empty() {
        return 0.0;
    }
    let norms: Vec<Tensor> = gradients.iter().map(|gradient| gradient.to_kind(Kind::Float).norm()).collect();
    let norm = Tensor::stack(&norms, 0).to_kind(Kind::Double).norm().double_value(&[]);
    if norm.is_finite() && max > 0.0 && norm > max {
        for gradient in &mut gradients {
            let _ = gradient.g_mul_scalar_(max / (norm + 1e-6));
        }
    }
    norm
}

/// Sets every allocated gradient to zero, in place.
pub fn zero_gradients(parameters: &mut [Parameter]) {
    for parameter in parameters {
        parameter.tensor.zero_grad();
    }
}

/// The tensor that a rule computes on: the parameter itself, or its f32 master copy, which is made on first use.
fn working_copy(parameter: &Parameter, master: &mut Option<Tensor>) -> Tensor {
    let kind = parameter.working_kind();
    if parameter.tensor.kind() == kind {
        return parameter.tensor.detach();
    }
    master.get_or_insert_with(|| parameter.tensor.detach().to_kind(kind)).shallow_clone()
}

/// Brings restored state to the parameter's device, and refuses it if the shapes differ.
fn fit(name: &str, state: &mut Tensor, parameter: &Parameter) -> Result<()> {
    if state.size() != parameter.tensor.size() {
        return Err(Error::input(format!(
            "the saved optimizer state of `{name}` has shape {:?}, the parameter {:?}; resume with the adapter that the \
             run was started with",
            state.size(),
            parameter.tensor.size()
        )));
    }
    if state.device() != parameter.tensor.device() {
        *state = state.to_device(parameter.tensor.device());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
