//! The forward GEMM, a few rows times all of the weights: `y = x Wᵀ`, with a low-rank update in the same pass.
//!
//! ```text
//! y[m, n] = Σ_k x[m, k] W[n, k] + Σ_r u[m, r] B[n, r] + bias[n]        u = s · g ∘ (A x)
//! ```
//!
//! A tile of 4 × 6 outputs is summed in registers along `k`, so `W` keeps the checkpoint's layout, rows of inputs. The
//! low-rank term continues where `k` ended: an adapter of rank 16 adds one step to the 36 of SmolLM2's 576 inputs
//! instead of a product of its own. While one block of weight rows is in use, the next is prefetched.
//!
//! One output's sum does not depend on its tile: the order along `k` is the same in all of them.

use super::{Accumulate, LINE};
use crate::kernel::dtype::{Operand, to_bf16};
use crate::kernel::simd::{Instructions, Simd, dispatched, prefetch};
use crate::kernel::{Matrix, Rows, RowsMut};
use std::ops::Range;

/// An adapter's update `u Bᵀ` of some columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowRankTerm {
    /// `u = s · g ∘ (A x)`, `[row, rank]`.
    pub(crate) inner: Rows,
    /// `B`, `[outputs, rank]`.
    pub(crate) up: Rows,
    /// The number of columns of both.
    pub(crate) rank: usize,
}

/// The right-hand side of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm {
    /// `W`, `[outputs, inputs]`.
    pub(crate) weight: Matrix,
    /// The number of columns of `W`.
    pub(crate) inputs: usize,
    /// `[outputs]`, as a single row.
    pub(crate) bias: Option<Rows>,
    /// An adapter's update of these outputs.
    pub(crate) low_rank: Option<LowRankTerm>,
}

/// The unit in which threads share columns: several blocks of any width.
pub(crate) const UNIT: usize = 24;

/// Computes some columns of `y`, `[row, outputs]`, for all `rows` of `x`, `[row, inputs]`.
///
/// # Safety
/// All views cover the sizes given; nothing else writes or reads these columns of `y`, or writes `x`, meanwhile.
pub(crate) unsafe fn gemm(
    gemm: &Gemm,
    x: Rows,
    rows: usize,
    columns: Range<usize>,
    y: RowsMut,
    accumulate: Accumulate,
) {
    // SAFETY: the machine has its best instructions; the rest is the caller's promise.
    unsafe { gemm_on(Instructions::best(), gemm, x, rows, columns, y, accumulate) }
}

/// [`gemm`] on given instructions, which the machine must have.
///
/// # Safety
/// See [`gemm`].
pub(in crate::kernel) unsafe fn gemm_on(
    instructions: Instructions,
    gemm: &Gemm,
    x: Rows,
    rows: usize,
    columns: Range<usize>,
    y: RowsMut,
    accumulate: Accumulate,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match gemm.weight {
            Matrix::F32(weight) => {
                f32_on(instructions, &Operands { gemm, weight, x, y, accumulate }, rows, columns);
            }
            Matrix::Bf16(weight) => {
                let rounded = to_bf16(x, rows, gemm.inputs);
                bf16_on(instructions, &Operands { gemm, weight, x: rounded.rows(), y, accumulate }, rows, columns);
            }
        }
    }
}

/// Both factors of a product in one format, and its output.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Operands<'a, T> {
    gemm: &'a Gemm,
    weight: Rows<T>,
    x: Rows<T>,
    y: RowsMut,
    accumulate: Accumulate,
}

dispatched!(f32_on(operands: &Operands<'_, f32>, rows: usize, columns: Range<usize>) = blocks);
dispatched!(bf16_on(operands: &Operands<'_, u16>, rows: usize, columns: Range<usize>) = blocks over bf16);

/// The largest number of rows for which a product is bound by the weights' bandwidth alone. It then reads one row of
/// weights after the other: the hardware prefetcher follows that twice as fast as it follows our requests.
const STREAMED: usize = 2;

/// Goes through blocks of weight rows, smaller ones at the end; all rows of `x` pass over a block before the next one.
#[inline(always)]
unsafe fn blocks<F: Operand>(operands: &Operands<'_, F::Element>, rows: usize, columns: Range<usize>) {
    let mut column = columns.start;
    // SAFETY: the caller's promise, which covers each block.
    unsafe {
        if rows > STREAMED {
            match F::TILE_COLUMNS {
                6 => blocks_of::<F, 6>(operands, rows, &mut column, columns.end),
                3 => blocks_of::<F, 3>(operands, rows, &mut column, columns.end),
                _ => {}
            }
            if F::TILE_COLUMNS >= 4 {
                blocks_of::<F, 4>(operands, rows, &mut column, columns.end);
            }
            blocks_of::<F, 2>(operands, rows, &mut column, columns.end);
        }
        blocks_of::<F, 1>(operands, rows, &mut column, columns.end);
    }
}

/// Computes as many blocks of `N` columns as fit before `end`.
#[inline(always)]
unsafe fn blocks_of<F: Operand, const N: usize>(
    operands: &Operands<'_, F::Element>,
    rows: usize,
    column: &mut usize,
    end: usize,
) {
    let inputs = operands.gemm.inputs;
    let tiles = rows / 4 + rows % 4 / 2 + rows % 2;
    let lines = (N * inputs * size_of::<F::Element>()).div_ceil(LINE);
    let steps = inputs / F::COUNT;
    let per_step = lines.div_ceil((tiles * steps).max(1));
    // SAFETY: the caller's promise; a block ends within the columns, a tile within the rows.
    unsafe {
        while *column + N <= end {
            let lines = if rows > STREAMED && *column + 2 * N <= end { lines } else { 0 };
            let mut fetch = Fetch { next: operands.weight.row(*column + N).cast(), lines, per_step };
            let mut row = 0;
            while row + 4 <= rows {
                tile::<F, 4, N>(operands, row, *column, &mut fetch);
                row += 4;
            }
            if row + 2 <= rows {
                tile::<F, 2, N>(operands, row, *column, &mut fetch);
                row += 2;
            }
            if row < rows {
                tile::<F, 1, N>(operands, row, *column, &mut fetch);
            }
            *column += N;
        }
    }
}

/// The block to prefetch, a few cache lines with each step along `k`.
struct Fetch {
    next: *const u8,
    lines: usize,
    per_step: usize,
}

impl Fetch {
    fn nothing() -> Self {
        Self { next: std::ptr::null(), lines: 0, per_step: 0 }
    }

    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.per_step.min(self.lines) {
            prefetch(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
        self.lines = self.lines.saturating_sub(self.per_step);
    }
}

/// Computes `M` × `N` outputs.
#[inline(always)]
unsafe fn tile<F: Operand, const M: usize, const N: usize>(
    operands: &Operands<'_, F::Element>,
    row: usize,
    column: usize,
    fetch: &mut Fetch,
) {
    let Operands { gemm, weight, x, y, accumulate } = *operands;
    // SAFETY: the caller's promise.
    unsafe {
        let zeros = [[<F::Sum as Simd>::splat(0.0); N]; M];
        let mut sums = add_products::<F, M, N>(zeros, x.at_row(row), weight.at_row(column), gemm.inputs, fetch);
        if let Some(low_rank) = &gemm.low_rank {
            let (inner, up) = (low_rank.inner.at_row(row), low_rank.up.at_row(column));
            sums = add_products::<F::Sum, M, N>(sums, inner, up, low_rank.rank, &mut Fetch::nothing());
        }
        let totals = totals(&sums);
        for (m, totals) in totals.iter().enumerate() {
            let y_row = y.row(row + m).add(column);
            for (n, total) in totals.iter().enumerate() {
                let mut total = *total;
                if let Some(bias) = gemm.bias {
                    total += *bias.row(0).add(column + n);
                }
                if accumulate == Accumulate::Add {
                    total += *y_row.add(n);
                }
                *y_row.add(n) = total;
            }
        }
    }
}

/// Sums the lanes of each register; four registers at a time where rows come in fours.
#[inline(always)]
unsafe fn totals<L: Simd, const M: usize, const N: usize>(sums: &[[L; N]; M]) -> [[f32; N]; M] {
    let mut totals = [[0.0; N]; M];
    // SAFETY: the caller's promise.
    unsafe {
        for n in 0..N {
            if M == 4 {
                let four = L::sums([sums[0][n], sums[1][n], sums[2][n], sums[3][n]]);
                for m in 0..M {
                    totals[m][n] = four[m];
                }
            } else {
                for m in 0..M {
                    totals[m][n] = sums[m][n].sum();
                }
            }
        }
    }
    totals
}

/// Computes `sums[m][n] + a[m] · b[n]`, lane by lane.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over indices are unrolled, and then the sums stay in registers")]
unsafe fn add_products<F: Operand, const M: usize, const N: usize>(
    mut sums: [[F::Sum; N]; M],
    a: Rows<F::Element>,
    b: Rows<F::Element>,
    count: usize,
    fetch: &mut Fetch,
) -> [[F::Sum; N]; M] {
    // SAFETY: the caller's promise: `count` elements in each of M and N rows; an input of no elements is a register of
    // zeros.

    unsafe {
        let mut k = 0;
        let mut right = [F::load_first(b.row(0), 0); N];
        while k + F::COUNT <= count {
            fetch.step();
            for n in 0..N {
                right[n] = F::load(b.row(n).add(k));
            }
            for m in 0..M {
                let left = F::load(a.row(m).add(k));
                for n in 0..N {
                    sums[m][n] = left.fma(right[n], sums[m][n]);
                }
            }
            k += F::COUNT;
        }
        if k < count {
            let rest = count - k;
            for n in 0..N {
                right[n] = F::load_first(b.row(n).add(k), rest);
            }
            for m in 0..M {
                let left = F::load_first(a.row(m).add(k), rest);
                for n in 0..N {
                    sums[m][n] = left.fma(right[n], sums[m][n]);
                }
            }
        }
        sums
    }
}
