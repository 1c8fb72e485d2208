//! Products with one thin side, the factors of adapters.
//!
//! A general library runs a product of `[1024, 576]` and `[576, 16]` at a tenth of the machine's speed. Both functions
//! here pass once over the wide operand.

use super::{Accumulate, Gemm, gemm};
use crate::kernel::simd::{Instructions, Simd, dispatched};
use crate::kernel::threads::{run_threads, share_of, thread_count};
use crate::kernel::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Some columns of a matrix of f32 on the CPU with contiguous rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ColumnView {
    rows: usize,
    first: Rows,
    columns: usize,
}

impl ColumnView {
    /// A view of `columns` of `tensor`, `[row, column]`.
    pub(crate) fn of(tensor: &Tensor, columns: Range<i64>) -> Self {
        let first = Rows::of(tensor).at_column(columns.start as usize);
        Self { rows: tensor.size()[0] as usize, first, columns: columns.count() }
    }
}

/// Computes `x aᵀ`: `[row, column]` and `[rank, column]` to `[row, rank]`.
pub(crate) fn matmul_nt(x: ColumnView, a: &Tensor) -> Tensor {
    let rank = a.size()[0] as usize;
    let y = Tensor::empty([x.rows as i64, rank as i64], (Kind::Float, a.device()));
    let product = Gemm { weight: Matrix::F32(Rows::of(a)), inputs: x.columns, bias: None, low_rank: None };
    let to = RowsMut::of_tensor(&y, rank);
    let threads = thread_count(x.rows * x.columns * rank);
    run_threads(threads, |thread, _| {
        let own = share_of(thread, threads, x.rows, 4);
        // SAFETY: the sizes are the tensors' own, and each thread writes rows of its own.
        unsafe {
            let (from, to) = (x.first.at_row(own.start), to.at_row(own.start));
            gemm(&product, from, own.len(), 0..rank, to, Accumulate::Overwrite);
        }
    });
    y
}

/// Computes `uᵀ x`: `[row, rank]` and `[row, column]` to `[rank, column]`.
pub(crate) fn matmul_tn(u: &Tensor, x: ColumnView) -> Tensor {
    let rank = u.size()[1] as usize;
    let y = Tensor::empty([rank as i64, x.columns as i64], (Kind::Float, u.device()));
    let (left, to) = (Rows::of(u), RowsMut::of_tensor(&y, x.columns));
    let threads = thread_count(x.rows * x.columns * rank);
    run_threads(threads, |thread, _| {
        let own = share_of(thread, threads, x.columns, 48);
        // SAFETY: the sizes are the tensors' own, and each thread writes columns of its own.
        unsafe { matmul_tn_on(Instructions::best(), left, rank, x.first, x.rows, own, to) }
    });
    y
}

dispatched!(matmul_tn_on(left: Rows, rank: usize, right: Rows, rows: usize, columns: Range<usize>, to: RowsMut) = sums);

/// Goes through tiles of 8 ranks and 3 registers of columns, fewer at the ends.
#[inline(always)]
unsafe fn sums<L: Simd>(left: Rows, rank: usize, right: Rows, rows: usize, columns: Range<usize>, to: RowsMut) {
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

/// Computes `R` ranks and `C` registers of columns, all full except for a single one.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over indices are unrolled, and then the sums stay in registers")]
unsafe fn tile<L: Simd, const R: usize, const C: usize>(
    left: Rows,
    right: Rows,
    rows: usize,
    width: usize,
    to: RowsMut,
) {
    // SAFETY: the caller's promise: `R` elements of `left`, `width` of `right` and of `to`, in each row.
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
