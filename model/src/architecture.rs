//! Networks: tokens in, hidden states out.
//!
//! There is one implementation of [`CausalLm`], the pre-norm decoder of `decoder.rs`. The families of
//! [`crate::family`] are variants of it, selected by the switches in [`Dimensions`]; its tensors have the hub's names.
//!
//! A network knows nothing of sequences. It works on *packed* tokens, `[token, hidden]`, and hands queries, keys and
//! values to an [`Attention`], which knows which token may see which. So training, prefill and decoding share every
//! line but that one, and no layer computes on padding.

mod decoder;
mod random;
mod rope;

pub use decoder::{Activations, Tape};
pub use random::RandomModel;

use crate::adapter::Adapter;
use crate::attention::{Attention, GroupAttention};
use crate::backend::Placement;
use crate::cache::KvCache;
use crate::dimensions::{Dimensions, LinearShape};
use crate::logprob::OutputHead;
use crate::weights::Checkpoint;
use crate::{Error, Result, family};
use serde_json::Value;
use tch::Tensor;

/// A causal language model over packed tokens.
pub trait CausalLm {
    /// The sizes of the network.
    fn dimensions(&self) -> &Dimensions;

    /// The linear layers that an adapter may attach to, in the order of their ids.
    fn linears(&self) -> &[LinearShape];

    /// Computes the last hidden states after the final norm, `[token, hidden]`, without gradient.
    ///
    /// * `ids`: `[token]` i64, token ids
    /// * `positions`: `[token]` i64, the position of each token in its sequence
    /// * `attention`: the rule which token sees which
    /// * `adapter`: low-rank updates of linear layers
    fn forward(&self, ids: &Tensor, positions: &Tensor, attention: &mut dyn Attention, adapter: &Adapter) -> Tensor;

    /// [`CausalLm::forward`] with the tape for [`CausalLm::backward`]; the hidden states are `[token, hidden]`.
    ///
    /// * `activations`: kept on the tape, or recomputed in the backward pass
    fn forward_with_tape(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        attention: GroupAttention,
        adapter: &Adapter,
        activations: Activations,
    ) -> (Tensor, Tape);

    /// Adds to the gradients of the adapter's tensors.
    ///
    /// * `grad_hidden`: the gradient with respect to the hidden states of the tape's forward pass, `[token, hidden]`
    fn backward(&self, tape: Tape, grad_hidden: &Tensor, adapter: &Adapter);

    /// Decodes one new token in each of the first `lengths.len()` slots of a cache, and stores its keys and values
    /// there. Returns the last hidden states, `[row, hidden]`.
    ///
    /// * `ids`: the new token of each row
    /// * `lengths`: the number of tokens that each slot holds already
    fn decode(&self, ids: &[i64], lengths: &[usize], cache: &mut KvCache, adapter: &Adapter) -> Tensor;

    /// The output head.
    fn head(&self) -> &OutputHead;
}

/// The source of a network's tensors: a checkpoint, or a seed.
pub(crate) trait TensorSource {
    /// The tensor with this hub name and shape, on the CPU.
    ///
    /// # Errors
    /// If there is no such tensor, or it is damaged or has another shape.
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor>;
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = Checkpoint::tensor(self, name)?;
        if tensor.size() != shape {
            return Err(Error::input(format!(
                "tensor `{name}` has shape {:?}, but the config asks for {shape:?}; do config and weights belong together?",
                tensor.size()
            )));
        }
        Ok(tensor)
    }
}

/// Builds the network of a checkpoint; each weight is loaded once.
///
/// `tokens` is the number of ids that the tokenizer has ([`crate::tokenizer::Tokenizer::vocab_size`]). Many embeddings have
/// more rows, up to a round number (Qwen3: 151,936 for 151,669 tokens). Those rows are left out: the network's
/// vocabulary, its logits and all log-probabilities are over the tokens alone, for sampler and trainer alike, so that
/// an id without text is never sampled.
///
/// # Errors
/// If the family or one of its settings is not supported, or a tensor is missing, damaged or of another shape than the
/// config asks for, or the embedding holds a number that is not finite.
pub fn load(checkpoint: &Checkpoint, tokens: usize, placement: Placement) -> Result<Box<dyn CausalLm>> {
    build(checkpoint.config(), tokens, checkpoint, placement)
}

/// Builds the network of a hub's `config.json` for `tokens` tokens, with the tensors of `source`.
fn build(config: &Value, tokens: usize, source: &dyn TensorSource, placement: Placement) -> Result<Box<dyn CausalLm>> {
    Ok(Box::new(decoder::Decoder::new(family::dimensions(config)?, tokens, source, placement)?))
}
