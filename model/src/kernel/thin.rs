//! Products with one thin side, which adapters are made of.
//!
//! A general library gives a product of `[1024, 576]` and `[576, 16]` a tenth of the machine. Both kinds here pass once
//! over the wide operand.

use super::lanes::{Instructions, Lanes, dispatched};
use super::product::{Into, Product, members, multiply};
use super::team::{share_of, together};
use super::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Some columns of a matrix of f32 on the CPU whose rows are contiguous.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wide {
    rows: usize,
    first: Rows,
    columns: usize,
}

impl Wide {
    /// All columns, or those of a fused output that belong to one part.
    pub(crate) fn of(tensor: &Tensor, columns: Range<i64>) -> Self {
        let first = Rows::of(tensor).at_column(columns.start as usize);
        Self { rows: tensor.size()[0] as usize, first, columns: columns.count() }
    }
}

/// `x aᵀ`, `[row, columns]` and `[rank, columns]` to `[row, rank]`.
pub(crate) fn inner(x: Wide, a: &Tensor) -> Tensor {
    let rank = a.size()[0] as usize;
    let y = Tensor::empty([x.rows as i64, rank as i64], (Kind::Float, a.device()));
    let product = Product { weight: Matrix::Full(Rows::of(a)), inputs: x.columns, bias: None, low_rank: None };
    let to = RowsMut::of_tensor(&y, rank);
    let members = members(x.rows * x.columns * rank);
    together(members, |member, _| {
        let own = share_of(member, members, x.rows, 4);
        // SAFETY: the sizes are the tensors' own, and each member writes rows of its own.
        unsafe {
            multiply(&product, x.first.at_row(own.start), own.len(), 0..rank, to.at_row(own.start), Into::Fresh);
        }
    });
    y
}

/// `Σ_row thin[row]ᵀ x[row]`, `[row, rank]` and `[row, columns]` to `[rank, columns]`.
pub(crate) fn gathered(thin: &Tensor, x: Wide) -> Tensor {
    let rank = thin.size()[1] as usize;
    let y = Tensor::empty([rank as i64, x.columns as i64], (Kind::Float, thin.device()));
    let (left, to) = (Rows::of(thin), RowsMut::of_tensor(&y, x.columns));
    let members = members(x.rows * x.columns * rank);
    together(members, |member, _| {
        let own = share_of(member, members, x.columns, 48);
        // SAFETY: the sizes are the tensors' own, and each member writes columns of its own.
        unsafe { gathered_on(Instructions::best(), left, rank, x.first, x.rows, own, to) }
    });
    y
}

dispatched!(gathered_on(left: Rows, rank: usize, right: Rows, rows: usize, columns: Range<usize>, to: RowsMut) = sums);

/// Tiles of 8 ranks and 3 registers of columns, fewer at the ends.
#[inline(always)]
unsafe fn sums<L: Lanes>(left: Rows, rank: usize, right: Rows, rows: usize, columns: Range<usize>, to: RowsMut) {
    let mut column = columns.start;
    // SAFETY: the caller's promise, which covers each tile.
    unsafe {
        while column < columns.end {
            let rest = columns.end - column;
            let (width, registers) = if rest >= 3 * L::WIDTH { (3 * L::WIDTH, 3) } else { (rest.min(L::WIDTH), 1) };
            let mut r = 0;
            while r < rank {
                let ranks = if rank - r >= 8 {
                    8
                } else if rank - r >= 4 {
                    4
                } else {
                    1
                };
                let (left, right) = (left.at_column(r), right.at_column(column));
                let to = to.at_column(column).at_row(r);
                match (ranks, registers) {
                    (8, 3) => tile::<L, 8, 3>(left, right, rows, width, to),
                    (4, 3) => tile::<L, 4, 3>(left, right, rows, width, to),
                    (_, 3) => tile::<L, 1, 3>(left, right, rows, width, to),
                    (8, _) => tile::<L, 8, 1>(left, right, rows, width, to),
                    (4, _) => tile::<L, 4, 1>(left, right, rows, width, to),
                    _ => tile::<L, 1, 1>(left, right, rows, width, to),
                }
                r += ranks;
            }
            column += width;
        }
    }
}

/// `R` ranks and `C` registers of columns, all full but for a single one.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over places are unrolled, and then the sums stay in registers")]
unsafe fn tile<L: Lanes, const R: usize, const C: usize>(
    left: Rows,
    right: Rows,
    rows: usize,
    width: usize,
    to: RowsMut,
) {
    // SAFETY: the caller's promise: `R` numbers of `left`, `width` of `right` and of `to`, in each row.
    unsafe {
        let full = width == C * L::WIDTH;
        let mut sums = [[L::splat(0.0); C]; R];
        for row in 0..rows {
            let (thin, wide) = (left.row(row), right.row(row));
            let mut x = [L::splat(0.0); C];
            for c in 0..C {
                let from = wide.add(c * L::WIDTH);
                x[c] = if full { L::load(from) } else { L::load_first(from, width) };
            }
            for r in 0..R {
                let weight = L::splat(*thin.add(r));
                for c in 0..C {
                    sums[r][c] = sums[r][c].plus_product(weight, x[c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                let at = to.row(r).add(c * L::WIDTH);
                if full { sums[r][c].store(at) } else { sums[r][c].store_first(at, width) }
            }
        }
    }
}
