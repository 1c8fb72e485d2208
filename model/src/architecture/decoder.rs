//! The pre-norm decoder that the Llama and Qwen families share.
//!
//! `x += o(attend(rope(norm(q(n))), rope(norm(k(n))), v(n)))`, then `x += down(silu(gate(n)) · up(n))`, where `n` is
//! the RMS norm of `x` (Zhang & Sennrich 2019) and `SwiGLU` is Shazeer's (2020). Queries, keys and values share one
//! weight matrix, and so do gate and up: one matrix product instead of three and two. Frozen weights need no
//! gradients, so the backward pass computes and saves nothing for them.
//!
//! The passes are in [`tape`] (whole batches, forward and backward) and [`decode`] (one token per running sequence).

mod arithmetic;
mod decode;
mod tape;

pub use tape::{Activations, Tape};

use super::rope::Rope;
use super::{CausalLm, TensorSource};
use crate::adapter::{self, Adapter, LowRank};
use crate::attention::{Attention, GroupAttention};
use crate::backend::{Backend, Placement};
use crate::cache::KvCache;
use crate::dimensions::{Dimensions, LinearShape};
use crate::logprob::OutputHead;
use crate::{Error, Result};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// One or several linear layers with a common input and one weight matrix.
#[derive(Debug)]
struct Linear {
    /// `[sum of outputs, inputs]`
    weight: Tensor,
    /// `[sum of outputs]`
    bias: Option<Tensor>,
    /// The id of the first part.
    first: usize,
    /// The outputs of each part, in order.
    outputs: Vec<i64>,
}

impl Linear {
    /// The columns of each part in the fused output.
    fn columns(&self) -> impl Iterator<Item = Range<i64>> {
        self.outputs.iter().scan(0, |end, outputs| {
            let start = *end;
            *end += outputs;
            Some(start..*end)
        })
    }

    /// The update of each part, if the adapter has one of a rank above zero.
    fn adapters<'a>(&self, adapter: &'a Adapter) -> impl Iterator<Item = Option<&'a LowRank>> {
        let ids = self.first..self.first + self.outputs.len();
        ids.map(|id| adapter.layer(id).filter(|low_rank| low_rank.rank() > 0))
    }
}

/// The weights of one decoder layer.
#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    qkv: Linear,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    output: Linear,
    post_norm: Tensor,
    gate_up: Linear,
    down: Linear,
}

/// The decoder of the Llama and Qwen families.
#[derive(Debug)]
pub(super) struct Decoder {
    dimensions: Dimensions,
    linears: Vec<LinearShape>,
    /// `[vocab, hidden]`
    embedding: Tensor,
    layers: Vec<Layer>,
    /// `[hidden]`
    norm: Tensor,
    head: OutputHead,
    rope: Rope,
    backend: Backend,
}

impl Decoder {
    /// Loads the weights from `source`, each once, and puts them on the device. Rows of the embedding from `tokens` on
    /// are left out.
    ///
    /// # Errors
    /// If a tensor is missing, damaged or of another shape than `dimensions` asks for, or the embedding holds a number
    /// that is not finite.
    pub(super) fn new(
        mut dimensions: Dimensions,
        tokens: usize,
        source: &dyn TensorSource,
        placement: Placement,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let rows = dimensions.vocab;
        dimensions.vocab = i64::try_from(tokens).unwrap_or(rows).min(rows);
        let d = &dimensions;
        let Placement { device, dtype, backend } = placement;
        let activations = placement.activations();
        let mut builder = Builder { source, device, weights: dtype.kind(), activations, linears: Vec::new() };
        let table =
            |name: &str| -> Result<Tensor> { Ok(builder.matrix(name, &[rows, d.hidden])?.narrow(0, 0, d.vocab)) };
        let embedding = table("model.embed_tokens.weight")?;
        let head = if d.tied_embeddings { embedding.shallow_clone() } else { table("lm_head.weight")? };
        let layers = (0..d.layers).map(|index| builder.layer(d, index)).collect::<Result<Vec<_>>>()?;
        let norm = builder.vector("model.norm.weight", d.hidden)?;
        // Its rows are read one at a time, so no start-up check of outputs would see a bad one.
        if !d.tied_embeddings && !adapter::is_finite(&embedding) {
            return Err(Error::input(
                "the model's tensor `model.embed_tokens.weight` holds numbers that are not finite (NaN or infinity); fetch \
                 or save the model again",
            ));
        }
        let rope = Rope::new(d.head_dim, d.rope_theta, &d.rope_scaling, device, activations);
        let (head, linears) = (OutputHead::new(head, backend), builder.linears);
        Ok(Self { dimensions, linears, embedding, layers, norm, head, rope, backend })
    }

    /// The rows of the embedding for `ids`, `[token]`, as activations: `[token, hidden]`.
    fn embedded(&self, ids: &Tensor) -> Tensor {
        self.embedding.index_select(0, ids).to_kind(self.norm.kind())
    }
}

impl CausalLm for Decoder {
    fn dimensions(&self) -> &Dimensions {
        &self.dimensions
    }

    fn linears(&self) -> &[LinearShape] {
        &self.linears
    }

    fn head(&self) -> &OutputHead {
        &self.head
    }

    fn forward(&self, ids: &Tensor, positions: &Tensor, attention: &mut dyn Attention, adapter: &Adapter) -> Tensor {
        tape::forward(self, ids, positions, attention, adapter)
    }

    fn forward_with_tape(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        attention: GroupAttention,
        adapter: &Adapter,
        activations: Activations,
    ) -> (Tensor, Tape) {
        tape::forward_with_tape(self, ids, positions, attention, adapter, activations)
    }

    fn backward(&self, tape: Tape, grad_hidden: &Tensor, adapter: &Adapter) {
        adapter::add_gradients(tape::backward(self, tape, grad_hidden, adapter));
    }

    fn decode(&self, ids: &[i64], lengths: &[usize], cache: &mut KvCache, adapter: &Adapter) -> Tensor {
        if self.backend == Backend::Kernels {
            return decode::decode(self, ids, lengths, cache, adapter);
        }
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(self.embedding.device());
        let positions: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        self.forward(&tensor(ids), &tensor(&positions), &mut cache.decode(lengths), adapter)
    }
}

/// The construction of a decoder from its tensors.
struct Builder<'a> {
    source: &'a dyn TensorSource,
    device: Device,
    /// The format of matrices.
    weights: Kind,
    /// The format of norms and biases.
    activations: Kind,
    linears: Vec<LinearShape>,
}

impl Builder<'_> {
    /// A weight matrix, `[outputs, inputs]`.
    fn matrix(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.source.tensor(name, shape)?.to_device(self.device).to_kind(self.weights))
    }

    /// A norm's weight or a bias, `[size]`.
    fn vector(&self, name: &str, size: i64) -> Result<Tensor> {
        Ok(self.source.tensor(name, &[size])?.to_device(self.device).to_kind(self.activations))
    }

    fn layer(&mut self, d: &Dimensions, index: i64) -> Result<Layer> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        let head_norm = |builder: &Self, part: &str| {
            d.qk_norm.then(|| builder.vector(&name(&format!("self_attn.{part}.weight")), d.head_dim)).transpose()
        };
        let qkv = [("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        let gate_up = [("mlp.gate_proj", d.intermediate), ("mlp.up_proj", d.intermediate)];
        Ok(Layer {
            input_norm: self.vector(&name("input_layernorm.weight"), d.hidden)?,
            qkv: self.linear(&name, &qkv, d.hidden, d.qkv_bias)?,
            query_norm: head_norm(self, "q_norm")?,
            key_norm: head_norm(self, "k_norm")?,
            output: self.linear(&name, &[("self_attn.o_proj", d.hidden)], queries, d.output_bias)?,
            post_norm: self.vector(&name("post_attention_layernorm.weight"), d.hidden)?,
            gate_up: self.linear(&name, &gate_up, d.hidden, d.mlp_bias)?,
            down: self.linear(&name, &[("mlp.down_proj", d.hidden)], d.intermediate, d.mlp_bias)?,
        })
    }

    fn linear(
        &mut self,
        name: &dyn Fn(&str) -> String,
        parts: &[(&str, i64)],
        inputs: i64,
        bias: bool,
    ) -> Result<Linear> {
        let first = self.linears.len();
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (part, outputs) in parts {
            let name = name(part);
            weights.push(self.matrix(&format!("{name}.weight"), &[*outputs, inputs])?);
            if bias {
                biases.push(self.vector(&format!("{name}.bias"), *outputs)?);
            }
            self.linears.push(LinearShape { name, inputs, outputs: *outputs });
        }
        Ok(Linear {
            weight: joined(weights),
            bias: bias.then(|| joined(biases)),
            first,
            outputs: parts.iter().map(|(_, outputs)| *outputs).collect(),
        })
    }
}

/// Concatenates tensors, `[outputs, …]`, along their first axis; a single one is not copied.
fn joined(mut tensors: Vec<Tensor>) -> Tensor {
    if tensors.len() == 1 { tensors.remove(0) } else { Tensor::cat(&tensors, 0) }
}

#[cfg(test)]
mod tests;
