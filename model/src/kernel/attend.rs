//! Attention of one new token to the keys and values of its sequence.
//!
//! The query heads that share a key head are taken together, so a key is read once for all of them.

use super::lanes::{Instructions, Lanes, dispatched};
use super::row::exp;

/// Query heads that are taken together at most; more of them go in several rounds.
const TOGETHER: usize = 4;

/// One sequence's part of the work: the heads that share one key head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attend {
    /// The first query, of `heads` that lie side by side.
    pub(crate) queries: *const f32,
    /// How many.
    pub(crate) heads: usize,
    /// The first key, and the first value.
    pub(crate) keys: *const f32,
    /// See `keys`.
    pub(crate) values: *const f32,
    /// From one token's key to the next one's, in numbers.
    pub(crate) stride: usize,
    /// How many tokens there are; at least one.
    pub(crate) tokens: usize,
    /// Numbers in a head.
    pub(crate) head_dim: usize,
    /// Where the first head's mixed values go; the others follow.
    pub(crate) output: *mut f32,
}

/// Mixes values by the softmax of `q · k / √head_dim`. `scores` is room to work in and grows as needed.
///
/// # Safety
/// The addresses are those of as many numbers as said, and nobody writes to them meanwhile.
pub(crate) unsafe fn attend(work: &Attend, scores: &mut Vec<f32>) {
    let needed = TOGETHER * work.tokens;
    if scores.len() < needed {
        scores.resize(needed, 0.0);
    }
    // SAFETY: the best instructions are there; the rest is the caller's promise.
    unsafe { attend_on(Instructions::best(), work, scores) }
}

dispatched!(attend_on(work: &Attend, scores: &mut [f32]) = rounds);

#[inline(always)]
unsafe fn rounds<L: Lanes>(work: &Attend, scores: &mut [f32]) {
    let mut first = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while first < work.heads {
            match work.heads - first {
                1 => heads::<L, 1>(work, first, scores),
                2 => heads::<L, 2>(work, first, scores),
                3 => heads::<L, 3>(work, first, scores),
                _ => heads::<L, TOGETHER>(work, first, scores),
            }
            first += TOGETHER;
        }
    }
}

/// `H` heads from `first`.
#[inline(always)]
unsafe fn heads<L: Lanes, const H: usize>(work: &Attend, first: usize, scores: &mut [f32]) {
    let dim = work.head_dim;
    let scale = 1.0 / (dim as f32).sqrt();
    // SAFETY: the caller's promise: each head, key and value is `head_dim` numbers.
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
                scores[head * work.tokens + token] = sum.sum() * scale;
            }
        }
        let mut inverse = [0.0; H];
        for (head, inverse) in inverse.iter_mut().enumerate() {
            *inverse = 1.0 / softmax_weights(&mut scores[head * work.tokens..(head + 1) * work.tokens]);
        }

        let mut at = 0;
        while at < dim {
            let count = L::WIDTH.min(dim - at);
            let mut mixed = [L::splat(0.0); H];
            for token in 0..work.tokens {
                let value = work.values.add(token * work.stride + at);
                let v = if count == L::WIDTH { L::load(value) } else { L::load_first(value, count) };
                for (head, mixed) in mixed.iter_mut().enumerate() {
                    *mixed = mixed.plus_product(L::splat(scores[head * work.tokens + token]), v);
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

/// Turns scores into `e^(score - highest)`; returns their sum.
#[inline(always)]
fn softmax_weights(scores: &mut [f32]) -> f32 {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - highest);
    }
    // In eight sums, which vectors can hold.
    let mut sums = [0.0f32; 8];
    let mut eights = scores.chunks_exact(8);
    for eight in &mut eights {
        for (sum, score) in sums.iter_mut().zip(eight) {
            *sum += score;
        }
    }
    sums.iter().sum::<f32>() + eights.remainder().iter().sum::<f32>()
}
