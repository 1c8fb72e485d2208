//! Attention of one new token per sequence to its cached keys and values.
//!
//! The query heads that share a key head are processed together, so each key is read once for all of them.

use crate::kernel::pointwise::exp;
use crate::kernel::simd::{Instructions, Simd, dispatched};

/// The largest number of query heads processed together; more of them go in several rounds.
const TOGETHER: usize = 4;

/// The work for one sequence and one key head: the query heads that share it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodeHeads {
    /// The queries, `[heads, head_dim]`, contiguous.
    pub(crate) queries: *const f32,
    /// The number of query heads.
    pub(crate) heads: usize,
    /// The keys, `[tokens, head_dim]`, `stride` apart.
    pub(crate) keys: *const f32,
    /// The values, `[tokens, head_dim]`, `stride` apart.
    pub(crate) values: *const f32,
    /// Distance between the keys of two tokens, in elements.
    pub(crate) stride: usize,
    /// The number of tokens; at least one.
    pub(crate) tokens: usize,
    /// Elements in a head.
    pub(crate) head_dim: usize,
    /// The mixed values, `[heads, head_dim]`, contiguous.
    pub(crate) output: *mut f32,
}

/// Mixes values by the softmax of `q · k / √head_dim`. `weights` is scratch space and grows as needed.
///
/// # Safety
/// The addresses hold the stated numbers of elements, and nothing writes to them meanwhile.
pub(crate) unsafe fn decode(work: &DecodeHeads, weights: &mut Vec<f32>) {
    let needed = TOGETHER * work.tokens;
    if weights.len() < needed {
        weights.resize(needed, 0.0);
    }
    // SAFETY: the machine has its best instructions; the rest is the caller's promise.
    unsafe { decode_on(Instructions::best(), work, weights) }
}

dispatched!(decode_on(work: &DecodeHeads, weights: &mut [f32]) = rounds);

#[inline(always)]
unsafe fn rounds<L: Simd>(work: &DecodeHeads, weights: &mut [f32]) {
    let mut first = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while first < work.heads {
            match work.heads - first {
                1 => heads::<L, 1>(work, first, weights),
                2 => heads::<L, 2>(work, first, weights),
                3 => heads::<L, 3>(work, first, weights),
                _ => heads::<L, TOGETHER>(work, first, weights),
            }
            first += TOGETHER;
        }
    }
}

/// Computes `H` heads from `first` on.
#[inline(always)]
unsafe fn heads<L: Simd, const H: usize>(work: &DecodeHeads, first: usize, weights: &mut [f32]) {
    let dim = work.head_dim;
    let scale = 1.0 / (dim as f32).sqrt();
    // SAFETY: the caller's promise: each head, key and value is `head_dim` elements.
    unsafe {
        let queries = work.queries.add(first * dim);
        for token in 0..work.tokens {
            let key = work.keys.add(token * work.stride);
            let mut sums = [L::splat(0.0); H];
            let mut at = 0;
            while at + L::WIDTH <= dim {
                let k = L::load(key.add(at));
                for (head, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.plus_product(L::load(queries.add(head * dim + at)), k);
                }
                at += L::WIDTH;
            }
            if at < dim {
                let k = L::load_first(key.add(at), dim - at);
                for (head, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.plus_product(L::load_first(queries.add(head * dim + at), dim - at), k);
                }
            }
            for (head, sum) in sums.iter().enumerate() {
                weights[head * work.tokens + token] = sum.sum() * scale;
            }
        }
        let mut inverse = [0.0; H];
        for (head, inverse) in inverse.iter_mut().enumerate() {
            *inverse = 1.0 / softmax_weights(&mut weights[head * work.tokens..(head + 1) * work.tokens]);
        }

        let mut at = 0;
        while at < dim {
            let count = L::WIDTH.min(dim - at);
            let mut mixed = [L::splat(0.0); H];
            for token in 0..work.tokens {
                let value = work.values.add(token * work.stride + at);
                let v = if count == L::WIDTH { L::load(value) } else { L::load_first(value, count) };
                for (head, mixed) in mixed.iter_mut().enumerate() {
                    *mixed = mixed.plus_product(L::splat(weights[head * work.tokens + token]), v);
                }
            }
            for (head, mixed) in mixed.iter().enumerate() {
                let scaled = L::splat(0.0).plus_product(*mixed, L::splat(inverse[head]));
                scaled.store_first(work.output.add((first + head) * dim + at), count);
            }
            at += L::WIDTH;
        }
    }
}

/// Overwrites scaled products `s` with `e^(s - highest)` and returns their sum.
#[inline(always)]
fn softmax_weights(weights: &mut [f32]) -> f32 {
    let highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for weight in weights.iter_mut() {
        *weight = exp(*weight - highest);
    }
    // Eight partial sums, which vectorise.
    let mut sums = [0.0f32; 8];
    let mut eights = weights.chunks_exact(8);
    for eight in &mut eights {
        for (sum, weight) in sums.iter_mut().zip(eight) {
            *sum += weight;
        }
    }
    sums.iter().sum::<f32>() + eights.remainder().iter().sum::<f32>()
}
