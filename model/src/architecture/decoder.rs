//! The pre-norm decoder that the Llama and Qwen families share.
//!
//! `x += o(attend(rope(norm(q(n))), rope(norm(k(n))), v(n)))`, then `x += down(silu(gate(n)) · up(n))`, where `n` is
//! the RMS norm of `x` (Zhang & Sennrich 2019) and `SwiGLU` is Shazeer's (2020). Queries, keys and values share one
//! weight matrix, and so do gate and up: one matrix product instead of three and two. Frozen weights need no
//! gradients, so the backward pass computes and saves nothing for them.
//!
//! The passes are in [`tape`] (whole batches, and their gradient) and [`decode`] (one token per running sequence).

mod arithmetic;
mod decode;
mod tape;

pub use tape::{Activations, Tape};

use super::rope::{Rope, RopeScaling};
use super::{CausalLm, TensorSource};
use crate::adapter::{self, Adapter, LowRank};
use crate::attention::{Attention, GroupAttention};
use crate::cache::KvCache;
use crate::device::Dtype;
use crate::{Error, Result};
use arithmetic::Arithmetic;
use serde_json::Value;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The sizes of a decoder, as the hub's `config.json` gives them.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent key of the hub's config.json")]
pub struct Dimensions {
    /// Tokens in the vocabulary.
    pub vocab: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Width inside the feed-forward layer.
    pub intermediate: i64,
    /// Decoder layers.
    pub layers: i64,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Added to the mean square inside each RMS norm.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Tokens of context the model was made for.
    pub max_position: i64,
    /// Whether the output head is the embedding matrix.
    pub tied_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normed per head.
    pub qk_norm: bool,
}

impl Dimensions {
    /// All parameters of the network, tied ones counted once.
    pub fn parameters(&self) -> i64 {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        let layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden;
        let tables = if self.tied_embeddings { 1 } else { 2 };
        self.layers * layer + tables * self.vocab * self.hidden + self.hidden
    }
}

/// Typed access to a `config.json`, with errors that name the key.
pub(super) struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    pub(super) fn new(config: &'a Value) -> Self {
        Self(config)
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Refuses a config that turns windowed attention on: no layer here forgets.
    pub(super) fn refuse_sliding_window(&self) -> Result<()> {
        if self.flag("use_sliding_window") {
            return Err(Error::input(
                "config.json: use_sliding_window = true is not supported; models that were released with it off work",
            ));
        }
        Ok(())
    }

    fn positive(&self, key: &str) -> Result<i64> {
        self.optional(key)?.ok_or_else(|| Error::input(format!("config.json: `{key}` is missing")))
    }

    fn optional(&self, key: &str) -> Result<Option<i64>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_i64().filter(|number| (1..=1 << 32).contains(number)).map(Some).ok_or_else(|| {
                Error::input(format!("config.json: `{key}` must be a positive whole number, but is {value}"))
            }),
        }
    }

    /// The sizes that all families share; biases and norms off.
    pub(super) fn dimensions(&self) -> Result<Dimensions> {
        let hidden = self.positive("hidden_size")?;
        let heads = self.positive("num_attention_heads")?;
        let kv_heads = self.optional("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Error::input(format!(
                "config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        let activation = self.0.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::input(format!("config.json: hidden_act `{activation}` is not supported, only silu is")));
        }
        // transformers 5 writes `rope_parameters` where older versions wrote `rope_scaling` and `rope_theta`.
        let rope = self.0.get("rope_parameters").or(self.0.get("rope_scaling")).filter(|value| !value.is_null());
        let theta = self.0.get("rope_theta").or(rope.and_then(|rope| rope.get("rope_theta"))).and_then(Value::as_f64);
        Ok(Dimensions {
            vocab: self.positive("vocab_size")?,
            hidden,
            intermediate: self.positive("intermediate_size")?,
            layers: self.positive("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim: self.optional("head_dim")?.unwrap_or(hidden / heads),
            norm_epsilon: self.0.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::parse(rope)?,
            max_position: self.optional("max_position_embeddings")?.unwrap_or(2048),
            tied_embeddings: self.flag("tie_word_embeddings"),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
        })
    }
}

/// A linear layer that an adapter may attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// The hub's name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Columns of the weight.
    pub inputs: i64,
    /// Rows of the weight.
    pub outputs: i64,
}

/// One or several linear layers with a common input and one weight matrix.
#[derive(Debug)]
struct Linear {
    /// `[sum of outputs, inputs]`
    weight: Tensor,
    /// `[sum of outputs]`
    bias: Option<Tensor>,
    /// The id of the first part, and the outputs of each part in order.
    first: usize,
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

    /// What the adapter has for each part.
    fn adapters<'a>(&self, adapter: &'a Adapter) -> impl Iterator<Item = Option<&'a LowRank>> {
        let ids = self.first..self.first + self.outputs.len();
        ids.map(|id| adapter.layer(id).filter(|low_rank| low_rank.rank() > 0))
    }
}

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
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
    rope: Rope,
    arithmetic: Arithmetic,
}

impl Decoder {
    pub(super) fn new(dimensions: Dimensions, source: &dyn TensorSource, device: Device, dtype: Dtype) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let d = &dimensions;
        let activations = dtype.activations(device);
        let mut builder = Builder { source, device, weights: dtype.kind(), activations, linears: Vec::new() };
        let embedding = builder.matrix("model.embed_tokens.weight", &[d.vocab, d.hidden])?;
        let layers = (0..d.layers).map(|index| builder.layer(d, index)).collect::<Result<Vec<_>>>()?;
        let norm = builder.vector("model.norm.weight", d.hidden)?;
        let head = if d.tied_embeddings {
            embedding.shallow_clone()
        } else {
            builder.matrix("lm_head.weight", &[d.vocab, d.hidden])?
        };
        let rope = Rope::new(d.head_dim, d.rope_theta, &d.rope_scaling, device, activations);
        let linears = builder.linears;
        let arithmetic = Arithmetic::of(device);
        Ok(Self { dimensions, linears, embedding, layers, norm, head, rope, arithmetic })
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

    fn head(&self) -> &Tensor {
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

    fn backward(&self, tape: Tape, by_hidden: &Tensor, adapter: &Adapter) {
        adapter::add_gradients(tape::backward(self, tape, by_hidden, adapter));
    }

    fn decode(&self, ids: &[i64], lengths: &[usize], cache: &mut KvCache, adapter: &Adapter) -> Tensor {
        if self.arithmetic == Arithmetic::Kernels {
            return decode::decode(self, ids, lengths, cache, adapter);
        }
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(self.embedding.device());
        let positions: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        self.forward(&tensor(ids), &tensor(&positions), &mut cache.decode(lengths), adapter)
    }
}

struct Builder<'a> {
    source: &'a dyn TensorSource,
    device: Device,
    /// The format of what is multiplied with, and of what is added to activations or scales them.
    weights: Kind,
    activations: Kind,
    linears: Vec<LinearShape>,
}

impl Builder<'_> {
    fn matrix(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.source.tensor(name, shape)?.to_device(self.device).to_kind(self.weights))
    }

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

/// The tensors below each other; a single one is not copied.
fn joined(mut tensors: Vec<Tensor>) -> Tensor {
    if tensors.len() == 1 { tensors.remove(0) } else { Tensor::cat(&tensors, 0) }
}

#[cfg(test)]
mod tests;
