//! Rows of gradients times weights, the way back through a linear layer: `y = Σ g W`.
//!
//! ```text
//! y[m, n] = Σ_terms Σ_k g[m, k] W[k, n]
//! ```
//!
//! A panel of `W`, some columns wide and [`DEPTH`] deep, is copied so that its rows lie one behind the other, and stays
//! in the near caches while tiles of rows pass over it. Adapters are further terms of the sum. The order in which one
//! output is summed does not depend on what other rows there are.

use super::lanes::{Instructions, Lanes, dispatched};
use super::product::{Into, members};
use super::team::{share_of, together};
use super::{Rows, RowsMut};
use std::ops::Range;
use tch::Tensor;

/// One product of the sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// `g`, `[row, depth]`
    left: Rows,
    /// `W`, `[depth, output]`
    weight: Rows,
    depth: usize,
}

impl Term {
    /// Matrices of f32 on the CPU whose rows are contiguous.
    pub(super) fn new(left: &Tensor, weight: &Tensor) -> Self {
        let depth = left.size()[1];
        assert_eq!(weight.size()[0], depth, "a gradient has a column for every row of the weights");
        Self { left: Rows::of(left), weight: Rows::of(weight), depth: depth as usize }
    }
}

/// Numbers of one output's sum that are copied at a time: a panel of 48 columns is then 36 KiB.
const DEPTH: usize = 192;

/// Rows that pass over a panel together: few enough for their inputs and outputs to stay in the second cache.
const BLOCK: usize = 256;

/// Registers that a tile is wide.
const ACROSS: usize = 3;

/// The widest panel, whose columns threads are given in multiples of.
const UNIT: usize = ACROSS * 16;

/// What a row of a panel is stored in, so that no load crosses a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read and written through the address")] [f32; 16]);

/// Writes `y`, `[row, outputs]`, by as many threads as are worth it.
///
/// # Safety
/// All addresses are those of enough numbers, and nobody else writes or reads `y` meanwhile, or writes what is read here.
pub(super) unsafe fn multiply(terms: &[Term], rows: usize, outputs: usize, y: RowsMut) {
    let depth: usize = terms.iter().map(|term| term.depth).sum();
    let members = members(rows * outputs * depth);
    // Threads share the columns; where there are too few of those, each share of columns is shared by rows.
    let across = members.min(outputs.div_ceil(UNIT)).max(1);
    let down = members / across;
    together(across * down, |member, _| {
        let columns = share_of(member % across, across, outputs, UNIT);
        let own = share_of(member / across, down, rows, 8);
        // SAFETY: the best instructions are there, and each member writes a part of its own; the rest is the caller's
        // promise.
        unsafe { multiply_on(Instructions::best(), terms, own, columns, y) }
    });
}

dispatched!(multiply_on(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) = panels);

#[inline(always)]
unsafe fn panels<L: Lanes>(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) {
    let width = ACROSS * L::WIDTH;
    let mut storage = vec![Line([0.0; 16]); DEPTH * width / 16];
    let panel = storage.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's promise; a panel has room for `DEPTH` rows of `width` numbers.
    unsafe {
        for first in rows.clone().step_by(BLOCK) {
            let block = first..rows.end.min(first + BLOCK);
            for column in columns.clone().step_by(width) {
                let (y, count) = (y.at_column(column), width.min(columns.end - column));
                let mut into = Into::Fresh;
                for term in terms {
                    let weight = term.weight.at_column(column);
                    for start in (0..term.depth).step_by(DEPTH) {
                        let depth = DEPTH.min(term.depth - start);
                        copy(weight.at_row(start), depth, count, panel, width);
                        pass::<L>(term.left.at_column(start), block.clone(), panel, depth, y, count, into);
                        into = Into::Sum;
                    }
                }
            }
        }
    }
}

/// Copies a panel, with zeros behind the last column.
#[inline(always)]
unsafe fn copy(weight: Rows, depth: usize, count: usize, panel: *mut f32, width: usize) {
    for k in 0..depth {
        // SAFETY: the caller's promise.
        unsafe {
            let to = panel.add(k * width);
            std::ptr::copy_nonoverlapping(weight.row(k), to, count);
            std::slice::from_raw_parts_mut(to.add(count), width - count).fill(0.0);
        }
    }
}

/// The products of all rows with one panel, written or added to `y`.
#[inline(always)]
unsafe fn pass<L: Lanes>(
    left: Rows,
    rows: Range<usize>,
    panel: *const f32,
    depth: usize,
    y: RowsMut,
    count: usize,
    into: Into,
) {
    let mut row = rows.start;
    // SAFETY: the caller's promise; a tile ends within the rows.
    unsafe {
        if L::WIDTH == 16 {
            while row + 8 <= rows.end {
                tile::<L, 8>(left.at_row(row), panel, depth, y.at_row(row), count, into);
                row += 8;
            }
        }
        while row + 4 <= rows.end {
            tile::<L, 4>(left.at_row(row), panel, depth, y.at_row(row), count, into);
            row += 4;
        }
        while row < rows.end {
            tile::<L, 1>(left.at_row(row), panel, depth, y.at_row(row), count, into);
            row += 1;
        }
    }
}

/// `M` rows of outputs.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over places are unrolled, and then the sums stay in registers")]
unsafe fn tile<L: Lanes, const M: usize>(
    left: Rows,
    panel: *const f32,
    depth: usize,
    y: RowsMut,
    count: usize,
    into: Into,
) {
    let width = ACROSS * L::WIDTH;
    // SAFETY: the caller's promise: `depth` numbers of M rows, as many rows of the panel, `count` of M rows of `y`.
    unsafe {
        let mut sums = [[L::splat(0.0); ACROSS]; M];
        let mut right = [L::splat(0.0); ACROSS];
        for k in 0..depth {
            for n in 0..ACROSS {
                right[n] = L::load(panel.add(k * width + n * L::WIDTH));
            }
            for m in 0..M {
                let number = L::splat(*left.row(m).add(k));
                for n in 0..ACROSS {
                    sums[m][n] = sums[m][n].plus_product(number, right[n]);
                }
            }
        }
        let one = L::splat(1.0);
        for m in 0..M {
            for n in 0..ACROSS {
                let at = y.row(m).wrapping_add(n * L::WIDTH);
                let (here, sum) = (count.saturating_sub(n * L::WIDTH), sums[m][n]);
                match (here >= L::WIDTH, into) {
                    (true, Into::Fresh) => sum.store(at),
                    (true, Into::Sum) => sum.plus_product(one, L::load(at)).store(at),
                    (false, _) if here == 0 => {}
                    (false, Into::Fresh) => sum.store_first(at, here),
                    (false, Into::Sum) => sum.plus_product(one, L::load_first(at, here)).store_first(at, here),
                }
            }
        }
    }
}
