//! Decoding of one token per running sequence, on the CPU in f32, by the kernels of [`crate::kernel`].
//!
//! The arithmetic is that of `Decoder::forward` with a cache, in another order: threads go through the layers in phases
//! and meet at a barrier after each. Within a phase a thread owns rows (norms, and the inner products of adapters),
//! columns (products with weights) or heads (attention), and writes nothing else.
//!
//! Tensors cannot be shared between threads, so their addresses are collected first; the tensors outlive the pass.

#![expect(unsafe_code, reason = "threads that write disjoint parts of one buffer; see the kernels")]

use super::{Decoder, Layer, Linear};
use crate::adapter::{Adapter, LowRank};
use crate::cache::KvCache;
use crate::dimensions::Dimensions;
use crate::kernel::attention::{self, DecodeHeads};
use crate::kernel::{
    Accumulate, Barrier, Gemm, LowRankTerm, Matrix, Rows, RowsMut, UNIT, gate_silu, gemm, rms_norm, rotate,
    run_threads, share_of, thread_count,
};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Views of an adapter's factors on one layer.
struct AdapterPart {
    /// `A`, `[rank, inputs]`.
    down: Rows,
    /// `B`, `[outputs, rank]`.
    up: Rows,
    rank: usize,
    /// `s · g`, `[rank]`.
    scales: Vec<f32>,
    /// The adapter's first column among the inner products of the fused layer.
    first: usize,
}

/// One of the layers that share a weight matrix.
struct Part {
    columns: Range<usize>,
    adapter: Option<AdapterPart>,
}

/// Views of a fused linear layer and its adapters.
struct LinearRows {
    weight: Matrix,
    bias: Option<Rows>,
    inputs: usize,
    parts: Vec<Part>,
    /// Sum of the ranks of all parts.
    ranks: usize,
}

/// Views of a decoder layer, and of its keys and values in the cache.
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

/// The buffers of a pass, `[row, …]` each.
struct Buffers {
    /// The residual stream.
    x: RowsMut,
    normed: RowsMut,
    qkv: RowsMut,
    attended: RowsMut,
    gate_up: RowsMut,
    /// The inner products of adapters.
    inner: RowsMut,
}

/// The state of a pass that all threads share.
struct Pass<'a> {
    dimensions: &'a Dimensions,
    /// The number of tokens that each row has in the cache.
    lengths: &'a [usize],
    /// The capacity of a slot of the cache, in tokens.
    capacity: usize,
    /// `[row, head_dim]`; both halves of a head are alike.
    cos: Rows,
    /// `[row, head_dim]`
    sin: Rows,
    buffers: Buffers,
    threads: usize,
}

/// Decodes one new token in each of the first `lengths.len()` slots; returns the last hidden states, `[row, hidden]`.
/// Keys and values are written to the cache after the `lengths` tokens that are there.
pub(super) fn decode(
    decoder: &Decoder,
    ids: &[i64],
    lengths: &[usize],
    cache: &mut KvCache,
    adapter: &Adapter,
) -> Tensor {
    let d = &decoder.dimensions;
    let rows = lengths.len();
    let positions: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
    let angles = decoder.rope.angles(&Tensor::from_slice(&positions));
    let start = decoder.embedded(&Tensor::from_slice(ids));
    let result = Tensor::empty([rows as i64, d.hidden], (Kind::Float, decoder.embedding.device()));
    let layers: Vec<LayerRows> = decoder
        .layers
        .iter()
        .zip(0..)
        .map(|(layer, index)| LayerRows::new(d, layer, cache.layer(index), adapter))
        .collect();

    let (hidden, queries, keys) =
        (d.hidden as usize, (d.heads * d.head_dim) as usize, (d.kv_heads * d.head_dim) as usize);
    let ranks = layers.iter().map(LayerRows::ranks).max().unwrap_or(0);
    let widths = [hidden, queries + 2 * keys, queries, 2 * d.intermediate as usize, ranks.max(1)];
    let mut buffers = widths.map(|width| vec![0.0f32; rows * width]);
    let mut buffers = buffers.iter_mut().zip(widths).map(|(buffer, width)| RowsMut::of(buffer, width));
    let mut next = || buffers.next().expect("there is a width for each buffer");
    let x = RowsMut::of_tensor(&start, hidden);
    let pass = Pass {
        dimensions: d,
        lengths,
        capacity: cache.capacity(),
        cos: Rows::of(&angles.cos),
        sin: Rows::of(&angles.sin),
        buffers: Buffers { x, normed: next(), qkv: next(), attended: next(), gate_up: next(), inner: next() },
        threads: thread_count(rows * d.parameters() as usize),
    };
    let (last_norm, last) = (Rows::of(&decoder.norm), RowsMut::of_tensor(&result, hidden));
    run_threads(pass.threads, |thread, barrier| {
        let mut weights = Vec::new();
        // SAFETY: addresses are those of tensors and buffers of the sizes that the network's dimensions give, all of
        // which outlive the threads. In each phase, which ends at a barrier, a thread writes rows, columns or heads of
        // its own, in a buffer that no other thread reads in that phase.
        unsafe {
            for layer in &layers {
                pass.attention_part(layer, thread, barrier, &mut weights);
                pass.feed_forward_part(layer, thread, barrier);
            }
            pass.norm(thread, pass.buffers.x, last_norm, last);
        }
    });
    result
}

impl Pass<'_> {
    fn rows(&self) -> usize {
        self.lengths.len()
    }

    fn hidden(&self) -> usize {
        self.dimensions.hidden as usize
    }

    /// The rows that a thread owns.
    fn own_rows(&self, thread: usize) -> Range<usize> {
        share_of(thread, self.threads, self.rows(), 1)
    }

    /// The columns of `count` that a thread owns.
    fn own_columns(&self, thread: usize, count: usize) -> Range<usize> {
        share_of(thread, self.threads, count, UNIT)
    }

    /// Norms the rows that a thread owns.
    ///
    /// # Safety
    /// The accesses of all threads are disjoint, as [`decode`] describes.
    unsafe fn norm(&self, thread: usize, from: RowsMut, weight: Rows, to: RowsMut) {
        let (width, epsilon) = (self.hidden(), self.dimensions.norm_epsilon as f32);
        for row in self.own_rows(thread) {
            // SAFETY: the caller's promise; the thread owns these rows.
            unsafe { rms_norm(from.read().slice(row, width), weight.slice(0, width), epsilon, to.slice(row, width)) }
        }
    }

    /// Computes `x += O(attend(Q n, K n, V n))`.
    ///
    /// # Safety
    /// See [`Pass::norm`].
    unsafe fn attention_part(&self, layer: &LayerRows, thread: usize, barrier: &Barrier, weights: &mut Vec<f32>) {
        let (buffers, rows, own) = (&self.buffers, self.rows(), self.own_rows(thread));
        // SAFETY: the caller's promise.
        unsafe {
            self.norm(thread, buffers.x, layer.input_norm, buffers.normed);
            layer.qkv.inner(buffers.normed.read(), own.clone(), buffers.inner);
            barrier.wait();
            let columns = self.own_columns(thread, layer.qkv.outputs());
            layer.qkv.columns(buffers.normed.read(), rows, columns, buffers.qkv, buffers.inner, Accumulate::Overwrite);
            barrier.wait();
            let kv_heads = self.dimensions.kv_heads as usize;
            for item in share_of(thread, self.threads, rows * kv_heads, 1) {
                self.heads(layer, item / kv_heads, item % kv_heads, weights);
            }
            barrier.wait();
            if layer.output.ranks > 0 {
                layer.output.inner(buffers.attended.read(), own, buffers.inner);
                barrier.wait();
            }
            let columns = self.own_columns(thread, self.hidden());
            layer.output.columns(buffers.attended.read(), rows, columns, buffers.x, buffers.inner, Accumulate::Add);
            barrier.wait();
        }
    }

    /// Rotates the queries and the key of one row and one key head, stores key and value, and attends.
    ///
    /// # Safety
    /// See [`Pass::norm`].
    unsafe fn heads(&self, layer: &LayerRows, row: usize, kv_head: usize, weights: &mut Vec<f32>) {
        let (d, buffers) = (self.dimensions, &self.buffers);
        let (heads, kv_heads, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
        let shared = heads / kv_heads;
        let first = kv_head * shared;
        // SAFETY: the caller's promise; the thread owns these heads.
        unsafe {
            let (cos, sin) = (self.cos.slice(row, dim / 2), self.sin.slice(row, dim / 2));
            let prepare = |head: RowsMut, norm: Option<Rows>| {
                if let Some(weight) = norm {
                    let plain = head.read().slice(row, dim).to_vec();
                    rms_norm(&plain, weight.slice(0, dim), d.norm_epsilon as f32, head.slice(row, dim));
                }
                rotate(head.slice(row, dim), cos, sin);
            };
            for head in first..first + shared {
                prepare(buffers.qkv.at_column(head * dim), layer.query_norm);
            }
            let key = buffers.qkv.at_column((heads + kv_head) * dim);
            let value = buffers.qkv.at_column((heads + kv_heads + kv_head) * dim);
            prepare(key, layer.key_norm);
            let slot = row * self.capacity + self.lengths[row];
            let (keys, values) = (layer.keys.at_column(kv_head * dim), layer.values.at_column(kv_head * dim));
            keys.slice(slot, dim).copy_from_slice(key.read().slice(row, dim));
            values.slice(slot, dim).copy_from_slice(value.read().slice(row, dim));
            let work = DecodeHeads {
                queries: buffers.qkv.at_column(first * dim).read().row(row),
                heads: shared,
                keys: keys.read().row(row * self.capacity),
                values: values.read().row(row * self.capacity),
                stride: kv_heads * dim,
                tokens: self.lengths[row] + 1,
                head_dim: dim,
                output: buffers.attended.at_column(first * dim).row(row),
            };
            attention::decode(&work, weights);
        }
    }

    /// Computes `x += D(silu(G n) ∘ U n)`.
    ///
    /// # Safety
    /// See [`Pass::norm`].
    unsafe fn feed_forward_part(&self, layer: &LayerRows, thread: usize, barrier: &Barrier) {
        let (buffers, rows, own) = (&self.buffers, self.rows(), self.own_rows(thread));
        let intermediate = self.dimensions.intermediate as usize;
        // SAFETY: the caller's promise.
        unsafe {
            self.norm(thread, buffers.x, layer.post_norm, buffers.normed);
            layer.gate_up.inner(buffers.normed.read(), own.clone(), buffers.inner);
            barrier.wait();
            let mine = self.own_columns(thread, intermediate);
            for start in [0, intermediate] {
                let columns = start + mine.start..start + mine.end;
                layer.gate_up.columns(
                    buffers.normed.read(),
                    rows,
                    columns,
                    buffers.gate_up,
                    buffers.inner,
                    Accumulate::Overwrite,
                );
            }
            let gate = buffers.gate_up.at_column(mine.start);
            let up = buffers.gate_up.at_column(intermediate + mine.start).read();
            for row in 0..rows {
                gate_silu(gate.slice(row, mine.len()), up.slice(row, mine.len()));
            }
            barrier.wait();
            if layer.down.ranks > 0 {
                layer.down.inner(buffers.gate_up.read(), own, buffers.inner);
                barrier.wait();
            }
            let columns = self.own_columns(thread, self.hidden());
            layer.down.columns(buffers.gate_up.read(), rows, columns, buffers.x, buffers.inner, Accumulate::Add);
            barrier.wait();
        }
    }
}

impl LayerRows {
    fn new(d: &Dimensions, layer: &Layer, (keys, values): (&Tensor, &Tensor), adapter: &Adapter) -> Self {
        let width = (d.kv_heads * d.head_dim) as usize;
        Self {
            input_norm: Rows::of(&layer.input_norm),
            qkv: LinearRows::new(&layer.qkv, adapter),
            query_norm: layer.query_norm.as_ref().map(Rows::of),
            key_norm: layer.key_norm.as_ref().map(Rows::of),
            output: LinearRows::new(&layer.output, adapter),
            post_norm: Rows::of(&layer.post_norm),
            gate_up: LinearRows::new(&layer.gate_up, adapter),
            down: LinearRows::new(&layer.down, adapter),
            keys: RowsMut::of_tensor(keys, width),
            values: RowsMut::of_tensor(values, width),
        }
    }

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
            weight: Matrix::of(&linear.weight),
            bias: linear.bias.as_ref().map(Rows::of),
            inputs: linear.weight.size()[1] as usize,
            parts,
            ranks,
        }
    }

    fn outputs(&self) -> usize {
        self.parts.last().map_or(0, |part| part.columns.end)
    }

    /// Computes `u = s · g ∘ (A x)` of every part, for some rows.
    ///
    /// # Safety
    /// `x` has `inputs` elements in each of these rows and `inner` as many as there are ranks, which nothing else uses.
    unsafe fn inner(&self, x: Rows, rows: Range<usize>, inner: RowsMut) {
        for adapter in self.parts.iter().filter_map(|part| part.adapter.as_ref()) {
            let product = Gemm { weight: Matrix::F32(adapter.down), inputs: self.inputs, bias: None, low_rank: None };
            let to = inner.at_column(adapter.first);
            let (from, first) = (x.at_row(rows.start), to.at_row(rows.start));
            // SAFETY: the caller's promise.
            unsafe {
                gemm(&product, from, rows.len(), 0..adapter.rank, first, Accumulate::Overwrite);
                for row in rows.clone() {
                    for (u, scale) in to.slice(row, adapter.rank).iter_mut().zip(&adapter.scales) {
                        *u *= scale;
                    }
                }
            }
        }
    }

    /// Computes some columns of the layer's output, adapters included.
    ///
    /// # Safety
    /// `x` has `inputs` elements in each row, `inner` is the result of [`Self::inner`] on it, and nothing else uses
    /// these columns of `y`.
    unsafe fn columns(
        &self,
        x: Rows,
        rows: usize,
        columns: Range<usize>,
        y: RowsMut,
        inner: RowsMut,
        accumulate: Accumulate,
    ) {
        for part in &self.parts {
            let both = columns.start.max(part.columns.start)..columns.end.min(part.columns.end);
            if both.is_empty() {
                continue;
            }
            let low_rank = part.adapter.as_ref().map(|adapter| LowRankTerm {
                inner: inner.read().at_column(adapter.first),
                up: adapter.up.indexed_from(part.columns.start),
                rank: adapter.rank,
            });
            let product = Gemm { weight: self.weight, inputs: self.inputs, bias: self.bias, low_rank };
            // SAFETY: the caller's promise.
            unsafe { gemm(&product, x, rows, both, y, accumulate) }
        }
    }
}

impl AdapterPart {
    fn new(layer: &LowRank, first: usize) -> Self {
        let rank = layer.rank() as usize;
        let scales = match &layer.gate {
            // SAFETY: a gate has one element per rank.
            Some(gate) => {
                unsafe { Rows::of(gate).slice(0, rank) }.iter().map(|gate| gate * layer.scale as f32).collect()
            }
            None => vec![layer.scale as f32; rank],
        };
        Self { down: Rows::of(&layer.a), up: Rows::of(&layer.b), rank, scales, first }
    }
}
