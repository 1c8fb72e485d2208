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

use super::factor::{Factor, narrowed};
use super::lanes::{Instructions, Lanes, dispatched, prefetch};
use super::{Matrix, Rows, RowsMut};
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
    pub(crate) weight: Matrix,
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

/// The same on these instructions, which the machine must have.
///
/// # Safety
/// See [`multiply`].
pub(super) unsafe fn multiply_on(
    instructions: Instructions,
    product: &Product,
    x: Rows,
    rows: usize,
    columns: Range<usize>,
    y: RowsMut,
    into: Into,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match product.weight {
            Matrix::Full(weight) => {
                full_on(instructions, &Operands { product, weight, x, y, into }, rows, columns);
            }
            Matrix::Half(weight) => {
                let narrow = narrowed(x, rows, product.inputs);
                half_on(instructions, &Operands { product, weight, x: narrow.rows(), y, into }, rows, columns);
            }
        }
    }
}

/// What is multiplied, in numbers of one kind, and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, T> {
    product: &'a Product,
    weight: Rows<T>,
    x: Rows<T>,
    y: RowsMut,
    into: Into,
}

dispatched!(full_on(operands: &Operands<'_, f32>, rows: usize, columns: Range<usize>) = blocks);
dispatched!(half_on(operands: &Operands<'_, u16>, rows: usize, columns: Range<usize>) = blocks by halves);

/// Rows that are so few that a product waits for its weights whatever it does: it then reads one row of weights after
/// the other, which the processor sees and fetches ahead twice as fast as it does what we ask for.
const STREAMED: usize = 2;

/// Blocks of weight rows, smaller ones at the end; all rows of `x` pass over a block before the next one.
#[inline(always)]
unsafe fn blocks<F: Factor>(operands: &Operands<'_, F::Number>, rows: usize, columns: Range<usize>) {
    let mut column = columns.start;
    // SAFETY: the caller's promise, which covers each block.
    unsafe {
        if rows > STREAMED {
            match F::ACROSS {
                6 => blocks_of::<F, 6>(operands, rows, &mut column, columns.end),
                3 => blocks_of::<F, 3>(operands, rows, &mut column, columns.end),
                _ => {}
            }
            if F::ACROSS >= 4 {
                blocks_of::<F, 4>(operands, rows, &mut column, columns.end);
            }
            blocks_of::<F, 2>(operands, rows, &mut column, columns.end);
        }
        blocks_of::<F, 1>(operands, rows, &mut column, columns.end);
    }
}

/// As many blocks of `N` columns as there is room for.
#[inline(always)]
unsafe fn blocks_of<F: Factor, const N: usize>(
    operands: &Operands<'_, F::Number>,
    rows: usize,
    column: &mut usize,
    end: usize,
) {
    let inputs = operands.product.inputs;
    let tiles = rows / 4 + rows % 4 / 2 + rows % 2;
    let lines = (N * inputs * size_of::<F::Number>()).div_ceil(LINE);
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

/// Bytes of a line of the caches.
pub(super) const LINE: usize = 64;

/// What is fetched ahead, a few cache lines with each step along `k`.
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

/// `M` × `N` outputs.
#[inline(always)]
unsafe fn tile<F: Factor, const M: usize, const N: usize>(
    operands: &Operands<'_, F::Number>,
    row: usize,
    column: usize,
    fetch: &mut Fetch,
) {
    let Operands { product, weight, x, y, into } = *operands;
    // SAFETY: the caller's promise.
    unsafe {
        let zeros = [[<F::Sum as Lanes>::splat(0.0); N]; M];
        let mut sums = accumulate::<F, M, N>(zeros, x.at_row(row), weight.at_row(column), product.inputs, fetch);
        if let Some(low_rank) = &product.low_rank {
            let (inner, up) = (low_rank.inner.at_row(row), low_rank.up.at_row(column));
            sums = accumulate::<F::Sum, M, N>(sums, inner, up, low_rank.rank, &mut Fetch::nothing());
        }
        let totals = totals(&sums);
        for (m, totals) in totals.iter().enumerate() {
            let y_row = y.row(row + m).add(column);
            for (n, total) in totals.iter().enumerate() {
                let mut total = *total;
                if let Some(bias) = product.bias {
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

/// The sum of each register; of four at a time where rows come in fours.
#[inline(always)]
unsafe fn totals<L: Lanes, const M: usize, const N: usize>(sums: &[[L; N]; M]) -> [[f32; N]; M] {
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

/// `sums[m][n] + a[m] · b[n]`, lane by lane.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over places are unrolled, and then the sums stay in registers")]
unsafe fn accumulate<F: Factor, const M: usize, const N: usize>(
    mut sums: [[F::Sum; N]; M],
    a: Rows<F::Number>,
    b: Rows<F::Number>,
    count: usize,
    fetch: &mut Fetch,
) -> [[F::Sum; N]; M] {
    // SAFETY: the caller's promise: `count` numbers in each of M and N rows; an input of no numbers is a register of
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
                    sums[m][n] = left.added(right[n], sums[m][n]);
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
                    sums[m][n] = left.added(right[n], sums[m][n]);
                }
            }
        }
        sums
    }
}
