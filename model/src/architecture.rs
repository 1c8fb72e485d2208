//! Network families: tokens in, hidden states out.
//!
//! A family is one file that reads the hub's `config.json` and names its tensors as the hub's checkpoints do. The
//! three families share one pre-norm decoder (`decoder.rs`) and differ in what they switch on in it.
//!
//! A network knows nothing of sequences. It works on *packed* tokens, `[token, hidden]`, and hands queries, keys and
//! values to an [`Attention`], which knows which token may see which. So training, prefill and decoding share every
//! line but that one, and no layer computes on padding.

mod decoder;
mod llama;
mod qwen2;
mod qwen3;
mod random;
mod rope;

pub use decoder::{Activations, Dimensions, LinearShape, Tape};
pub use random::RandomModel;
pub use rope::RopeScaling;

use crate::adapter::Adapter;
use crate::attention::{Attention, GroupAttention};
use crate::cache::KvCache;
use crate::device::Dtype;
use crate::weights::Checkpoint;
use crate::{Error, Result};
use serde_json::Value;
use tch::{Device, Tensor};

/// A causal language model over packed tokens.
pub trait CausalLm {
    /// Sizes that caches and heads depend on.
    fn dimensions(&self) -> &Dimensions;

    /// The linear layers that an adapter may attach to, in the order of their ids.
    fn linears(&self) -> &[LinearShape];

    /// The last hidden states after the final norm, `[token, hidden]`. No gradient flows.
    ///
    /// * `ids`: `[token]` i64, token ids
    /// * `positions`: `[token]` i64, the place of each token in its sequence
    /// * `attention`: which token sees which
    /// * `adapter`: low-rank updates of the linear layers, or none of them
    fn forward(&self, ids: &Tensor, positions: &Tensor, attention: &mut dyn Attention, adapter: &Adapter) -> Tensor;

    /// The same, with what [`CausalLm::backward`] needs to go back, or what it needs to compute that again.
    fn forward_with_tape(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        attention: GroupAttention,
        adapter: &Adapter,
        activations: Activations,
    ) -> (Tensor, Tape);

    /// Adds to the gradients of the adapter's tensors, given the gradient of some number with respect to the hidden
    /// states of the pass that the tape was kept of, `[token, hidden]`.
    fn backward(&self, tape: Tape, by_hidden: &Tensor, adapter: &Adapter);

    /// The last hidden states, `[row, hidden]`, of one new token in each of the first `lengths.len()` slots of a cache,
    /// which take its keys and values.
    ///
    /// * `ids`: the new token of each row
    /// * `lengths`: the tokens that each slot holds already
    fn decode(&self, ids: &[i64], lengths: &[usize], cache: &mut KvCache, adapter: &Adapter) -> Tensor;

    /// The output head, `[vocab, hidden]`: logits are `hidden · headᵀ`.
    fn head(&self) -> &Tensor;
}

/// Where a network's tensors come from: a checkpoint, or a seed.
pub(crate) trait TensorSource {
    /// The tensor with this hub name, on the CPU.
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

/// Reads a family's `config.json`.
type ReadConfig = fn(&Value) -> Result<Dimensions>;

/// The families by the hub's `model_type`. A new family is one file and its line here.
const FAMILIES: &[(&str, ReadConfig)] =
    &[("llama", llama::dimensions), ("qwen2", qwen2::dimensions), ("qwen3", qwen3::dimensions)];

/// Builds the network of a checkpoint, each weight once, on `device` in `dtype`.
pub fn load(checkpoint: &Checkpoint, device: Device, dtype: Dtype) -> Result<Box<dyn CausalLm>> {
    build(checkpoint.config(), checkpoint, device, dtype)
}

pub(crate) fn build(
    config: &Value,
    source: &dyn TensorSource,
    device: Device,
    dtype: Dtype,
) -> Result<Box<dyn CausalLm>> {
    let dimensions = dimensions(config)?;
    Ok(Box::new(decoder::Decoder::new(dimensions, source, device, dtype)?))
}

/// Reads the sizes of a network from the hub's `config.json`.
pub fn dimensions(config: &Value) -> Result<Dimensions> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, read) = FAMILIES.iter().find(|(name, _)| *name == model_type).ok_or_else(|| {
        Error::input(format!("model_type `{model_type}` is not supported; known families: {}", known()))
    })?;
    read(config)
}
