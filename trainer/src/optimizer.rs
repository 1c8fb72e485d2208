//! Update rules over named parameters.
//!
//! libtorch's own optimizers cannot be saved through its bindings, so these are tensor code. Each rule is one file,
//! works in place without gradients, and returns its whole state as named tensors and numbers, so that an interrupted
//! run continues bit for bit. Arithmetic is in f32 even for bf16 parameters, of which an f32 master copy is kept: a
//! step of 1e-5 on a weight of 0.02 is below the spacing of bf16 and would be lost.

mod adamw;
mod schedule;
mod sgd;

pub use adamw::{AdamW, AdamWConfig, FARTHEST_STEP, GateConfig, GateRule};
pub use schedule::{Rate, Schedule};
pub use sgd::{Sgd, SgdConfig};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Kind of a parameter, which decides how an update rule treats it.
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

/// A trainable tensor with its name and update settings.
#[derive(Debug)]
pub struct Parameter {
    /// Unique name; the parameter's optimizer state is saved under it.
    pub name: String,
    /// Leaf tensor that carries the gradient; shares storage with the model.
    pub tensor: Tensor,
    /// Kind of the parameter: weight decay applies to [`Role::Weight`] alone, gates have settings of their own.
    pub role: Role,
    /// Factor on the learning rate; 1 for the common rate.
    pub learning_rate_scale: f64,
    /// Number of entries before any pruning.
    pub full_size: usize,
}

impl Parameter {
    /// Returns a parameter at the common learning rate.
    pub fn new(name: impl Into<String>, tensor: Tensor, role: Role) -> Self {
        let full_size = tensor.numel();
        Self { name: name.into(), tensor, role, learning_rate_scale: 1.0, full_size }
    }

    /// Returns the kind in which the update is computed: f64 for an f64 parameter, f32 for every other.
    fn working_kind(&self) -> Kind {
        if self.tensor.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Returns the gradient in the working kind, shaped like the parameter. A parameter that took no part in the loss
    /// has a zero gradient: libtorch allocates one or not depending on whether the run was interrupted, and the update
    /// must not depend on that.
    pub(crate) fn gradient(&self) -> Tensor {
        let gradient = self.tensor.grad();
        let kind = self.working_kind();
        if gradient.defined() { gradient.to_kind(kind) } else { self.tensor.zeros_like().to_kind(kind) }
    }
}

/// State of an update rule between steps, as it is saved in a checkpoint.
#[derive(Debug, Default)]
pub struct OptimizerState {
    /// Name of the update rule that wrote it: `adamw` or `sgd`.
    pub rule: String,
    /// Numbers by name, such as `steps.<parameter>`.
    pub scalars: BTreeMap<String, f64>,
    /// Tensors by name, such as `first.<parameter>`, in alphabetical order.
    pub tensors: Vec<(String, Tensor)>,
}

impl OptimizerState {
    /// Prunes the state of one parameter. Entry names are the quantity, a dot, and the parameter's name. If any tensor
    /// of the parameter has another shape than the parameter, all its state is dropped.
    fn prune(&mut self, cut: &Kept) {
        let of_it = |key: &str| key.split_once('.').is_some_and(|(_, name)| name == cut.name);
        let alike = self.tensors.iter().filter(|(key, _)| of_it(key)).all(|(_, tensor)| tensor.size() == cut.shape);
        if alike {
            for (_, tensor) in self.tensors.iter_mut().filter(|(key, _)| of_it(key)) {
                *tensor = tensor.index_select(cut.axis, &cut.indices);
            }
        } else {
            self.tensors.retain(|(key, _)| !of_it(key));
            self.scalars.retain(|key, _| !of_it(key));
        }
    }

    /// Returns an error if the state was written by another rule.
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

/// Entries of a parameter that remain after pruning.
#[derive(Debug)]
pub struct Kept {
    /// Name of the pruned parameter.
    pub name: String,
    /// Shape before pruning.
    pub shape: Vec<i64>,
    /// Pruned axis.
    pub axis: i64,
    /// Indices along that axis that remain, `[kept]` i64.
    pub indices: Tensor,
}

/// An update rule over named parameters.
pub trait Optimizer {
    /// Moves each parameter against its gradient, in place. `learning_rate` is that of this step; each parameter
    /// multiplies it by its own scale. Gradients are left unchanged.
    ///
    /// # Errors
    /// If restored state has another shape than its parameter.
    fn step(&mut self, parameters: &mut [Parameter], learning_rate: f64) -> Result<()>;

    /// Returns copies of everything that [`Optimizer::restore`] needs to continue from this point.
    fn state(&self) -> OptimizerState;

    /// Replaces the state by a saved one.
    ///
    /// # Errors
    /// If the saved state belongs to another rule or is incomplete.
    fn restore(&mut self, state: OptimizerState) -> Result<()>;

    /// Prunes the state along with its parameters. State tensors in the parameter's shape keep the same entries. A
    /// parameter with state of another shape loses its state and starts anew.
    ///
    /// # Errors
    /// If the pruned state cannot be restored; see [`Optimizer::restore`].
    fn prune(&mut self, cuts: &[Kept]) -> Result<()> {
        let mut state = self.state();
        for cut in cuts {
            state.prune(cut);
        }
        self.restore(state)
    }
}

/// Update rule of a run: `[optimizer.adamw]` or `[optimizer.sgd]`.
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
    /// Builds the optimizer with empty state.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn build(&self) -> Result<Box<dyn Optimizer>> {
        self.rate().validate()?;
        Ok(match self {
            Self::Adamw(config) => Box::new(AdamW::new(config.clone())?),
            Self::Sgd(config) => Box::new(Sgd::new(config.clone())?),
        })
    }

    /// Returns the learning rate as a function of the update.
    pub fn rate(&self) -> Rate {
        match self {
            Self::Adamw(config) => config.rate(),
            Self::Sgd(config) => config.rate(),
        }
    }

    /// Factor on the learning rate of gates: the [`Parameter::learning_rate_scale`] of gates.
    pub fn gate_learning_rate_scale(&self) -> f64 {
        match self {
            Self::Adamw(AdamWConfig { learning_rate, gate, .. }) => match gate.rule {
                GateRule::Shared if *learning_rate > 0.0 => gate.learning_rate / learning_rate,
                GateRule::Shared | GateRule::Adam => gate.learning_rate_scale,
            },
            Self::Sgd(_) => 1.0,
        }
    }

    /// Rule of a gate's step; `None` where gates take the same steps as all parameters.
    pub fn gate_rule(&self) -> Option<GateRule> {
        match self {
            Self::Adamw(config) => Some(config.gate.rule),
            Self::Sgd(_) => None,
        }
    }

    /// Largest global gradient norm, to which larger gradients are scaled down; 0 for no limit.
    pub fn max_grad_norm(&self) -> f64 {
        match self {
            Self::Adamw(config) => config.max_grad_norm,
            Self::Sgd(config) => config.max_grad_norm,
        }
    }
}

/// Outcome of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// The parameters were updated.
    Taken {
        /// Global gradient norm before clipping.
        grad_norm: f64,
    },
    /// A gradient was not finite: parameters and optimizer state are unchanged.
    Skipped {
        /// The norm, infinite or NaN.
        grad_norm: f64,
    },
}

impl Update {
    /// Returns the global gradient norm before clipping.
    pub fn grad_norm(self) -> f64 {
        match self {
            Self::Taken { grad_norm } | Self::Skipped { grad_norm } => grad_norm,
        }
    }

    /// Returns true if the parameters were updated.
    pub fn is_taken(self) -> bool {
        matches!(self, Self::Taken { .. })
    }
}

/// Takes one update: clips the gradients to a global norm, steps if all of them are finite, and zeroes them.
///
/// # Errors
/// If restored optimizer state has another shape than its parameter.
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

/// Scales all gradients so that their joint Euclidean norm is at most `max` (0 for no limit), and returns the norm
/// before scaling. A norm that is not finite is returned without scaling; the caller skips the step.
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

/// Returns the tensor that a rule computes on: the parameter itself, or its f32 master copy, which is made on first
/// use.
fn working_copy(parameter: &Parameter, master: &mut Option<Tensor>) -> Tensor {
    let kind = parameter.working_kind();
    if parameter.tensor.kind() == kind {
        return parameter.tensor.detach();
    }
    master.get_or_insert_with(|| parameter.tensor.detach().to_kind(kind)).shallow_clone()
}

/// Moves restored state to the parameter's device; returns an error if the shapes differ.
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
