//! One token for each running sequence, on the CPU in f32, by the kernels of [`crate::kernel`].
//!
//! The same arithmetic as `Decoder::forward` with a cache, in another order: a team of threads goes through the layers
//! in phases and meets at a barrier after each. Within a phase a thread owns rows (norms, and the inner products of
//! adapters), columns (products with weights) or heads (attention), and writes nothing else.
//!
//! Tensors cannot be shared between threads, so their addresses are collected first; the tensors outlive the pass.

#![expect(unsafe_code, reason = "threads that write disjoint parts of one buffer; see the kernels")]

use super::{Decoder, Linear};
use crate::adapter::{Adapter, LowRank};
use crate::cache::KvCache;
use crate::kernel::{
    Attend, Into, LowRankTerm, Product, Rows, RowsMut, UNIT, attend, gate_silu, members, multiply, rms_norm, rotate,
    share_of, together,
};
use std::ops::Range;
use tch::{Kind, Tensor};

/// A factor of an adapter on one layer.
struct AdapterPart {
    /// `A`, `[rank, inputs]`
    down: Rows,
    /// `B`, `[outputs, rank]`
    up: Rows,
    rank: usize,
    /// `s · g`, one number per rank.
    scales: Vec<f32>,
    /// Its place among the inner products of the fused layer.
    place: usize,
}

/// One layer of those that share a weight matrix.
struct Part {
    columns: Range<usize>,
    adapter: Option<AdapterPart>,
}

struct LinearRows {
    weight: Rows,
    bias: Option<Rows>,
    inputs: usize,
    parts: Vec<Part>,
    /// Ranks of all parts.
    ranks: usize,
}

struct LayerRows {
    input_norm: Rows,
    qkv: LinearRows,
    query_norm: Option<Rows>,
    key_norm: Option<Rows>,
    output: LinearRows,
    post_norm: Rows,
    gate_up: LinearRows,
    down: LinearRows,
    keys: RowsMut,
    values: RowsMut,
}

/// The buffers of a pass: `[row, …]` each.
struct Room {
    /// The residual stream.
    x: RowsMut,
    normed: RowsMut,
    qkv: RowsMut,
    attended: RowsMut,
    gate_up: RowsMut,
    /// The inner products of adapters.
    inner: RowsMut,
}

/// The last hidden states, `[row, hidden]`, of one new token in each of the first `lengths.len()` slots, whose keys and
/// values are written to the cache behind the `lengths` that are there.
pub(super) fn decode(
    decoder: &Decoder,
    ids: &[i64],
    lengths: &[usize],
    cache: &mut KvCache,
    adapter: &Adapter,
) -> Tensor {
    let d = &decoder.dimensions;
    let rows = lengths.len();
    let (hidden, intermediate) = (d.hidden as usize, d.intermediate as usize);
    let (heads, kv_heads, head_dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let device = decoder.embedding.device();

    let ids = Tensor::from_slice(ids);
    let positions: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
    let angles = decoder.rope.angles(&Tensor::from_slice(&positions));
    let (cos, sin) = (Rows::of(&angles.cos), Rows::of(&angles.sin));
    let start = decoder.embedding.index_select(0, &ids);
    let result = Tensor::empty([rows as i64, d.hidden], (Kind::Float, device));

    let layers: Vec<LayerRows> = decoder
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let (keys, values) = cache.layer(index);
            LayerRows {
                input_norm: Rows::of(&layer.input_norm),
                qkv: LinearRows::new(&layer.qkv, adapter),
                query_norm: layer.query_norm.as_ref().map(Rows::of),
                key_norm: layer.key_norm.as_ref().map(Rows::of),
                output: LinearRows::new(&layer.output, adapter),
                post_norm: Rows::of(&layer.post_norm),
                gate_up: LinearRows::new(&layer.gate_up, adapter),
                down: LinearRows::new(&layer.down, adapter),
                keys: RowsMut::of_tensor(keys, kv_heads * head_dim),
                values: RowsMut::of_tensor(values, kv_heads * head_dim),
            }
        })
        .collect();
    let ranks = layers.iter().map(LayerRows::ranks).max().unwrap_or(0);
    let widths = [hidden, (heads + 2 * kv_heads) * head_dim, heads * head_dim, 2 * intermediate, ranks.max(1)];
    let mut buffers = widths.map(|width| vec![0.0f32; rows * width]);
    let mut buffers = buffers.iter_mut().zip(widths).map(|(buffer, width)| RowsMut::of(buffer, width));
    let mut next = || buffers.next().expect("there is a width for each buffer");
    let x = RowsMut::of_tensor(&start, hidden);
    let room = Room { x, normed: next(), qkv: next(), attended: next(), gate_up: next(), inner: next() };
    let (last_norm, last) = (Rows::of(&decoder.norm), RowsMut::of_tensor(&result, hidden));

    let epsilon = d.norm_epsilon as f32;
    let capacity = cache.capacity();
    let members = members(rows * d.parameters() as usize);
    together(members, |member, barrier| {
        let own = share_of(member, members, rows, 1);
        let mut scores = Vec::new();
        // SAFETY: addresses are those of tensors and buffers of the sizes that the network's dimensions give, all of
        // which outlive the team. In each phase, which ends at a barrier, a member writes rows, columns or heads of its
        // own, of a buffer that nobody reads in that phase except where it is written.
        unsafe {
            let norm = |from: RowsMut, weight: Rows, to: RowsMut, width: usize| {
                for row in own.clone() {
                    rms_norm(from.read().slice(row, width), weight.slice(0, width), epsilon, to.slice(row, width));
                }
            };
            let columns = |count: usize| share_of(member, members, count, UNIT);
            for layer in &layers {
                norm(room.x, layer.input_norm, room.normed, hidden);
                layer.qkv.inner(room.normed.read(), own.clone(), room.inner);
                barrier.wait();
                let width = layer.qkv.outputs();
                layer.qkv.columns(room.normed.read(), rows, columns(width), room.qkv, room.inner, Into::Fresh);
                barrier.wait();

                for item in share_of(member, members, rows * kv_heads, 1) {
                    let (row, kv_head) = (item / kv_heads, item % kv_heads);
                    let shared = heads / kv_heads;
                    let half = head_dim / 2;
                    let (cos, sin) = (cos.slice(row, half), sin.slice(row, half));
                    let turn = |head: RowsMut, norm: Option<Rows>| {
                        if let Some(weight) = norm {
                            let plain = head.read().slice(row, head_dim).to_vec();
                            rms_norm(&plain, weight.slice(0, head_dim), epsilon, head.slice(row, head_dim));
                        }
                        rotate(head.slice(row, head_dim), cos, sin);
                    };
                    let first = kv_head * shared;
                    for head in first..first + shared {
                        turn(room.qkv.from_column(head * head_dim), layer.query_norm);
                    }
                    let key = room.qkv.from_column((heads + kv_head) * head_dim);
                    let value = room.qkv.from_column((heads + kv_heads + kv_head) * head_dim);
                    turn(key, layer.key_norm);
                    let place = row * capacity + lengths[row];
                    let (keys, values) =
                        (layer.keys.from_column(kv_head * head_dim), layer.values.from_column(kv_head * head_dim));
                    keys.slice(place, head_dim).copy_from_slice(key.read().slice(row, head_dim));
                    values.slice(place, head_dim).copy_from_slice(value.read().slice(row, head_dim));
                    let work = Attend {
                        queries: room.qkv.from_column(first * head_dim).read().row(row),
                        heads: shared,
                        keys: keys.read().row(row * capacity),
                        values: values.read().row(row * capacity),
                        stride: kv_heads * head_dim,
                        tokens: lengths[row] + 1,
                        head_dim,
                        output: room.attended.from_column(first * head_dim).row(row),
                    };
                    attend(&work, &mut scores);
                }
                barrier.wait();
                if layer.output.ranks > 0 {
                    layer.output.inner(room.attended.read(), own.clone(), room.inner);
                    barrier.wait();
                }
                layer.output.columns(room.attended.read(), rows, columns(hidden), room.x, room.inner, Into::Sum);
                barrier.wait();

                norm(room.x, layer.post_norm, room.normed, hidden);
                layer.gate_up.inner(room.normed.read(), own.clone(), room.inner);
                barrier.wait();
                let mine = columns(intermediate);
                for start in [0, intermediate] {
                    let columns = start + mine.start..start + mine.end;
                    layer.gate_up.columns(room.normed.read(), rows, columns, room.gate_up, room.inner, Into::Fresh);
                }
                let (gate, up) = (room.gate_up.from_column(mine.start), room.gate_up.from_column(intermediate + mine.start));
                for row in 0..rows {
                    gate_silu(gate.slice(row, mine.len()), up.read().slice(row, mine.len()));
                }
                barrier.wait();
                if layer.down.ranks > 0 {
                    layer.down.inner(room.gate_up.read(), own.clone(), room.inner);
                    barrier.wait();
                }
                layer.down.columns(room.gate_up.read(), rows, columns(hidden), room.x, room.inner, Into::Sum);
                barrier.wait();
            }
            norm(room.x, last_norm, last, hidden);
        }
    });
    result
}

impl LayerRows {
    fn ranks(&self) -> usize {
        [&self.qkv, &self.output, &self.gate_up, &self.down].map(|linear| linear.ranks).into_iter().max().unwrap_or(0)
    }
}

impl LinearRows {
    fn new(linear: &Linear, adapter: &Adapter) -> Self {
        let mut ranks = 0;
        let mut parts = Vec::with_capacity(linear.outputs.len());
        for (columns, adapter) in linear.columns().zip(linear.adapters(adapter)) {
            let columns = columns.start as usize..columns.end as usize;
            let adapter = adapter.map(|low_rank| AdapterPart::new(low_rank, ranks));
            ranks += adapter.as_ref().map_or(0, |adapter| adapter.rank);
            parts.push(Part { columns, adapter });
        }
        Self {
            weight: Rows::of(&linear.weight),
            bias: linear.bias.as_ref().map(Rows::of),
            inputs: linear.weight.size()[1] as usize,
            parts,
            ranks,
        }
    }

    fn outputs(&self) -> usize {
        self.parts.last().map_or(0, |part| part.columns.end)
    }

    /// `u = s · g ∘ (A x)` of every part, for some rows.
    ///
    /// # Safety
    /// `x` has `inputs` numbers in each of these rows and `inner` as many as there are ranks, which nobody else uses.
    unsafe fn inner(&self, x: Rows, rows: Range<usize>, inner: RowsMut) {
        for adapter in self.parts.iter().filter_map(|part| part.adapter.as_ref()) {
            let product = Product { weight: adapter.down, inputs: self.inputs, bias: None, low_rank: None };
            let to = inner.from_column(adapter.place);
            let (from, first) = (x.from_row(rows.start), to.from_row(rows.start));
            // SAFETY: the caller's promise.
            unsafe {
                multiply(&product, from, rows.len(), 0..adapter.rank, first, Into::Fresh);
                for row in rows.clone() {
                    for (u, scale) in to.slice(row, adapter.rank).iter_mut().zip(&adapter.scales) {
                        *u *= scale;
                    }
                }
            }
        }
    }

    /// Some columns of the layer's output, adapters included.
    ///
    /// # Safety
    /// `x` has `inputs` numbers in each row, `inner` is what [`Self::inner`] made of it, and nobody else uses these
    /// columns of `y`.
    unsafe fn columns(&self, x: Rows, rows: usize, columns: Range<usize>, y: RowsMut, inner: RowsMut, into: Into) {
        for part in &self.parts {
            let both = columns.start.max(part.columns.start)..columns.end.min(part.columns.end);
            if both.is_empty() {
                continue;
            }
            let low_rank = part.adapter.as_ref().map(|adapter| LowRankTerm {
                inner: inner.read().from_column(adapter.place),
                up: adapter.up.numbered_from(part.columns.start),
                rank: adapter.rank,
            });
            let product = Product { weight: self.weight, inputs: self.inputs, bias: self.bias, low_rank };
            // SAFETY: the caller's promise.
            unsafe { multiply(&product, x, rows, both, y, into) }
        }
    }
}

impl AdapterPart {
    fn new(layer: &LowRank, place: usize) -> Self {
        let rank = layer.rank() as usize;
        let scales = match &layer.gate {
            // SAFETY: a gate has one number per rank.
            Some(gate) => unsafe { Rows::of(gate).slice(0, rank) }.iter().map(|gate| gate * layer.scale as f32).collect(),
            None => vec![layer.scale as f32; rank],
        };
        Self { down: Rows::of(&layer.a), up: Rows::of(&layer.b), rank, scales, place }
    }
}
