//! The hidden states of a packed batch, and their backward pass to the adapter.

use crate::adapter::Adapter;
use crate::architecture::{Activations, CausalLm, Tape};
use crate::packed::Packed;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// The hidden states of a batch, with the backward pass to the adapter they were computed with if it is trained.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The state before each target token, `[target, hidden]`, without gradient.
    pub(crate) hidden: Tensor,
    backward: Option<Backward>,
}

/// The inputs of the backward pass.
struct Backward {
    network: Rc<dyn CausalLm>,
    adapter: Adapter,
    tape: Tape,
    /// `[target]` i64: the input token of each target.
    predictors: Tensor,
    /// Input tokens of the pass, targets or not.
    tokens: i64,
}

impl std::fmt::Debug for Backward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backward").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// The state before each target token of `packed`, `[target, hidden]`, without gradient.
///
/// * `kind`: the format of activations
pub(crate) fn hidden_states(network: &dyn CausalLm, packed: &Packed, kind: Kind, adapter: &Adapter) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let mut attention = packed.attention(kind);
    network.forward(&packed.ids, &packed.positions, &mut attention, adapter).index_select(0, &packed.predictors)
}

impl Trace {
    /// Runs the forward pass, and keeps a tape if gradients are on and the adapter has tensors.
    ///
    /// * `kind`: the format of activations
    pub(crate) fn run(
        network: &Rc<dyn CausalLm>,
        packed: &Packed,
        kind: Kind,
        adapter: &Adapter,
        activations: Activations,
    ) -> Self {
        let trained = adapter.tensors().next().is_some_and(|(_, tensor)| (tensor * 1.0).requires_grad());
        if !trained {
            return Self { hidden: hidden_states(&**network, packed, kind, adapter), backward: None };
        }
        let attention = packed.attention(kind);
        let (states, tape) = network.forward_with_tape(&packed.ids, &packed.positions, attention, adapter, activations);
        let hidden = tch::no_grad(|| states.index_select(0, &packed.predictors));
        let backward = Backward {
            network: Rc::clone(network),
            adapter: adapter.share(),
            tape,
            predictors: packed.predictors.shallow_clone(),
            tokens: states.size()[0],
        };
        Self { hidden, backward: Some(backward) }
    }

    /// True if [`Self::backward`] reaches a trained adapter.
    pub(crate) fn is_trained(&self) -> bool {
        self.backward.is_some()
    }

    /// Adds to the gradients of the adapter, given the gradient with respect to the hidden states, `[target, hidden]`.
    pub(crate) fn backward(self, grad_hidden: &Tensor) {
        let Some(backward) = self.backward else { return };
        let grad_states = tch::no_grad(|| {
            // A prompt's last state predicts the first token of each of its completions.
            Tensor::zeros([backward.tokens, grad_hidden.size()[1]], (grad_hidden.kind(), grad_hidden.device()))
                .index_add(0, &backward.predictors, grad_hidden)
        });
        backward.network.backward(backward.tape, &grad_states, &backward.adapter);
    }
}
