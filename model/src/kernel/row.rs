//! What happens to one row at a time: norms, rotations, the gate of the feed-forward layer, the softmax of attention.

use super::lanes::{Instructions, Lanes, dispatched};

/// `to = from / rms(from) · weight`, with `epsilon` added to the mean square.
pub(crate) fn rms_norm(from: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) {
    norm_scale(from, weight, epsilon, to);
}

/// The same; returns `1 / rms(from)`.
pub(super) fn norm_scale(from: &[f32], weight: &[f32], epsilon: f32, to: &mut [f32]) -> f32 {
    debug_assert!(from.len() == weight.len() && from.len() == to.len());
    let (mut inverse, count) = (0.0, from.len());
    // SAFETY: the best instructions are there, and the three slices are of one length.
    unsafe {
        norm_on(Instructions::best(), from.as_ptr(), weight.as_ptr(), count, epsilon, to.as_mut_ptr(), &mut inverse);
    }
    inverse
}

dispatched!(norm_on(from: *const f32, weight: *const f32, count: usize, epsilon: f32, to: *mut f32, scale: &mut f32) = norm);

#[inline(always)]
unsafe fn norm<L: Lanes>(
    from: *const f32,
    weight: *const f32,
    count: usize,
    epsilon: f32,
    to: *mut f32,
    scale: &mut f32,
) {
    // SAFETY: the caller's promise: `count` numbers at each address.
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

/// Turns one head by the angles of a position: pair `i` is elements `i` and `i + half`.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    turn(head, cos, sin, 1.0);
}

/// The same with every sine multiplied by `sign`: -1 turns back.
pub(super) fn turn(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = sin * sign;
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `gate = silu(gate) · up`, where `silu(x) = x / (1 + e^-x)`.
pub(crate) fn gate_silu(gate: &mut [f32], up: &[f32]) {
    debug_assert_eq!(gate.len(), up.len());
    // SAFETY: the best instructions are there, and the slices are of one length.
    unsafe { gate_silu_on(Instructions::best(), gate.as_mut_ptr(), up.as_ptr(), up.len()) }
}

dispatched!(gate_silu_on(gate: *mut f32, up: *const f32, count: usize) = gate_row);

#[inline(always)]
unsafe fn gate_row<L: Lanes>(gate: *mut f32, up: *const f32, count: usize) {
    // SAFETY: the caller's promise: `count` numbers at each address, which do not overlap.
    let (gate, up) = unsafe { (std::slice::from_raw_parts_mut(gate, count), std::slice::from_raw_parts(up, count)) };
    // The generic parameter only picks the instructions; the compiler makes vectors of this loop.
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = silu(*gate) * up;
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `e^x`, to within two units in the last place: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r` (the
/// coefficients of Cephes' `expf`). Without branches, so that loops over it become vectors. Below -87 it is that of -87,
/// which is 2e-38, and above 88 that of 88.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Added to a small number it leaves no room for a fraction: the sum's last bits are the nearest whole number.
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

/// Overwrites a row of products with its softmax over the keys that are seen; the others are zero.
#[inline(always)]
unsafe fn softmax<L: Lanes>(row: *mut f32, seen: usize, keys: usize, scale: f32, log_sum: *mut f32) {
    // SAFETY: the caller's promise. The generic parameter only picks the instructions.
    unsafe {
        let row = std::slice::from_raw_parts_mut(row, keys);
        let (visible, hidden) = row.split_at_mut(seen);
        let mut tops = [f32::NEG_INFINITY; 16];
        for part in visible.chunks(16) {
            for (top, number) in tops.iter_mut().zip(part) {
                *top = if *number > *top { *number } else { *top };
            }
        }
        let highest = tops.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for number in visible.iter_mut() {
            *number = exp((*number - highest) * scale);
        }
        let mut sums = [0.0f32; 16];
        for part in visible.chunks(16) {
            for (sum, number) in sums.iter_mut().zip(part) {
                *sum += number;
            }
        }
        let total: f32 = sums.iter().sum();
        let inverse = 1.0 / total;
        for number in visible.iter_mut() {
            *number *= inverse;
        }
        hidden.fill(0.0);
        *log_sum = highest * scale + total.ln();
    }
}

/// What the way back through a softmax depends on.
pub(super) struct Sizes {
    /// What products are multiplied by.
    pub(super) scale: f32,
    /// The logarithm of the row's sum.
    pub(super) log_sum: f32,
    /// Keys that are seen, and all of them.
    pub(super) seen: usize,
    pub(super) keys: usize,
    /// Numbers in a head.
    pub(super) dim: usize,
}

dispatched!(slopes_on(weights: *mut f32, slopes: *mut f32, above: *const f32, mixed: *const f32, sizes: &Sizes) = slopes_of);

/// Overwrites products with `P`, and `∂P` with `∂S`; both are zero where nothing is seen.
#[inline(always)]
unsafe fn slopes_of<L: Lanes>(
    weights: *mut f32,
    slopes: *mut f32,
    above: *const f32,
    mixed: *const f32,
    sizes: &Sizes,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let weights = std::slice::from_raw_parts_mut(weights, sizes.keys);
        let slopes = std::slice::from_raw_parts_mut(slopes, sizes.keys);
        let above = std::slice::from_raw_parts(above, sizes.dim);
        let mixed = std::slice::from_raw_parts(mixed, sizes.dim);
        let mut sums = [0.0f32; 16];
        for (above, mixed) in above.chunks(16).zip(mixed.chunks(16)) {
            for ((sum, above), mixed) in sums.iter_mut().zip(above).zip(mixed) {
                *sum += above * mixed;
            }
        }
        let along: f32 = sums.iter().sum();
        let (seen, unseen) = weights.split_at_mut(sizes.seen);
        for (weight, slope) in seen.iter_mut().zip(slopes.iter_mut()) {
            *weight = exp(*weight * sizes.scale - sizes.log_sum);
            *slope = *weight * (*slope - along) * sizes.scale;
        }
        unseen.fill(0.0);
        slopes[sizes.seen..].fill(0.0);
    }
}
