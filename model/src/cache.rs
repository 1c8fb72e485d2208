//! The KV cache: keys and values of running sequences, in slots that are written in place.
//!
//! Layout per layer: `[slot, token, kv_heads · head_dim]`, so that one `index_copy_` writes the new token of every
//! running row, and attention reads a view of the first rows and tokens: no copy, no growth. Rows are kept dense by
//! moving the last running row into a freed slot.

use crate::attention::{self, Attention};
use crate::dimensions::Dimensions;
use tch::{Device, Kind, Tensor};

/// Keys and values of up to `slots` sequences of up to `capacity` tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KeyValue>,
    slots: i64,
    capacity: i64,
    kv_heads: i64,
    kind: Kind,
    device: Device,
}

/// Keys and values of one layer.
#[derive(Debug)]
struct KeyValue {
    keys: Tensor,
    values: Tensor,
}

/// The keys and values of a prompt, kept for samples that wait for a slot.
#[derive(Debug)]
pub struct Prefix {
    layers: Vec<KeyValue>,
    tokens: i64,
}

impl Prefix {
    /// The number of tokens of the prompt.
    pub fn tokens(&self) -> usize {
        self.tokens as usize
    }
}

impl KvCache {
    /// An empty cache for `slots` sequences of `capacity` tokens, prompt included.
    ///
    /// * `kind`: the format of activations
    pub fn new(dimensions: &Dimensions, slots: usize, capacity: usize, device: Device, kind: Kind) -> Self {
        let width = dimensions.kv_heads * dimensions.head_dim;
        let (slots, capacity) = (slots as i64, capacity as i64);
        let empty = || Tensor::zeros([slots, capacity, width], (kind, device));
        let layers = (0..dimensions.layers).map(|_| KeyValue { keys: empty(), values: empty() }).collect();
        Self { layers, slots, capacity, kv_heads: dimensions.kv_heads, kind, device }
    }

    /// The size in bytes of a cache of this shape.
    pub fn bytes(dimensions: &Dimensions, slots: usize, capacity: usize, kind: Kind) -> u64 {
        let width = (dimensions.kv_heads * dimensions.head_dim) as u64;
        2 * dimensions.layers as u64 * width * slots as u64 * capacity as u64 * kind.elt_size_in_bytes() as u64
    }

    /// The keys and values of one layer, `[slot, token, kv_heads · head_dim]` each.
    pub(crate) fn layer(&self, index: usize) -> (&Tensor, &Tensor) {
        let KeyValue { keys, values } = &self.layers[index];
        (keys, values)
    }

    /// The number of slots, one per sequence.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }

    /// The number of tokens per slot.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Copies a prompt's keys and values to the start of a slot.
    pub fn insert(&mut self, slot: usize, prefix: &Prefix) {
        for (layer, prefix) in self.layers.iter().zip(&prefix.layers) {
            let start = |x: &Tensor| x.get(slot as i64).narrow(0, 0, prefix.keys.size()[0]);
            start(&layer.keys).copy_(&prefix.keys);
            start(&layer.values).copy_(&prefix.values);
        }
    }

    /// Moves the first `tokens` tokens of one slot to another.
    pub fn relocate(&mut self, from: usize, to: usize, tokens: usize) {
        for layer in &self.layers {
            for x in [&layer.keys, &layer.values] {
                let part = |slot: usize| x.get(slot as i64).narrow(0, 0, tokens as i64);
                part(to).copy_(&part(from));
            }
        }
    }

    /// Attention for one new token in each of the first `lengths.len()` slots, which hold `lengths` tokens so far.
    pub fn decode<'a>(&'a mut self, lengths: &[usize]) -> Decode<'a> {
        let rows = lengths.len() as i64;
        let longest = lengths.iter().max().map_or(0, |longest| *longest as i64) + 1;
        let indices: Vec<i64> = lengths.iter().zip(0..).map(|(len, slot)| slot * self.capacity + *len as i64).collect();
        let last: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        let last = Tensor::from_slice(&last).to_device(self.device).reshape([rows, 1, 1, 1]);
        let token = Tensor::arange(longest, (Kind::Int64, self.device)).reshape([1, 1, 1, longest]);
        let mask = Tensor::zeros([rows, 1, 1, longest], (self.kind, self.device))
            .masked_fill(&token.gt_tensor(&last), f64::NEG_INFINITY);
        let indices = Tensor::from_slice(&indices).to_device(self.device);
        Decode { cache: self, rows, longest, indices, mask }
    }
}

/// See [`KvCache::decode`].
#[derive(Debug)]
pub struct Decode<'a> {
    cache: &'a mut KvCache,
    rows: i64,
    longest: i64,
    indices: Tensor,
    mask: Tensor,
}

impl Attention for Decode<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let head_dim = k.size()[2];
        let KeyValue { keys, values } = &self.cache.layers[layer];
        let store = |cache: &Tensor, new: &Tensor| {
            let flat = [self.cache.slots * self.cache.capacity, self.cache.kv_heads * head_dim];
            let _ = cache.view(flat).index_copy_(0, &self.indices, &new.reshape([self.rows, flat[1]]));
            cache.narrow(0, 0, self.rows).narrow(1, 0, self.longest).view([
                self.rows,
                self.longest,
                self.cache.kv_heads,
                head_dim,
            ])
        };
        attention::decode(q, &store(keys, k), &store(values, v), &self.mask)
    }
}

/// Causal attention for whole prompts, packed one after the other, that keeps each prompt's keys and values.
#[derive(Debug)]
pub struct Prefill {
    lengths: Vec<i64>,
    kept: Vec<Vec<KeyValue>>,
}

impl Prefill {
    /// Attention for prompts of these lengths in tokens, in packed order.
    pub fn new(lengths: &[usize]) -> Self {
        Self {
            lengths: lengths.iter().map(|length| *length as i64).collect(),
            kept: lengths.iter().map(|_| Vec::new()).collect(),
        }
    }

    /// The keys and values of each prompt after the forward pass, in packed order.
    pub fn into_prefixes(self) -> Vec<Prefix> {
        self.lengths.into_iter().zip(self.kept).map(|(tokens, layers)| Prefix { layers, tokens }).collect()
    }
}

impl Attention for Prefill {
    fn attend(&mut self, _layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let mut start = 0;
        let mut mixed = Vec::with_capacity(self.lengths.len());
        for (&length, kept) in self.lengths.iter().zip(&mut self.kept) {
            let part = |x: &Tensor| x.narrow(0, start, length);
            let (k, v) = (part(k), part(v));
            mixed.push(attention::causal(&part(q), &k, &v));
            kept.push(KeyValue { keys: k.reshape([length, -1]), values: v.reshape([length, -1]).copy() });
            start += length;
        }
        Tensor::cat(&mixed, 0)
    }
}
