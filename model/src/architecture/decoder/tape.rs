//! The decoder's forward pass on whole batches, and its backward pass written by hand.
//!
//! Autograd would keep the result of every operation for every layer. A frozen base needs far fewer: the residual
//! stream at both norms, queries, keys and values, the inputs of the feed-forward gate, and the adapters' thin inner
//! products. Norms and gates are recomputed in the backward pass, at the cost of one pass over memory each. Attention
//! without a kernel of ours is left to autograd, one layer at a time. With [`Activations::Recomputed`] (gradient
//! checkpointing, Chen et al. 2016, arXiv:1604.06174) a layer keeps its input alone and runs forward a second time in
//! the backward pass: the memory of one layer instead of all, for a third more arithmetic, and the same gradient.
//!
//! In the backward pass `∂x` arrives from the layer above and passes the feed-forward part, then attention:
//!
//! ```text
//! x₁ = x₀ + O(attend(rope(Q n₀, K n₀), V n₀))     n₀ = norm(x₀)
//! x₂ = x₁ + D(silu(G n₁) ∘ U n₁)                  n₁ = norm(x₁)
//! ```

use super::arithmetic::{Gradient, Inner, Rotation};
use super::{Decoder, Layer};
use crate::adapter::Adapter;
use crate::architecture::rope::Angles;
use crate::attention::{Attention, GroupAttention};
use crate::backend::Backend;
use crate::kernel::attention::packed::{self, HeadShape};
use tch::{Kind, Tensor};

/// The saved tensors of one forward pass, for its backward pass.
#[derive(Debug)]
pub struct Tape {
    layers: Vec<Kept>,
    attention: GroupAttention,
    angles: Angles,
    /// The residual stream after the last layer, `[token, hidden]`.
    x: Tensor,
    /// The inverse RMS of `x`, `[token, 1]`.
    inverse: Tensor,
}

/// The treatment of a layer's activations between forward and backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// Kept in memory.
    #[default]
    Kept,
    /// Recomputed from the layer's input.
    Recomputed,
}

/// The part of a layer's forward pass to keep: its tape, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Tape,
    Nothing,
}

/// The part of a layer's forward pass that was kept.
#[derive(Debug)]
enum Kept {
    Tape(Box<LayerTape>),
    /// `[token, hidden]`
    Input(Tensor),
}

/// The saved tensors of one layer.
#[derive(Debug)]
struct LayerTape {
    x: Tensor,
    inverse: Tensor,
    qkv: Inner,
    heads: HeadTape,
    attended: Tensor,
    output: Inner,
    middle: Tensor,
    middle_inverse: Tensor,
    gate_up: Tensor,
    gate_up_inner: Inner,
    down: Inner,
}

/// The saved tensors of one layer's attention.
#[derive(Debug)]
struct HeadTape {
    mixing: Mixing,
    query_norm: Option<NormTape>,
    key_norm: Option<NormTape>,
}

/// The inputs and results of mixing values.
#[derive(Debug)]
enum Mixing {
    /// By our kernel: its input, `[token, (heads + 2 kv_heads) · head_dim]`, and the logarithms of its softmax sums,
    /// `[token, heads]`.
    Packed { qkv: Tensor, log_sums: Tensor },
    /// By libtorch: queries, keys and values, leaves of its graph, and its result, `[token, heads, head_dim]`.
    Recorded { q: Tensor, k: Tensor, v: Tensor, mixed: Tensor },
}

/// The input, `[token · head, head_dim]`, and the inverse RMS of a norm over single heads.
#[derive(Debug)]
struct NormTape {
    x: Tensor,
    inverse: Tensor,
}

/// Runs the forward pass without gradient; returns the last hidden states, `[token, hidden]`.
pub(super) fn forward(
    decoder: &Decoder,
    ids: &Tensor,
    positions: &Tensor,
    attention: &mut dyn Attention,
    adapter: &Adapter,
) -> Tensor {
    let _no_grad = tch::no_grad_guard();
    let angles = decoder.rope.angles(positions);
    let mut x = decoder.embedded(ids);
    for index in 0..decoder.layers.len() {
        x = layer_forward(decoder, index, x, &angles, attention, adapter, Keep::Nothing).0;
    }
    decoder.backend.norm(&x, &decoder.norm, decoder.dimensions.norm_epsilon).0
}

/// Runs the forward pass; returns the last hidden states, `[token, hidden]`, and the tape.
pub(super) fn forward_with_tape(
    decoder: &Decoder,
    ids: &Tensor,
    positions: &Tensor,
    mut attention: GroupAttention,
    adapter: &Adapter,
    activations: Activations,
) -> (Tensor, Tape) {
    let _no_grad = tch::no_grad_guard();
    let angles = decoder.rope.angles(positions);
    let mut x = decoder.embedded(ids);
    let mut layers = Vec::with_capacity(decoder.layers.len());
    for index in 0..decoder.layers.len() {
        let next;
        let kept = match activations {
            Activations::Kept => {
                let (after, tape) = layer_forward(decoder, index, x, &angles, &mut attention, adapter, Keep::Tape);
                next = after;
                Kept::Tape(Box::new(tape))
            }
            Activations::Recomputed => {
                let input = x.shallow_clone();
                next = layer_forward(decoder, index, x, &angles, &mut attention, adapter, Keep::Nothing).0;
                Kept::Input(input)
            }
        };
        layers.push(kept);
        x = next;
    }
    let (hidden, inverse) = decoder.backend.norm(&x, &decoder.norm, decoder.dimensions.norm_epsilon);
    (hidden, Tape { layers, attention, angles, x, inverse })
}

/// Runs one layer on `x`, `[token, hidden]`; returns the residual stream after it and the layer's tape.
fn layer_forward(
    decoder: &Decoder,
    index: usize,
    x: Tensor,
    angles: &Angles,
    attention: &mut dyn Attention,
    adapter: &Adapter,
    keep: Keep,
) -> (Tensor, LayerTape) {
    let (backend, epsilon) = (decoder.backend, decoder.dimensions.norm_epsilon);
    let layer = &decoder.layers[index];
    let (normed, inverse) = backend.norm(&x, &layer.input_norm, epsilon);
    let (qkv, qkv_inner) = backend.linear(&layer.qkv, &normed, adapter);
    let (attended, heads) = attend(decoder, index, qkv, angles, attention, keep);
    let middle = x.copy();
    let output = backend.add_linear(&layer.output, &attended, adapter, &middle);

    let (normed, middle_inverse) = backend.norm(&middle, &layer.post_norm, epsilon);
    let (gate_up, gate_up_inner) = backend.linear(&layer.gate_up, &normed, adapter);
    let next = middle.copy();
    let down = backend.add_linear(&layer.down, &backend.swiglu(&gate_up), adapter, &next);
    let tape = LayerTape {
        x,
        inverse,
        qkv: qkv_inner,
        heads,
        attended,
        output,
        middle,
        middle_inverse,
        gate_up,
        gate_up_inner,
        down,
    };
    (next, tape)
}

/// Norms and rotates the heads of the fused output `qkv`, and attends; returns `[token, heads · head_dim]`.
fn attend(
    decoder: &Decoder,
    index: usize,
    qkv: Tensor,
    angles: &Angles,
    attention: &mut dyn Attention,
    keep: Keep,
) -> (Tensor, HeadTape) {
    let (d, backend, layer) = (&decoder.dimensions, decoder.backend, &decoder.layers[index]);
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let norm = |start: i64, width: i64, weight: Option<&Tensor>| {
        let part = qkv.narrow(1, start, width);
        let x = weight.map(|_| part.reshape([-1, d.head_dim]).copy())?;
        let (normed, inverse) = backend.norm(&x, weight?, d.norm_epsilon);
        part.shallow_clone().copy_(&normed.reshape_as(&part));
        Some(NormTape { x, inverse })
    };
    let query_norm = norm(0, queries, layer.query_norm.as_ref());
    let key_norm = norm(queries, keys, layer.key_norm.as_ref());
    backend.rotate(&qkv, queries + keys, angles, Rotation::Forward);
    if let (Backend::Kernels, Some(groups)) = (backend, attention.groups()) {
        let (mixed, log_sums) = packed::forward(&qkv, groups, shape(decoder));
        return (mixed, HeadTape { mixing: Mixing::Packed { qkv, log_sums }, query_norm, key_norm });
    }

    let heads = |start: i64, width: i64| {
        let part = qkv.narrow(1, start, width).reshape([-1, width / d.head_dim, d.head_dim]).detach();
        if keep == Keep::Tape { part.set_requires_grad(true) } else { part }
    };
    let (q, k, v) = (heads(0, queries), heads(queries, keys), heads(queries + keys, keys));
    let mixed = match keep {
        Keep::Tape => tch::with_grad(|| attention.attend(index, &q, &k, &v)),
        Keep::Nothing => attention.attend(index, &q, &k, &v),
    };
    let attended = mixed.detach().reshape([q.size()[0], -1]).contiguous();
    (attended, HeadTape { mixing: Mixing::Recorded { q, k, v, mixed }, query_norm, key_norm })
}

fn shape(decoder: &Decoder) -> HeadShape {
    let d = &decoder.dimensions;
    HeadShape { heads: d.heads as usize, kv_heads: d.kv_heads as usize, head_dim: d.head_dim as usize }
}

/// The gradients of the adapter's tensors.
///
/// * `grad_hidden`: the gradient with respect to the last hidden states, `[token, hidden]`
pub(super) fn backward(decoder: &Decoder, tape: Tape, grad_hidden: &Tensor, adapter: &Adapter) -> Vec<Gradient> {
    let (backend, epsilon) = (decoder.backend, decoder.dimensions.norm_epsilon);
    let Tape { layers, mut attention, angles, x, inverse } = tape;
    let mut gradients = Vec::new();
    let mut grad_x = grad_hidden.zeros_like();
    tch::no_grad(|| backend.norm_backward(&grad_hidden.contiguous(), &x, &decoder.norm, &inverse, &mut grad_x));
    // From the last layer to the first; each layer's tape is dropped after use.
    for (index, (layer, kept)) in decoder.layers.iter().zip(layers).enumerate().rev() {
        let tape = match kept {
            Kept::Tape(tape) => *tape,
            Kept::Input(x) => {
                tch::no_grad(|| layer_forward(decoder, index, x, &angles, &mut attention, adapter, Keep::Tape)).1
            }
        };
        let grad_attended = tch::no_grad(|| {
            let mixed = backend.swiglu(&tape.gate_up);
            let grad_mixed = backend.linear_backward(&layer.down, &mixed, &grad_x, adapter, &tape.down, &mut gradients);
            let grad_gate_up = backend.swiglu_backward(&grad_mixed, &tape.gate_up);
            let (normed, _) = backend.norm(&tape.middle, &layer.post_norm, epsilon);
            let inner = &tape.gate_up_inner;
            let grad_normed =
                backend.linear_backward(&layer.gate_up, &normed, &grad_gate_up, adapter, inner, &mut gradients);
            backend.norm_backward(&grad_normed, &tape.middle, &layer.post_norm, &tape.middle_inverse, &mut grad_x);
            backend.linear_backward(&layer.output, &tape.attended, &grad_x, adapter, &tape.output, &mut gradients)
        });
        let grad_qkv = match &tape.heads.mixing {
            Mixing::Packed { qkv, log_sums } => {
                let groups = attention.groups().unwrap_or_default();
                packed::backward(qkv, &tape.attended, log_sums, &grad_attended, groups, shape(decoder))
            }
            Mixing::Recorded { q, k, v, mixed } => {
                let product = (mixed * grad_attended.reshape_as(mixed)).sum(Kind::Float);
                let grad_heads = Tensor::run_backward(&[product], &[q, k, v], false, false);
                let flat: Vec<Tensor> = grad_heads.iter().map(|it| it.reshape([it.size()[0], -1])).collect();
                Tensor::cat(&flat, 1)
            }
        };
        tch::no_grad(|| {
            heads_backward(decoder, layer, &tape.heads, &grad_qkv, &angles);
            let (normed, _) = backend.norm(&tape.x, &layer.input_norm, epsilon);
            let grad_normed =
                backend.linear_backward(&layer.qkv, &normed, &grad_qkv, adapter, &tape.qkv, &mut gradients);
            // Below the first layer is the frozen embedding.
            if index > 0 {
                backend.norm_backward(&grad_normed, &tape.x, &layer.input_norm, &tape.inverse, &mut grad_x);
            }
        });
    }
    gradients
}

/// Turns the gradient of attention's input, `[token, (heads + 2 kv_heads) · head_dim]`, into that of the fused output,
/// in place.
fn heads_backward(decoder: &Decoder, layer: &Layer, heads: &HeadTape, grad_qkv: &Tensor, angles: &Angles) {
    let (d, backend) = (&decoder.dimensions, decoder.backend);
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    backend.rotate(grad_qkv, queries + keys, angles, Rotation::Backward);
    let norms = [(0, queries, &heads.query_norm, &layer.query_norm), (queries, keys, &heads.key_norm, &layer.key_norm)];
    for (start, width, tape, weight) in norms {
        let Some((tape, weight)) = tape.as_ref().zip(weight.as_ref()) else { continue };
        let mut part = grad_qkv.narrow(1, start, width);
        let grad_normed = part.reshape([-1, d.head_dim]).contiguous();
        let mut grad_x = grad_normed.zeros_like();
        backend.norm_backward(&grad_normed, &tape.x, weight, &tape.inverse, &mut grad_x);
        part.copy_(&grad_x.reshape_as(&part));
    }
}
