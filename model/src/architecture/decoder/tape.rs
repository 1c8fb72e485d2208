//! The decoder's forward pass, and its gradient written out by hand.
//!
//! Autograd would keep the result of every operation for every layer. A frozen base needs far fewer: the residual
//! stream at both norms, queries, keys and values, the inputs of the feed-forward gate, and the adapters' thin inner
//! products. Norms and gates are computed again on the way back, at the cost of one pass over memory each. Where no kernel
//! of ours attends, attention alone is left to autograd, one layer at a time. With [`Activations::Recomputed`] (gradient
//! checkpointing, Chen et al. 2016, arXiv:1604.06174) a layer keeps its input alone and passes forward a second time on
//! the way back: the memory of one layer instead of all, for a third more arithmetic, and the same gradient.
//!
//! Going back, `∂x` arrives from the layer above and passes the feed-forward part, then attention:
//!
//! ```text
//! x₁ = x₀ + O(attend(rope(Q n₀, K n₀), V n₀))     n₀ = norm(x₀)
//! x₂ = x₁ + D(silu(G n₁) ∘ U n₁)                  n₁ = norm(x₁)
//! ```

use super::arithmetic::{Arithmetic, Gradient, Inner, Turn};
use super::{Decoder, Layer};
use crate::adapter::Adapter;
use crate::architecture::rope::Angles;
use crate::attention::{Attention, GroupAttention};
use crate::kernel::heads::{self, HeadShape};
use tch::{Kind, Tensor};

/// What the gradient of one forward pass needs.
#[derive(Debug)]
pub struct Tape {
    layers: Vec<Kept>,
    attention: GroupAttention,
    angles: Angles,
    /// The residual stream behind the last layer, and what its norm divided it by.
    x: Tensor,
    inverse: Tensor,
}

/// What becomes of a layer's activations until the gradient needs them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// They are kept.
    #[default]
    Kept,
    /// They are computed again from the layer's input.
    Recomputed,
}

/// Whether a layer's pass will be gone back through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Tape,
    Nothing,
}

/// What is left of a layer's pass.
#[derive(Debug)]
enum Kept {
    Tape(Box<LayerTape>),
    /// `[token, hidden]`
    Input(Tensor),
}

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

/// What the gradient of attention needs.
#[derive(Debug)]
struct HeadTape {
    mixing: Mixing,
    query_norm: Option<NormTape>,
    key_norm: Option<NormTape>,
}

#[derive(Debug)]
enum Mixing {
    /// By our kernel: the sheet that it read, and the logarithms of its sums.
    Packed { qkv: Tensor, logs: Tensor },
    /// By libtorch: queries, keys and values, leaves of its graph, and what it gave.
    Recorded { q: Tensor, k: Tensor, v: Tensor, mixed: Tensor },
}

/// A norm over single heads, `[token · head, head_dim]`.
#[derive(Debug)]
struct NormTape {
    x: Tensor,
    inverse: Tensor,
}

/// The last hidden states, `[token, hidden]`.
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
        x = through(decoder, index, x, &angles, attention, adapter, Keep::Nothing).0;
    }
    decoder.arithmetic.norm(&x, &decoder.norm, decoder.dimensions.norm_epsilon).0
}

/// The same, and the tape.
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
                let (behind, tape) = through(decoder, index, x, &angles, &mut attention, adapter, Keep::Tape);
                next = behind;
                Kept::Tape(Box::new(tape))
            }
            Activations::Recomputed => {
                let input = x.shallow_clone();
                next = through(decoder, index, x, &angles, &mut attention, adapter, Keep::Nothing).0;
                Kept::Input(input)
            }
        };
        layers.push(kept);
        x = next;
    }
    let (hidden, inverse) = decoder.arithmetic.norm(&x, &decoder.norm, decoder.dimensions.norm_epsilon);
    (hidden, Tape { layers, attention, angles, x, inverse })
}

/// Through one layer: the residual stream behind it, and what its gradient needs.
fn through(
    decoder: &Decoder,
    index: usize,
    x: Tensor,
    angles: &Angles,
    attention: &mut dyn Attention,
    adapter: &Adapter,
    keep: Keep,
) -> (Tensor, LayerTape) {
    let (arithmetic, epsilon) = (decoder.arithmetic, decoder.dimensions.norm_epsilon);
    let layer = &decoder.layers[index];
    let (normed, inverse) = arithmetic.norm(&x, &layer.input_norm, epsilon);
    let (qkv, qkv_inner) = arithmetic.linear(&layer.qkv, &normed, adapter);
    let (attended, heads) = attend(decoder, index, qkv, angles, attention, keep);
    let middle = x.copy();
    let output = arithmetic.add_linear(&layer.output, &attended, adapter, &middle);

    let (normed, middle_inverse) = arithmetic.norm(&middle, &layer.post_norm, epsilon);
    let (gate_up, gate_up_inner) = arithmetic.linear(&layer.gate_up, &normed, adapter);
    let next = middle.copy();
    let down = arithmetic.add_linear(&layer.down, &arithmetic.gated(&gate_up), adapter, &next);
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

/// Norms and turns the heads of the fused output, and attends: `[token, heads · head_dim]`.
fn attend(
    decoder: &Decoder,
    index: usize,
    qkv: Tensor,
    angles: &Angles,
    attention: &mut dyn Attention,
    keep: Keep,
) -> (Tensor, HeadTape) {
    let (d, arithmetic, layer) = (&decoder.dimensions, decoder.arithmetic, &decoder.layers[index]);
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let norm = |start: i64, width: i64, weight: Option<&Tensor>| {
        let part = qkv.narrow(1, start, width);
        let x = weight.map(|_| part.reshape([-1, d.head_dim]).copy())?;
        let (normed, inverse) = arithmetic.norm(&x, weight?, d.norm_epsilon);
        part.shallow_clone().copy_(&normed.reshape_as(&part));
        Some(NormTape { x, inverse })
    };
    let query_norm = norm(0, queries, layer.query_norm.as_ref());
    let key_norm = norm(queries, keys, layer.key_norm.as_ref());
    arithmetic.rotate(&qkv, queries + keys, angles, Turn::Forward);
    if let (Arithmetic::Kernels, Some(groups)) = (arithmetic, attention.groups()) {
        let (mixed, logs) = heads::attend(&qkv, groups, shape(decoder));
        return (mixed, HeadTape { mixing: Mixing::Packed { qkv, logs }, query_norm, key_norm });
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

/// The gradients of the adapter's tensors, given that of the last hidden states, `[token, hidden]`.
pub(super) fn backward(decoder: &Decoder, tape: Tape, by_hidden: &Tensor, adapter: &Adapter) -> Vec<Gradient> {
    let (arithmetic, epsilon) = (decoder.arithmetic, decoder.dimensions.norm_epsilon);
    let Tape { layers, mut attention, angles, x, inverse } = tape;
    let mut gradients = Vec::new();
    let mut by_x = by_hidden.zeros_like();
    tch::no_grad(|| arithmetic.norm_gradient(&by_hidden.contiguous(), &x, &decoder.norm, &inverse, &mut by_x));
    // From the last layer; a layer's tape is dropped as soon as it has been used.
    for (index, (layer, kept)) in decoder.layers.iter().zip(layers).enumerate().rev() {
        let tape = match kept {
            Kept::Tape(tape) => *tape,
            Kept::Input(x) => {
                tch::no_grad(|| through(decoder, index, x, &angles, &mut attention, adapter, Keep::Tape)).1
            }
        };
        let by_attended = tch::no_grad(|| {
            let mixed = arithmetic.gated(&tape.gate_up);
            let by_mixed = arithmetic.linear_gradient(&layer.down, &mixed, &by_x, adapter, &tape.down, &mut gradients);
            let by_gate_up = arithmetic.gated_gradient(&by_mixed, &tape.gate_up);
            let (normed, _) = arithmetic.norm(&tape.middle, &layer.post_norm, epsilon);
            let inner = &tape.gate_up_inner;
            let by_normed =
                arithmetic.linear_gradient(&layer.gate_up, &normed, &by_gate_up, adapter, inner, &mut gradients);
            arithmetic.norm_gradient(&by_normed, &tape.middle, &layer.post_norm, &tape.middle_inverse, &mut by_x);
            arithmetic.linear_gradient(&layer.output, &tape.attended, &by_x, adapter, &tape.output, &mut gradients)
        });
        let by_qkv = match &tape.heads.mixing {
            Mixing::Packed { qkv, logs } => {
                let groups = attention.groups().unwrap_or_default();
                heads::attend_gradient(qkv, &tape.attended, logs, &by_attended, groups, shape(decoder))
            }
            Mixing::Recorded { q, k, v, mixed } => {
                let pulled = (mixed * by_attended.reshape_as(mixed)).sum(Kind::Float);
                let by_heads = Tensor::run_backward(&[pulled], &[q, k, v], false, false);
                let flat: Vec<Tensor> = by_heads.iter().map(|it| it.reshape([it.size()[0], -1])).collect();
                Tensor::cat(&flat, 1)
            }
        };
        tch::no_grad(|| {
            unturn(decoder, layer, &tape.heads, &by_qkv, &angles);
            let (normed, _) = arithmetic.norm(&tape.x, &layer.input_norm, epsilon);
            let by_normed =
                arithmetic.linear_gradient(&layer.qkv, &normed, &by_qkv, adapter, &tape.qkv, &mut gradients);
            // Below the first layer is the frozen embedding.
            if index > 0 {
                arithmetic.norm_gradient(&by_normed, &tape.x, &layer.input_norm, &tape.inverse, &mut by_x);
            }
        });
    }
    gradients
}

/// From the gradient of what attention got, `[token, queries + 2 keys]`, to that of the fused output, in place.
fn unturn(decoder: &Decoder, layer: &Layer, heads: &HeadTape, by_qkv: &Tensor, angles: &Angles) {
    let (d, arithmetic) = (&decoder.dimensions, decoder.arithmetic);
    let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    arithmetic.rotate(by_qkv, queries + keys, angles, Turn::Back);
    let norms = [(0, queries, &heads.query_norm, &layer.query_norm), (queries, keys, &heads.key_norm, &layer.key_norm)];
    for (start, width, tape, weight) in norms {
        let Some((tape, weight)) = tape.as_ref().zip(weight.as_ref()) else { continue };
        let mut part = by_qkv.narrow(1, start, width);
        let above = part.reshape([-1, d.head_dim]).contiguous();
        let mut by_x = above.zeros_like();
        arithmetic.norm_gradient(&above, &tape.x, weight, &tape.inverse, &mut by_x);
        part.copy_(&by_x.reshape_as(&part));
    }
}
