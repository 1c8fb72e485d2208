//! A scalar head over the network's hidden states: the critic of PPO, and the sequence head of a reward model.
//!
//! ```text
//! V(x, y_<t) = w · h_t          h_t: the last hidden state of the prefix, after the final norm; w starts at zero
//! ```
//!
//! The backbone is the frozen network with an adapter: the policy's, so that a value costs one dot product, or one of
//! the critic's own, so that learning values cannot disturb the policy, for a second forward pass. There is no bias, as
//! in `OpenRLHF`: normed hidden states have a constant direction that serves as one.

use crate::adapter::Adapter;
use crate::architecture::CausalLm;
use crate::trace::Trace;
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A scalar head, with an adapter of its own or over the policy's.
#[derive(Debug)]
pub struct Critic {
    /// `[hidden]` f32, a leaf.
    weight: Tensor,
    /// The adapter of its backbone; the policy's adapter if absent.
    adapter: Option<Adapter>,
}

/// The name of the head's weight in files, as transformers names the head of a sequence classifier.
const WEIGHT: &str = "score.weight";

impl Critic {
    /// A head at zero, which gives every prefix the value 0.
    ///
    /// * `adapter`: the adapter of its own backbone; `None` shares the policy's
    pub fn new(network: &dyn CausalLm, adapter: Option<Adapter>, device: Device) -> Self {
        let hidden = network.dimensions().hidden;
        Self { weight: Tensor::zeros([hidden], (Kind::Float, device)).set_requires_grad(true), adapter }
    }

    /// The adapter of its own backbone, if it has one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The value of each row of `hidden`, `[token, hidden]` to `[token]` f32.
    pub fn values(&self, hidden: &Tensor) -> Tensor {
        hidden.to_kind(Kind::Float).mv(&self.weight)
    }

    /// Its trainable tensors by name: `score.weight`, `[hidden]`, and those of its own adapter under `critic.`.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let own =
            self.adapter.iter().flat_map(Adapter::tensors).map(|(name, tensor)| (format!("critic.{name}"), tensor));
        std::iter::once((WEIGHT.to_owned(), &self.weight)).chain(own)
    }

    /// Overwrites every tensor of [`Self::tensors`] with the saved one of the same name and shape.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn restore(&self, saved: &[(String, Tensor)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (name, own) in self.tensors() {
            let saved = saved.iter().find(|(saved, _)| *saved == name).map(|(_, tensor)| tensor);
            let Some(saved) = saved.filter(|saved| saved.size() == own.size()) else {
                return Err(Error::input(format!(
                    "the saved critic has no tensor `{name}` of shape {:?}; was it made with another config?",
                    own.size()
                )));
            };
            own.shallow_clone().copy_(saved);
        }
        Ok(())
    }
}

/// Values of one batch, from which a loss is computed, with their backward pass.
#[derive(Debug)]
pub struct Values {
    /// `[token]` f32, a leaf: values, of which the loss is a function.
    pub leaf: Tensor,
    /// `[token]` f32: the values as a function of `states`.
    graph: Tensor,
    /// The hidden states, `[token, hidden]`, a leaf.
    states: Tensor,
    /// The backward pass of the states; `None` if the policy's own covers them.
    trace: Option<Trace>,
}

impl Values {
    /// Values over `hidden`, `[token, hidden]`, the states that the policy's log-probabilities are computed from too.
    pub(crate) fn shared(critic: &Critic, hidden: &Tensor) -> Self {
        Self::new(critic, hidden, None)
    }

    /// Values over the hidden states of a forward pass of their own.
    pub(crate) fn of_trace(critic: &Critic, trace: Trace) -> Self {
        let hidden = trace.hidden.shallow_clone();
        Self::new(critic, &hidden, Some(trace))
    }

    /// Values over the states `hidden`, `[token, hidden]`.
    fn new(critic: &Critic, hidden: &Tensor, trace: Option<Trace>) -> Self {
        let states = hidden.detach().set_requires_grad(true);
        let graph = critic.values(&states);
        Self { leaf: graph.detach().set_requires_grad(true), graph, states, trace }
    }

    /// Adds to the gradients of the head, and of its backbone if that is its own, given the gradient with respect to
    /// the leaf, `[token]`. Returns the gradient with respect to the states, `[token, hidden]`, if the policy shares
    /// them.
    pub(crate) fn vjp(self, grad_leaf: &Tensor) -> Option<Tensor> {
        (&self.graph * grad_leaf).sum(Kind::Float).backward();
        let grad_states = self.states.grad();
        match self.trace {
            Some(trace) => {
                trace.backward(&grad_states);
                None
            }
            None => Some(grad_states),
        }
    }

    /// Adds the gradient of `loss`, a scalar function of the leaf alone, to those of the head and its backbone.
    pub fn backward(self, loss: &Tensor) {
        let gradient = Tensor::run_backward(&[loss], &[&self.leaf], false, false).swap_remove(0);
        self.vjp(&gradient);
    }
}
