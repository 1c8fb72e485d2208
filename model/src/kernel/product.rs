//! A few rows times all of the weights: `y = x Wᵀ`, with a low-rank update in the same pass.
//!
//! ```text
//! y[m, n] = Σ_k x[m, k] W[n, k] + Σ_r u[m, r] B[n, r] + bias[n]        u = s · g ∘ (A x)
//! ```
//!
//! A tile of 4 × 6 outputs is summed in registers along `k`, so `W` needs no other layout than the checkpoint's, rows
//! of inputs. The low-rank term goes on where `k` ended: an adapter of rank 16 adds one step to the 36 of SmolLM2's 576
//! inputs instead of a product of its own. While one block of weight rows is in use, the next is being fetched.
//!
//! One output's sum does not depend on which tile it is in: the order along `k` is the same in all of them.

use super::lanes::{Instructions, Lanes, dispatched, prefetch};
use super::{Rows, RowsMut};
use std::ops::Range;

/// The second factor of an adapter's update and what it is multiplied by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowRankTerm {
    /// `u`, `[row, rank]`: the scaled and gated inner product.
    pub(crate) inner: Rows,
    /// `B`, `[outputs, rank]`
    pub(crate) up: Rows,
    /// Columns of both.
    pub(crate) rank: usize,
}

/// The right-hand side of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// `W`, `[outputs, inputs]`
    pub(crate) weight: Rows,
    /// Columns of `W`.
    pub(crate) inputs: usize,
    /// One row of as many numbers as `W` has rows.
    pub(crate) bias: Option<Rows>,
    /// An adapter's part.
    pub(crate) low_rank: Option<LowRankTerm>,
}

/// What becomes of what `y` held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// It is overwritten.
    Fresh,
    /// It is added to.
    Sum,
}

/// Columns that threads are given at least: several blocks of any width.
pub(crate) const UNIT: usize = 24;

/// How many threads are worth starting for this many multiplications: libtorch's number, or one if the work is shorter
/// than their start.
pub(crate) fn members(multiplications: usize) -> usize {
    const WORTH_A_THREAD: usize = 1 << 19;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    threads.min(multiplications / WORTH_A_THREAD).max(1)
}

/// Computes some columns of `y`, `[row, outputs]`, for all `rows` of `x`, `[row, inputs]`.
///
/// # Safety
/// All addresses are those of enough numbers; nobody else writes these columns or reads them, or writes `x`, meanwhile.
pub(crate) unsafe fn multiply(product: &Product, x: Rows, rows: usize, columns: Range<usize>, y: RowsMut, into: Into) {
    // SAFETY: the best instructions are there; the rest is the caller's promise.
    unsafe { multiply_on(Instructions::best(), product, x, rows, columns, y, into) }
}

dispatched!(multiply_on(product: &Product, x: Rows, rows: usize, columns: Range<usize>, y: RowsMut, into: Into) = blocks);

/// Blocks of weight rows, smaller ones at the end; all rows of `x` pass over a block before the next one.
#[inline(always)]
unsafe fn blocks<L: Lanes>(p: &Product, x: Rows, rows: usize, columns: Range<usize>, y: RowsMut, into: Into) {
    let mut column = columns.start;
    // SAFETY: the caller's promise, which covers each block.
    unsafe {
        match (L::WIDTH, rows) {
            (16, 1) => blocks_of::<L, 8>(p, x, rows, &mut column, columns.end, y, into),
            (16, _) => blocks_of::<L, 6>(p, x, rows, &mut column, columns.end, y, into),
            _ => blocks_of::<L, 3>(p, x, rows, &mut column, columns.end, y, into),
        }
        blocks_of::<L, 4>(p, x, rows, &mut column, columns.end, y, into);
        blocks_of::<L, 2>(p, x, rows, &mut column, columns.end, y, into);
        blocks_of::<L, 1>(p, x, rows, &mut column, columns.end, y, into);
    }
}

/// As many blocks of `N` columns as there is room for.
#[inline(always)]
unsafe fn blocks_of<L: Lanes, const N: usize>(
    p: &Product,
    x: Rows,
    rows: usize,
    column: &mut usize,
    end: usize,
    y: RowsMut,
    into: Into,
) {
    let tiles = rows / 4 + rows % 4 / 2 + rows % 2;
    let lines = (N * p.inputs).div_ceil(NUMBERS_PER_LINE);
    let steps = p.inputs / L::WIDTH;
    let per_step = lines.div_ceil((tiles * steps).max(1));
    // SAFETY: the caller's promise; a block ends within the columns, a tile within the rows.
    unsafe {
        while *column + N <= end {
            let more = *column + 2 * N <= end;
            let mut fetch = Fetch { next: p.weight.row(*column + N), lines: if more { lines } else { 0 }, per_step };
            let mut row = 0;
            while row + 4 <= rows {
                tile::<L, 4, N>(p, x, row, *column, y, into, &mut fetch);
                row += 4;
            }
            if row + 2 <= rows {
                tile::<L, 2, N>(p, x, row, *column, y, into, &mut fetch);
                row += 2;
            }
            if row < rows {
                tile::<L, 1, N>(p, x, row, *column, y, into, &mut fetch);
            }
            *column += N;
        }
    }
}

const NUMBERS_PER_LINE: usize = 16;

/// What is fetched ahead, a few cache lines with each step along `k`.
struct Fetch {
    next: *const f32,
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
            self.next = self.next.wrapping_add(NUMBERS_PER_LINE);
        }
        self.lines = self.lines.saturating_sub(self.per_step);
    }
}

/// `M` × `N` outputs.
#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const N: usize>(
    p: &Product,
    x: Rows,
    row: usize,
    column: usize,
    y: RowsMut,
    into: Into,
    fetch: &mut Fetch,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zeros = [[L::splat(0.0); N]; M];
        let (x_row, w_row) = (x.row(row), p.weight.row(column));
        let mut sums = accumulate(zeros, x_row, x.stride, w_row, p.weight.stride, p.inputs, fetch);
        if let Some(low_rank) = &p.low_rank {
            let (u_row, b_row) = (low_rank.inner.row(row), low_rank.up.row(column));
            let fetch = &mut Fetch::nothing();
            sums = accumulate(sums, u_row, low_rank.inner.stride, b_row, low_rank.up.stride, low_rank.rank, fetch);
        }
        for (m, sums) in sums.iter().enumerate() {
            let y_row = y.row(row + m).add(column);
            for (n, sum) in sums.iter().enumerate() {
                let mut total = sum.sum();
                if let Some(bias) = p.bias {
                    total += *bias.row(0).add(column + n);
                }
                if into == Into::Sum {
                    total += *y_row.add(n);
                }
                *y_row.add(n) = total;
            }
        }
    }
}

/// `sums[m][n] + a[m] · b[n]`, lane by lane.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over places are unrolled, and then the sums stay in registers")]
unsafe fn accumulate<L: Lanes, const M: usize, const N: usize>(
    mut sums: [[L; N]; M],
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    count: usize,
    fetch: &mut Fetch,
) -> [[L; N]; M] {
    // SAFETY: the caller's promise: `count` numbers from each of M and N addresses.
    unsafe {
        let mut k = 0;
        let mut right = [L::splat(0.0); N];
        while k + L::WIDTH <= count {
            fetch.step();
            for n in 0..N {
                right[n] = L::load(b.add(n * b_stride + k));
            }
            for m in 0..M {
                let left = L::load(a.add(m * a_stride + k));
                for n in 0..N {
                    sums[m][n] = sums[m][n].plus_product(left, right[n]);
                }
            }
            k += L::WIDTH;
        }
        if k < count {
            let rest = count - k;
            for n in 0..N {
                right[n] = L::load_first(b.add(n * b_stride + k), rest);
            }
            for m in 0..M {
                let left = L::load_first(a.add(m * a_stride + k), rest);
                for n in 0..N {
                    sums[m][n] = sums[m][n].plus_product(left, right[n]);
                }
            }
        }
        sums
    }
}
