//! Operations on one row: RMS norm, rotary embedding, the `SwiGLU` gate, the softmax of attention.

use super::simd::{Instructions, Simd, dispatched};

/// Computes `to = from / rms(from) · weight`, with `epsilon` added to the mean square.
pub(crate) fn rms_norm(from: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    norm_scale(from, weight, epsilon, to);
}

/// [`rms_norm`] that returns `1 / rms(from)`.
pub(super) fn norm_scale(from: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) -> f32 {
    debug_assert!(from.len() == weight.len() && from.len() == to.len());
    let (mut inverse, count) = (0.0, from.len());
    // SAFETY: the machine has its best instructions, and the three slices have one length.
    unsafe {
        norm_on(Instructions::best(), from.as_ptr(), weight.as_ptr(), count, epsilon, to.as_mut_ptr(), &mut inverse);
    }
    inverse
}

dispatched!(norm_on(from: *const f32, weight: *const f32, count: usize, epsilon: f32, to: *mut f32, scale: &mut f32) = norm);

#[inline(always)]
unsafe fn norm<L: Simd>(
    from: *const f32,
    weight: *const f32,
    count: usize,
    epsilon: f32,
    to: *mut f32,
    scale: &mut f32,
) {
    // SAFETY: the caller's promise: `count` elements at each address.
    unsafe {
        let mut squares = L::splat(0.0);
        let mut at = 0;
        while at + L::WIDTH <= count {
            let x = L::load(from.add(at));
            squares = squares.plus_product(x, x);
            at += L::WIDTH;
        }
        if at < count {
            let x = L::load_first(from.add(at), count - at);
            squares = squares.plus_product(x, x);
        }
        let inverse = 1.0 / (squares.sum() / count as f32 + epsilon).sqrt();
        *scale = inverse;
        for at in 0..count {
            *to.add(at) = *from.add(at) * inverse * *weight.add(at);
        }
    }
}

/// Rotates one head by the angles of a position: pair `i` is elements `i` and `i + half`.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    rotate_signed(head, cos, sin, 1.0);
}

/// [`rotate`] with every sine multiplied by `sign`: -1 rotates back.
pub(super) fn rotate_signed(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = sin * sign;
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Computes `gate = silu(gate) · up`, where `silu(x) = x / (1 + e^-x)`.
pub(crate) fn gate_silu(gate: &mut [f32], up: &[f32]) {
    debug_assert_eq!(gate.len(), up.len());
    // SAFETY: the machine has its best instructions, and the slices have one length.
    unsafe { gate_silu_on(Instructions::best(), gate.as_mut_ptr(), up.as_ptr(), up.len()) }
}

dispatched!(gate_silu_on(gate: *mut f32, up: *const f32, count: usize) = gate_row);

#[inline(always)]
unsafe fn gate_row<L: Simd>(gate: *mut f32, up: *const f32, count: usize) {
    // SAFETY: the caller's promise: `count` elements at each address, which do not overlap.
    let (gate, up) = unsafe { (std::slice::from_raw_parts_mut(gate, count), std::slice::from_raw_parts(up, count)) };
    // The generic parameter only picks the instructions; the compiler vectorises this loop.
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = silu(*gate) * up;
    }
}

/// Computes `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Computes `e^x` to within two units in the last place: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r`
/// (the coefficients of Cephes' `expf`). It has no branches, so that loops over it vectorise. `x` is clamped to -87
/// (2e-38) and 88.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding this to a small number rounds it to an integer, which is in the sum's last bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut polynomial = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        polynomial = polynomial * r + coefficient;
    }
    let e_to_r = polynomial * r * r + r + 1.0;
    let two_to_n = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    e_to_r * two_to_n
}

dispatched!(softmax_on(row: *mut f32, seen: usize, keys: usize, scale: f32, log_sum: *mut f32) = softmax);

/// Overwrites a row of products with its softmax over the first `seen` keys; the others become zero.
#[inline(always)]
unsafe fn softmax<L: Simd>(row: *mut f32, seen: usize, keys: usize, scale: f32, log_sum: *mut f32) {
    // SAFETY: the caller's promise. The generic parameter only picks the instructions.
    unsafe {
        let row = std::slice::from_raw_parts_mut(row, keys);
        let (visible, hidden) = row.split_at_mut(seen);
        let mut tops = [f32::NEG_INFINITY; 16];
        for part in visible.chunks(16) {
            for (top, product) in tops.iter_mut().zip(part) {
                *top = if *product > *top { *product } else { *top };
            }
        }
        let highest = tops.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for product in visible.iter_mut() {
            *product = exp((*product - highest) * scale);
        }
        let mut sums = [0.0f32; 16];
        for part in visible.chunks(16) {
            for (sum, product) in sums.iter_mut().zip(part) {
                *sum += product;
            }
        }
        let total: f32 = sums.iter().sum();
        let inverse = 1.0 / total;
        for product in visible.iter_mut() {
            *product *= inverse;
        }
        hidden.fill(0.0);
        *log_sum = highest * scale + total.ln();
    }
}

/// The sizes and constants of one softmax row in the backward pass.
pub(super) struct SoftmaxRow {
    /// The factor of products, `1 / √head_dim`.
    pub(super) scale: f32,
    /// The logarithm of the row's sum of exponentials.
    pub(super) log_sum: f32,
    /// The number of visible keys, which come first.
    pub(super) seen: usize,
    /// The number of all keys.
    pub(super) keys: usize,
    /// Elements in a head.
    pub(super) dim: usize,
}

dispatched!(softmax_backward_on(weights: *mut f32, grads: *mut f32, grad_mixed: *const f32, mixed: *const f32, softmax: &SoftmaxRow) = softmax_backward);

/// Overwrites products with `P` and `∂P` with `∂S`; both are zero for invisible keys.
#[inline(always)]
unsafe fn softmax_backward<L: Simd>(
    weights: *mut f32,
    grads: *mut f32,
    grad_mixed: *const f32,
    mixed: *const f32,
    softmax: &SoftmaxRow,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let weights = std::slice::from_raw_parts_mut(weights, softmax.keys);
        let grads = std::slice::from_raw_parts_mut(grads, softmax.keys);
        let grad_mixed = std::slice::from_raw_parts(grad_mixed, softmax.dim);
        let mixed = std::slice::from_raw_parts(mixed, softmax.dim);
        let mut sums = [0.0f32; 16];
        for (grad_mixed, mixed) in grad_mixed.chunks(16).zip(mixed.chunks(16)) {
            for ((sum, grad_mixed), mixed) in sums.iter_mut().zip(grad_mixed).zip(mixed) {
                *sum += grad_mixed * mixed;
            }
        }
        let along: f32 = sums.iter().sum();
        let (seen, unseen) = weights.split_at_mut(softmax.seen);
        for (weight, grad) in seen.iter_mut().zip(grads.iter_mut()) {
            *weight = exp(*weight * softmax.scale - softmax.log_sum);
            *grad = *weight * (*grad - along) * softmax.scale;
        }
        unseen.fill(0.0);
        grads[softmax.seen..].fill(0.0);
    }
}
