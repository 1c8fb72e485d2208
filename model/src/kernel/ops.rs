//! Operations on whole batches for training and prefill, each in one pass over memory where libtorch takes several.
//!
//! Each function shares the rows among threads. Weights are frozen, so backward functions compute gradients of inputs
//! alone. Weights are f32 or bf16, everything else is f32.

use super::gemm::{Accumulate, Gemm, LowRankTerm, Term, gemm, gemm_backward};
use super::pointwise::{exp, norm_scale, rotate_signed, silu};
use super::simd::{Instructions, Simd, dispatched};
use super::threads::{run_threads, share_of, thread_count};
use super::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Cost of an elementwise operation per element, in multiplications, for the choice of the number of threads.
const PASS: usize = 16;

/// The sizes of a matrix, `[row, width]`.
fn size(x: &Tensor) -> (usize, usize) {
    let (rows, width) = x.size2().expect("a batch is a matrix");
    (rows as usize, width as usize)
}

/// Runs `work` on every row; threads share the rows.
pub(super) fn for_rows(rows: usize, width: usize, work: impl Fn(usize) + Sync) {
    let threads = thread_count(rows * width * PASS);
    run_threads(threads, |thread, _| share_of(thread, threads, rows, 1).for_each(&work));
}

/// RMS norm (Zhang & Sennrich 2019): returns `x / rms(x) · weight`, `[row, width]`, and `1 / rms(x)`, `[row, 1]`.
pub(crate) fn norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> (Tensor, Tensor) {
    let (rows, width) = size(x);
    let (normed, inverse) = (x.empty_like(), Tensor::empty([rows as i64, 1], (Kind::Float, x.device())));
    let (from, scale) = (Rows::of(x), Rows::of(weight));
    let (to, inverses) = (RowsMut::of_tensor(&normed, width), RowsMut::of_tensor(&inverse, 1));
    for_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread.
        unsafe {
            let (from, weight) = (from.slice(row, width), scale.slice(0, width));
            inverses.slice(row, 1)[0] = norm_scale(from, weight, epsilon, to.slice(row, width));
        }
    });
    (normed, inverse)
}

/// Adds the gradient of [`norm`] with respect to `x` to `grad_x`, `[row, width]`:
///
/// ```text
/// g = weight ∘ grad_normed        grad_x += s g − x s³ (g · x) / width        s = 1 / rms(x)
/// ```
pub(crate) fn norm_backward(grad_normed: &Tensor, x: &Tensor, weight: &Tensor, inverse: &Tensor, grad_x: &Tensor) {
    let (rows, width) = size(x);
    let (grad, from, scale, inverses) = (Rows::of(grad_normed), Rows::of(x), Rows::of(weight), Rows::of(inverse));
    let to = RowsMut::of_tensor(grad_x, width);
    for_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the machine has its best instructions.
        unsafe {
            let s = inverses.slice(row, 1)[0];
            let rows = (grad.row(row), from.row(row), scale.row(0));
            norm_backward_on(Instructions::best(), rows, width, s, to.row(row));
        }
    });
}

dispatched!(norm_backward_on(rows: (*const f32, *const f32, *const f32), count: usize, s: f32, to: *mut f32) = norm_backward_row);

#[inline(always)]
unsafe fn norm_backward_row<L: Simd>(
    (grad, x, weight): (*const f32, *const f32, *const f32),
    count: usize,
    s: f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise: `count` elements at each address.
    unsafe {
        let grad = std::slice::from_raw_parts(grad, count);
        let x = std::slice::from_raw_parts(x, count);
        let weight = std::slice::from_raw_parts(weight, count);
        let to = std::slice::from_raw_parts_mut(to, count);
        // Sixteen partial sums, which vectorise.
        let mut sums = [0.0f32; 16];
        let whole = count / 16 * 16;
        for start in (0..whole).step_by(16) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let at = start + lane;
                *sum += grad[at] * weight[at] * x[at];
            }
        }
        let dot = sums.iter().sum::<f32>() + (whole..count).map(|at| grad[at] * weight[at] * x[at]).sum::<f32>();
        let along = s * s * s * dot / count as f32;
        for at in 0..count {
            to[at] += s * grad[at] * weight[at] - along * x[at];
        }
    }
}

/// Applies rotary embedding to the heads in the first `columns` of each row, in place.
///
/// * `x`: `[row, width]`
/// * `cos`, `sin`: `[row, 1, head_dim]`, whose halves are alike
/// * `sign`: 1 to rotate, -1 to rotate back
pub(crate) fn rotate(x: &Tensor, columns: usize, cos: &Tensor, sin: &Tensor, sign: f32) {
    let (rows, width) = size(x);
    let (cosines, sines) = (Rows::of(cos), Rows::of(sin));
    let dim = cosines.stride();
    let to = RowsMut::of_tensor(x, width);
    for_rows(rows, columns, |row| {
        // SAFETY: rows of the tensors above, each written by one thread.
        let (heads, cos, sin) =
            unsafe { (to.slice(row, columns), cosines.slice(row, dim / 2), sines.slice(row, dim / 2)) };
        heads.chunks_exact_mut(dim).for_each(|head| rotate_signed(head, cos, sin, sign));
    });
}

/// `SwiGLU`: `silu(gate) · up` of `[row, 2 · width]`, gate first, as `[row, width]`.
pub(crate) fn swiglu(gate_up: &Tensor) -> Tensor {
    let (rows, double) = size(gate_up);
    let width = double / 2;
    let mixed = Tensor::empty([rows as i64, width as i64], (Kind::Float, gate_up.device()));
    let (from, to) = (Rows::of(gate_up), RowsMut::of_tensor(&mixed, width));
    for_rows(rows, width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the machine has its best instructions.
        unsafe { swiglu_on(Instructions::best(), from.row(row), width, to.row(row)) }
    });
    mixed
}

dispatched!(swiglu_on(gate_up: *const f32, width: usize, to: *mut f32) = swiglu_row);

#[inline(always)]
unsafe fn swiglu_row<L: Simd>(gate_up: *const f32, width: usize, to: *mut f32) {
    // SAFETY: the caller's promise: 2 · `width` and `width` elements, apart.
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

/// The gradient of [`swiglu`] with respect to `gate_up`, `[row, 2 · width]`.
pub(crate) fn swiglu_backward(grad_mixed: &Tensor, gate_up: &Tensor) -> Tensor {
    let (rows, width) = size(grad_mixed);
    let gradient = gate_up.empty_like();
    let (grad, from, to) = (Rows::of(grad_mixed), Rows::of(gate_up), RowsMut::of_tensor(&gradient, 2 * width));
    for_rows(rows, 2 * width, |row| {
        // SAFETY: rows of the tensors above, each written by one thread; the machine has its best instructions.
        unsafe { swiglu_backward_on(Instructions::best(), grad.row(row), from.row(row), width, to.row(row)) }
    });
    gradient
}

dispatched!(swiglu_backward_on(grad: *const f32, gate_up: *const f32, width: usize, to: *mut f32) = swiglu_backward_row);

#[inline(always)]
unsafe fn swiglu_backward_row<L: Simd>(grad: *const f32, gate_up: *const f32, width: usize, to: *mut f32) {
    // SAFETY: the caller's promise: `width` or 2 · `width` elements, apart.
    let (grad, gate, up, to) = unsafe {
        (
            std::slice::from_raw_parts(grad, width),
            std::slice::from_raw_parts(gate_up, width),
            std::slice::from_raw_parts(gate_up.add(width), width),
            std::slice::from_raw_parts_mut(to, 2 * width),
        )
    };
    let (grad_gate, grad_up) = to.split_at_mut(width);
    for ((((grad_gate, grad_up), grad), gate), up) in grad_gate.iter_mut().zip(grad_up).zip(grad).zip(gate).zip(up) {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        let silu = gate * sigmoid;
        *grad_gate = grad * up * (sigmoid + silu * (1.0 - sigmoid));
        *grad_up = grad * silu;
    }
}

/// One layer of a fused linear layer, with its adapter if it has one.
pub(crate) struct Columns<'a> {
    /// The layer's columns of the output.
    pub(crate) range: Range<usize>,
    /// `B`, `[outputs, rank]`, and `u`, `[row, rank]`.
    pub(crate) low_rank: Option<(&'a Tensor, &'a Tensor)>,
}

/// Linear layer: `x Wᵀ`, `[row, inputs]` to `[row, outputs]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    let (outputs, _) = size(weight);
    let y = Tensor::empty([x.size()[0], outputs as i64], (Kind::Float, x.device()));
    linear_into(x, weight, None, &[Columns { range: 0..outputs, low_rank: None }], &y, Accumulate::Overwrite);
    y
}

/// Rows that pass over the weights together: few enough to stay in the L2 cache.
const BLOCK: usize = 128;

/// Writes or adds `x Wᵀ + bias`, with the low-rank update of each part, to `y`, `[row, outputs]`.
///
/// * `x`: `[row, inputs]`
/// * `weight`: `[outputs, inputs]`; `bias`: `[outputs]`
pub(crate) fn linear_into(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    parts: &[Columns<'_>],
    y: &Tensor,
    accumulate: Accumulate,
) {
    let (rows, inputs) = size(x);
    let (outputs, _) = size(weight);
    let (from, to) = (Rows::of(x), RowsMut::of_tensor(y, outputs));
    let parts: Vec<(Range<usize>, Gemm, Option<Rows>)> = parts
        .iter()
        .map(|part| {
            let low_rank = part.low_rank.map(|(up, inner)| LowRankTerm {
                inner: Rows::of(inner),
                up: Rows::of(up).indexed_from(part.range.start),
                rank: up.size()[1] as usize,
            });
            let inner = low_rank.map(|term| term.inner);
            let product = Gemm { weight: Matrix::of(weight), inputs, bias: bias.map(Rows::of), low_rank };
            (part.range.clone(), product, inner)
        })
        .collect();
    let threads = thread_count(rows * inputs * outputs);
    run_threads(threads, |thread, _| {
        let own = share_of(thread, threads, outputs, super::UNIT);
        for start in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - start);
            for (range, product, inner) in &parts {
                let both = own.start.max(range.start)..own.end.min(range.end);
                if both.is_empty() {
                    continue;
                }
                let low_rank = product.low_rank.zip(*inner);
                let low_rank = low_rank.map(|(term, inner)| LowRankTerm { inner: inner.at_row(start), ..term });
                let product = Gemm { low_rank, ..*product };
                // SAFETY: the sizes are the tensors' own, and each thread writes columns of its own.
                unsafe { gemm(&product, from.at_row(start), count, both, to.at_row(start), accumulate) }
            }
        }
    });
}

/// Backward of a linear layer: `Σ g W` over pairs of `g`, `[row, outputs]`, and `W`, `[outputs, inputs]`, as
/// `[row, inputs]`. The first pair is the layer itself, further ones are its adapters.
pub(crate) fn linear_backward(pairs: &[(&Tensor, &Tensor)]) -> Tensor {
    let ((rows, _), (_, inputs)) = (size(pairs[0].0), size(pairs[0].1));
    let y = Tensor::empty([rows as i64, inputs as i64], (Kind::Float, pairs[0].0.device()));
    let terms: Vec<Term> = pairs.iter().map(|(grad, weight)| Term::new(grad, weight)).collect();
    // SAFETY: the sizes are the tensors' own.
    unsafe { gemm_backward(&terms, rows, inputs, RowsMut::of_tensor(&y, inputs)) }
    y
}
