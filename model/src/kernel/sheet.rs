//! Whole sheets of rows for training and prefill: what libtorch does in several passes over memory, in one.
//!
//! Each function shares the rows among threads. Gradients are those of frozen weights: only inputs have one. Weights are
//! f32 or bf16, everything else is f32.

use super::lanes::{Instructions, Lanes, dispatched};
use super::panel::{self, Term};
use super::product::{Into, LowRankTerm, Product, members, multiply};
use super::row::{exp, norm_scale, silu, turn};
use super::team::{share_of, together};
use super::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Multiplications that an elementwise pass over one number is worth, where it is decided how many threads to start.
const PASS: usize = 16;

fn size(x: &Tensor) -> (usize, usize) {
    let (rows, width) = x.size2().expect("a sheet is a matrix");
    (rows as usize, width as usize)
}

/// Runs `work` on each thread's rows.
pub(super) fn by_rows(rows: usize, width: usize, work: impl Fn(usize) + Sync) {
    let members = members(rows * width * PASS);
    together(members, |member, _| share_of(member, members, rows, 1).for_each(&work));
}

/// `x / rms(x) · weight` of each row, `[row, width]`, and `1 / rms(x)`, `[row, 1]`.
pub(crate) fn norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> (Tensor, Tensor) {
    let (rows, width) = size(x);
    let (normed, inverse) = (x.empty_like(), Tensor::empty([rows as i64, 1], (Kind::Float, x.device())));
    let (from, scale) = (Rows::of(x), Rows::of(weight));
    let (to, inverses) = (RowsMut::of_tensor(&normed, width), RowsMut::of_tensor(&inverse, 1));
    by_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread.
        unsafe {
            let (from, weight) = (from.slice(row, width), scale.slice(0, width));
            inverses.slice(row, 1)[0] = norm_scale(from, weight, epsilon, to.slice(row, width));
        }
    });
    (normed, inverse)
}

/// Adds to `by_x` the gradient of [`norm`] with respect to `x`:
///
/// ```text
/// g = weight ∘ by_normed        by_x += s g − x s³ (g · x) / width        s = 1 / rms(x)
/// ```
pub(crate) fn norm_gradient(by_normed: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor, by_x: &Tensor) {
    let (rows, width) = size(x);
    let (above, from, scale, inverses) = (Rows::of(by_normed), Rows::of(x), Rows::of(weight), Rows::of(inverse));
    let to = RowsMut::of_tensor(by_x, width);
    by_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the best instructions are there.
        unsafe {
            let s = inverses.slice(row, 1)[0];
            let rows = (above.row(row), from.row(row), scale.row(0));
            norm_gradient_on(Instructions::best(), rows, width, s, to.row(row));
        }
    });
}

dispatched!(norm_gradient_on(rows: (*const f32, *const f32, *const f32), count: usize, s: f32, to: *mut f32) = norm_gradient_of);

#[inline(always)]
unsafe fn norm_gradient_of<L: Lanes>(
    (above, x, weight): (*const f32, *const f32, *const f32),
    count: usize,
    s: f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise: `count` numbers at each address.
    unsafe {
        let above = std::slice::from_raw_parts(above, count);
        let x = std::slice::from_raw_parts(x, count);
        let weight = std::slice::from_raw_parts(weight, count);
        let to = std::slice::from_raw_parts_mut(to, count);
        // In sixteen sums, which vectors can hold.
        let mut sums = [0.0f32; 16];
        let whole = count / 16 * 16;
        for start in (0..whole).step_by(16) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let at = start + lane;
                *sum += above[at] * weight[at] * x[at];
            }
        }
        let dot = sums.iter().sum::<f32>() + (whole..count).map(|at| above[at] * weight[at] * x[at]).sum::<f32>();
        let along = s * s * s * dot / count as f32;
        for at in 0..count {
            to[at] += s * above[at] * weight[at] - along * x[at];
        }
    }
}

/// Turns the heads in the first `columns` of each row, in place.
///
/// * `x`: `[row, width]`
/// * `cos`, `sin`: `[row, 1, head_dim]`, whose halves are alike
/// * `sign`: 1 to turn, -1 to turn back
pub(crate) fn rotate(x: &Tensor, columns: usize, cos: &Tensor, sin: &Tensor, sign: f32) {
    let (rows, width) = size(x);
    let (cosines, sines) = (Rows::of(cos), Rows::of(sin));
    let dim = cosines.stride;
    let to = RowsMut::of_tensor(x, width);
    by_rows(rows, columns, |row| {
        // SAFETY: rows of the tensors above, each written by one thread.
        let (heads, cos, sin) =
            unsafe { (to.slice(row, columns), cosines.slice(row, dim / 2), sines.slice(row, dim / 2)) };
        heads.chunks_exact_mut(dim).for_each(|head| turn(head, cos, sin, sign));
    });
}

/// `silu(gate) · up` of `[row, 2 · width]`, gate first, as `[row, width]`.
pub(crate) fn gated(gate_up: &Tensor) -> Tensor {
    let (rows, double) = size(gate_up);
    let width = double / 2;
    let mixed = Tensor::empty([rows as i64, width as i64], (Kind::Float, gate_up.device()));
    let (from, to) = (Rows::of(gate_up), RowsMut::of_tensor(&mixed, width));
    by_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the best instructions are there.
        unsafe { gated_on(Instructions::best(), from.row(row), width, to.row(row)) }
    });
    mixed
}

dispatched!(gated_on(gate_up: *const f32, width: usize, to: *mut f32) = gated_row);

#[inline(always)]
unsafe fn gated_row<L: Lanes>(gate_up: *const f32, width: usize, to: *mut f32) {
    // SAFETY: the caller's promise: 2 · `width` and `width` numbers, apart.
    let (gate, up, to) = unsafe {
        (
            std::slice::from_raw_parts(gate_up, width),
            std::slice::from_raw_parts(gate_up.add(width), width),
            std::slice::from_raw_parts_mut(to, width),
        )
    };
    for ((to, gate), up) in to.iter_mut().zip(gate).zip(up) {
        *to = silu(*gate) * up;
    }
}

/// The gradient of [`gated`] with respect to `gate_up`, `[row, 2 · width]`.
pub(crate) fn gated_gradient(by_mixed: &Tensor, gate_up: &Tensor) -> Tensor {
    let (rows, width) = size(by_mixed);
    let gradient = gate_up.empty_like();
    let (above, from, to) = (Rows::of(by_mixed), Rows::of(gate_up), RowsMut::of_tensor(&gradient, 2 * width));
    by_rows(rows, 2 * width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the best instructions are there.
        unsafe { gated_gradient_on(Instructions::best(), above.row(row), from.row(row), width, to.row(row)) }
    });
    gradient
}

dispatched!(gated_gradient_on(above: *const f32, gate_up: *const f32, width: usize, to: *mut f32) = gated_gradient_row);

#[inline(always)]
unsafe fn gated_gradient_row<L: Lanes>(above: *const f32, gate_up: *const f32, width: usize, to: *mut f32) {
    // SAFETY: the caller's promise: `width` or 2 · `width` numbers, apart.
    let (above, gate, up, to) = unsafe {
        (
            std::slice::from_raw_parts(above, width),
            std::slice::from_raw_parts(gate_up, width),
            std::slice::from_raw_parts(gate_up.add(width), width),
            std::slice::from_raw_parts_mut(to, 2 * width),
        )
    };
    let (by_gate, by_up) = to.split_at_mut(width);
    for ((((by_gate, by_up), above), gate), up) in by_gate.iter_mut().zip(by_up).zip(above).zip(gate).zip(up) {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        let silu = gate * sigmoid;
        *by_gate = above * up * (sigmoid + silu * (1.0 - sigmoid));
        *by_up = above * silu;
    }
}

/// A part of a fused layer: its columns, and the adapter's factor and inner products if there is one.
pub(crate) struct Columns<'a> {
    /// Which columns of the output.
    pub(crate) range: Range<usize>,
    /// `B`, `[outputs, rank]`, and `u`, `[row, rank]`.
    pub(crate) low_rank: Option<(&'a Tensor, &'a Tensor)>,
}

/// `x Wᵀ`, `[row, inputs]` to `[row, outputs]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    let (outputs, _) = size(weight);
    let y = Tensor::empty([x.size()[0], outputs as i64], (Kind::Float, x.device()));
    linear_into(x, weight, None, &[Columns { range: 0..outputs, low_rank: None }], &y, Into::Fresh);
    y
}

/// Rows that pass over the weights together: few enough to stay in the second cache.
const BLOCK: usize = 128;

/// `x Wᵀ + bias`, with the low-rank update of each part, written to or added to `y`, `[row, outputs]`.
pub(crate) fn linear_into(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    parts: &[Columns<'_>],
    y: &Tensor,
    into: Into,
) {
    let (rows, inputs) = size(x);
    let (outputs, _) = size(weight);
    let (from, to) = (Rows::of(x), RowsMut::of_tensor(y, outputs));
    let parts: Vec<(Range<usize>, Product, Option<Rows>)> = parts
        .iter()
        .map(|part| {
            let low_rank = part.low_rank.map(|(up, inner)| LowRankTerm {
                inner: Rows::of(inner),
                up: Rows::of(up).numbered_from(part.range.start),
                rank: up.size()[1] as usize,
            });
            let inner = low_rank.map(|term| term.inner);
            let product = Product { weight: Matrix::of(weight), inputs, bias: bias.map(Rows::of), low_rank };
            (part.range.clone(), product, inner)
        })
        .collect();
    let members = members(rows * inputs * outputs);
    together(members, |member, _| {
        let own = share_of(member, members, outputs, super::UNIT);
        for start in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - start);
            for (range, product, inner) in &parts {
                let both = own.start.max(range.start)..own.end.min(range.end);
                if both.is_empty() {
                    continue;
                }
                let low_rank = product.low_rank.zip(*inner);
                let low_rank = low_rank.map(|(term, inner)| LowRankTerm { inner: inner.at_row(start), ..term });
                let product = Product { low_rank, ..*product };
                // SAFETY: the sizes are the tensors' own, and each member writes columns of its own.
                unsafe { multiply(&product, from.at_row(start), count, both, to.at_row(start), into) }
            }
        }
    });
}

/// `Σ g W`, `[row, outputs]` and `[outputs, inputs]` to `[row, inputs]`: the gradient through a linear layer and, as more
/// such pairs, through its adapters. There is at least one.
pub(crate) fn linear_back(pairs: &[(&Tensor, &Tensor)]) -> Tensor {
    let ((rows, _), (_, inputs)) = (size(pairs[0].0), size(pairs[0].1));
    let y = Tensor::empty([rows as i64, inputs as i64], (Kind::Float, pairs[0].0.device()));
    let terms: Vec<Term> = pairs.iter().map(|(above, weight)| Term::new(above, weight)).collect();
    // SAFETY: the sizes are the tensors' own.
    unsafe { panel::multiply(&terms, rows, inputs, RowsMut::of_tensor(&y, inputs)) }
    y
}
