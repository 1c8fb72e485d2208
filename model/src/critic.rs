//! A scalar head over the network's hidden states: the critic of PPO, and the score of a reward model.
//!
//! ```text
//! V(x, y_<t) = w · h_t          h_t: the last hidden state of the prefix, after the final norm; w starts at zero
//! ```
//!
//! The backbone is the frozen network with an adapter: the policy's own, so that a value costs one dot product, or one
//! of the critic's, so that learning values cannot disturb the policy, for a second forward pass. There is no bias, as
//! in `OpenRLHF`: normed hidden states have a constant direction that serves as one.

use crate::adapter::Adapter;
use crate::architecture::CausalLm;
use crate::policy::Trace;
use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// A scalar head, and the adapter of its own if it has one.
#[derive(Debug)]
pub struct Critic {
    /// `[hidden]` f32, a leaf
    weight: Tensor,
    /// What it reads hidden states through; the policy's adapter if absent.
    adapter: Option<Adapter>,
}

/// The name of the head's weight in files, as transformers names the head of a sequence classifier.
const WEIGHT: &str = "score.weight";

impl Critic {
    /// A head at zero, which values everything at 0, over the policy's adapter or one of its own.
    pub fn new(network: &dyn CausalLm, adapter: Option<Adapter>, device: Device) -> Self {
        let hidden = network.dimensions().hidden;
        Self { weight: Tensor::zeros([hidden], (Kind::Float, device)).set_requires_grad(true), adapter }
    }

    /// The adapter of its own, if it has one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// One value per row of `hidden`, `[token, hidden]` to `[token]` f32.
    pub fn values(&self, hidden: &Tensor) -> Tensor {
        hidden.to_kind(Kind::Float).mv(&self.weight)
    }

    /// Its trainable tensors by name: `score.weight`, and those of its own adapter behind `critic.`.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let own =
            self.adapter.iter().flat_map(Adapter::tensors).map(|(name, tensor)| (format!("critic.{name}"), tensor));
        std::iter::once((WEIGHT.to_owned(), &self.weight)).chain(own)
    }

    /// Overwrites every tensor with the saved one of the same name.
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

/// Values of one batch, from which a loss is computed, and the way back to what made them.
#[derive(Debug)]
pub struct Values {
    /// `[token]` f32, a leaf: the loss is a function of it.
    pub leaf: Tensor,
    /// The same as a function of `states`.
    graph: Tensor,
    /// The hidden states, `[token, hidden]`, a leaf.
    states: Tensor,
    /// The way back from the states, unless somebody else goes it.
    trace: Option<Trace>,
}

impl Values {
    /// Values over hidden states that the policy's own scores are computed from too.
    pub(crate) fn beside(critic: &Critic, hidden: &Tensor) -> Self {
        Self::new(critic, hidden, None)
    }

    /// Values over hidden states of their own.
    pub(crate) fn through(critic: &Critic, trace: Trace) -> Self {
        let hidden = trace.hidden.shallow_clone();
        Self::new(critic, &hidden, Some(trace))
    }

    fn new(critic: &Critic, hidden: &Tensor, trace: Option<Trace>) -> Self {
        let states = hidden.detach().set_requires_grad(true);
        let graph = critic.values(&states);
        Self { leaf: graph.detach().set_requires_grad(true), graph, states, trace }
    }

    /// Adds to the gradients of the head, and of its backbone if that is its own, given the gradient of the loss with
    /// respect to the leaf. Otherwise it returns the gradient with respect to the states that it shares.
    pub(crate) fn pull(self, gradient: &Tensor) -> Option<Tensor> {
        (&self.graph * gradient).sum(Kind::Float).backward();
        let by_states = self.states.grad();
        match self.trace {
            Some(trace) => {
                trace.pull(&by_states);
                None
            }
            None => Some(by_states),
        }
    }

    /// Adds the gradient of `loss` (a scalar, a function of the leaf alone) to those of the head and its backbone.
    pub fn backward(self, loss: &Tensor) {
        let gradient = Tensor::run_backward(&[loss], &[&self.leaf], false, false).swap_remove(0);
        self.pull(&gradient);
    }
}
