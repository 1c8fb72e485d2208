//! The backward GEMM of a linear layer, rows of gradients times weights: `y = Σ g W`.
//!
//! ```text
//! y[m, n] = Σ_terms Σ_k g[m, k] W[k, n]
//! ```
//!
//! A panel of `W`, some columns wide and [`DEPTH`] deep, is copied so that its rows are contiguous, and stays in the
//! near caches while tiles of rows pass over it. Rows of bf16 are copied in pairs, element by element, as they are
//! multiplied. Adapters are further terms of the sum. The summation order of an output does not depend on the other
//! rows.

use super::{Accumulate, LINE};
use crate::kernel::dtype::{Bf16Rows, Operand, to_bf16};
use crate::kernel::simd::{Instructions, Simd, dispatched, prefetch};
use crate::kernel::threads::{run_threads, share_of, thread_count};
use crate::kernel::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::Tensor;

/// One term `g W` of the sum.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Term {
    /// `g`, `[row, depth]`
    pub(in crate::kernel) left: Rows,
    /// `W`, `[depth, output]`
    pub(in crate::kernel) weight: Matrix,
    pub(in crate::kernel) depth: usize,
}

impl Term {
    /// A term of contiguous matrices on the CPU: `left`, `[row, depth]` f32, and `weight`, `[depth, output]` f32 or
    /// bf16.
    pub(in crate::kernel) fn new(left: &Tensor, weight: &Tensor) -> Self {
        let depth = left.size()[1];
        assert_eq!(weight.size()[0], depth, "a gradient has a column for every row of the weights");
        Self { left: Rows::of(left), weight: Matrix::of(weight), depth: depth as usize }
    }
}

/// Depth of a panel in rows of f32, twice as many of bf16: a panel of 48 columns is then 36 KiB.
const DEPTH: usize = 192;

/// Rows that pass over a panel together: enough to amortise its copy, few enough for their inputs and outputs to stay
/// in the L2 cache.
const BLOCK: usize = 512;

/// Width of a tile in registers, except for the last tile of a row.
const TILE_COLUMNS: usize = 3;

/// The widest panel in columns, the unit in which threads share them.
const UNIT: usize = TILE_COLUMNS * 16;

/// A cache line of a panel's row, aligned so that no load crosses a line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read and written through the address")] [f32; 16]);

/// Writes the sum of `terms` to `y`, `[row, outputs]`, on as many threads as are worth it.
///
/// # Safety
/// All views cover the sizes given; nothing else writes or reads `y`, or writes the terms, meanwhile.
pub(in crate::kernel) unsafe fn gemm_backward(terms: &[Term], rows: usize, outputs: usize, y: RowsMut) {
    let depth: usize = terms.iter().map(|term| term.depth).sum();
    let threads = thread_count(rows * outputs * depth);
    // Threads share the columns; where those are too few, each share of columns is split by rows.
    let across = threads.min(outputs.div_ceil(UNIT)).max(1);
    let down = threads / across;
    run_threads(across * down, |thread, _| {
        let columns = share_of(thread % across, across, outputs, UNIT);
        let own = share_of(thread / across, down, rows, 8);
        // SAFETY: the machine has its best instructions, and each thread writes a part of its own; the rest is the
        // caller's promise.
        unsafe { gemm_backward_on(Instructions::best(), terms, own, columns, y) }
    });
}

dispatched!(gemm_backward_on(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) = panels over bf16);

/// `H` multiplies weights of bf16; those of f32 are multiplied in registers of `H::Sum`.
#[inline(always)]
unsafe fn panels<H: Operand<Element = u16>>(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) {
    let width = TILE_COLUMNS * <H::Sum as Simd>::WIDTH;
    let mut storage = vec![Line([0.0; 16]); DEPTH * width / 16];
    let panel = storage.as_mut_ptr();
    // SAFETY: the caller's promise; a panel has room for `DEPTH` rows of `width` elements of 32 bits.
    unsafe {
        for first in rows.clone().step_by(BLOCK) {
            let (count, y) = (BLOCK.min(rows.end - first), y.at_row(first));
            let factors: Vec<Factors> = terms.iter().map(|term| Factors::of(term, first, count)).collect();
            for column in columns.clone().step_by(width) {
                let (columns, accumulate) = (width.min(columns.end - column), Accumulate::Overwrite);
                let mut block = Block { rows: count, y, column, columns, accumulate };
                for (term, factors) in terms.iter().zip(&factors) {
                    match factors {
                        Factors::F32(left, weight) => {
                            block.add::<H::Sum>(*left, *weight, term.depth, panel.cast());
                        }
                        Factors::Bf16(left, weight) => {
                            block.add::<H>(left.rows(), *weight, term.depth, panel.cast());
                        }
                    }
                }
            }
        }
    }
}

/// Some rows of a term's gradients, and its weights, in one format.
enum Factors {
    F32(Rows, Rows),
    Bf16(Bf16Rows, Rows<u16>),
}

impl Factors {
    /// # Safety
    /// See [`gemm_backward`].
    unsafe fn of(term: &Term, first: usize, rows: usize) -> Self {
        let left = term.left.at_row(first);
        match term.weight {
            Matrix::F32(weight) => Self::F32(left, weight),
            // SAFETY: the caller's promise.
            Matrix::Bf16(weight) => Self::Bf16(unsafe { to_bf16(left, rows, term.depth) }, weight),
        }
    }
}

/// A block of outputs that are summed together.
struct Block {
    rows: usize,
    y: RowsMut,
    /// The first column.
    column: usize,
    /// The number of columns.
    columns: usize,
    /// The effect of the next panel's products on `y`.
    accumulate: Accumulate,
}

impl Block {
    /// Adds the products of some rows with `weight`, one panel after the other.
    #[inline(always)]
    unsafe fn add<F: Operand>(
        &mut self,
        left: Rows<F::Element>,
        weight: Rows<F::Element>,
        depth: usize,
        panel: *mut F::Element,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.columns.div_ceil(<F::Sum as Simd>::WIDTH) {
                1 => self.add_of::<F, 1>(left, weight, depth, panel),
                2 => self.add_of::<F, 2>(left, weight, depth, panel),
                _ => self.add_of::<F, TILE_COLUMNS>(left, weight, depth, panel),
            }
        }
    }

    /// [`Self::add`] by tiles of `N` registers.
    #[inline(always)]
    unsafe fn add_of<F: Operand, const N: usize>(
        &mut self,
        left: Rows<F::Element>,
        weight: Rows<F::Element>,
        depth: usize,
        panel: *mut F::Element,
    ) {
        let (weight, y) = (weight.at_column(self.column), self.y.at_column(self.column));
        let width = N * <F::Sum as Simd>::WIDTH;
        let deepest = DEPTH * F::STEP;
        for start in (0..depth).step_by(deepest) {
            let here = deepest.min(depth - start);
            let next = start + here;
            let mut ahead =
                Ahead { rows: weight.at_row(next), count: deepest.min(depth - next), columns: self.columns };
            // SAFETY: the caller's promise.
            unsafe {
                copy::<F>(weight.at_row(start), here, self.columns, panel, width);
                let left = left.at_column(start);
                let steps = here.div_ceil(F::STEP);
                pass::<F, N>(left, self.rows, panel, steps, y, self.columns, self.accumulate, &mut ahead);
            }
            self.accumulate = Accumulate::Add;
        }
    }
}

/// Copies a panel: `STEP` rows interleaved element by element, padded with zeros after the last column and the last
/// row.
#[inline(always)]
unsafe fn copy<F: Operand>(weight: Rows<F::Element>, depth: usize, count: usize, panel: *mut F::Element, width: usize) {
    for (step, k) in (0..depth).step_by(F::STEP).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(panel.add(step * width * F::STEP), width * F::STEP) };
        if count < width || k + F::STEP > depth {
            to.fill(F::Element::default());
        }
        // SAFETY: as above.
        unsafe { F::interleave(weight.at_row(k), F::STEP.min(depth - k), count, to.as_mut_ptr()) }
    }
}

/// The source of the next panel, to prefetch: pieces of rows, too far apart for the hardware prefetcher.
struct Ahead<T> {
    rows: Rows<T>,
    count: usize,
    columns: usize,
}

impl<T: Copy> Ahead<T> {
    /// Prefetches one more row, if there is one.
    #[inline(always)]
    fn fetch(&mut self) {
        if self.count == 0 {
            return;
        }
        let row: *const u8 = self.rows.row(0).cast();
        for byte in (0..self.columns * size_of::<T>()).step_by(LINE) {
            prefetch(row.wrapping_add(byte));
        }
        self.rows = self.rows.at_row(1);
        self.count -= 1;
    }
}

/// Writes or adds the products of all rows with one panel to `y`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop")]
unsafe fn pass<F: Operand, const N: usize>(
    left: Rows<F::Element>,
    rows: usize,
    panel: *const F::Element,
    steps: usize,
    y: RowsMut,
    count: usize,
    accumulate: Accumulate,
    ahead: &mut Ahead<F::Element>,
) {
    let mut row = 0;
    // SAFETY: the caller's promise; a tile ends within the rows.
    unsafe {
        if <F::Sum as Simd>::WIDTH == 16 {
            while row + 8 <= rows {
                let fetched = ahead.count.div_ceil((rows - row) / 8);
                tile::<F, 8, N>(left.at_row(row), panel, steps, y.at_row(row), count, accumulate, ahead, fetched);
                row += 8;
            }
        }
        while row + 4 <= rows {
            let fetched = ahead.count.div_ceil((rows - row) / 4);
            tile::<F, 4, N>(left.at_row(row), panel, steps, y.at_row(row), count, accumulate, ahead, fetched);
            row += 4;
        }
        while row < rows {
            tile::<F, 1, N>(left.at_row(row), panel, steps, y.at_row(row), count, accumulate, ahead, 0);
            row += 1;
        }
    }
}

/// Computes `M` rows of outputs while `fetched` rows of the next panel are prefetched.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over indices are unrolled, and then the sums stay in registers")]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop")]
unsafe fn tile<F: Operand, const M: usize, const N: usize>(
    left: Rows<F::Element>,
    panel: *const F::Element,
    steps: usize,
    y: RowsMut,
    count: usize,
    accumulate: Accumulate,
    ahead: &mut Ahead<F::Element>,
    fetched: usize,
) {
    let lanes = <F::Sum as Simd>::WIDTH;
    // SAFETY: the caller's promise: `steps` times `STEP` elements of M rows, as many rows of the panel, `count` of M
    // rows of `y`.
    unsafe {
        let mut sums = [[<F::Sum as Simd>::splat(0.0); N]; M];
        let mut right = [F::load(panel); N];
        let stretch = steps / (fetched + 1) + 1;
        let mut until = stretch;
        for step in 0..steps {
            until -= 1;
            if until == 0 {
                ahead.fetch();
                until = stretch;
            }
            for n in 0..N {
                right[n] = F::load(panel.add((step * N + n) * F::COUNT));
            }
            for m in 0..M {
                let element = F::broadcast(left.row(m).add(step * F::STEP));
                for n in 0..N {
                    sums[m][n] = element.fma(right[n], sums[m][n]);
                }
            }
        }
        let one = <F::Sum as Simd>::splat(1.0);
        for m in 0..M {
            for n in 0..N {
                let at = y.row(m).wrapping_add(n * lanes);
                let (here, sum) = (count.saturating_sub(n * lanes), sums[m][n]);
                match (here >= lanes, accumulate) {
                    (true, Accumulate::Overwrite) => sum.store(at),
                    (true, Accumulate::Add) => sum.plus_product(one, <F::Sum as Simd>::load(at)).store(at),
                    (false, _) if here == 0 => {}
                    (false, Accumulate::Overwrite) => sum.store_first(at, here),
                    (false, Accumulate::Add) => {
                        sum.plus_product(one, <F::Sum as Simd>::load_first(at, here)).store_first(at, here);
                    }
                }
            }
        }
    }
}
