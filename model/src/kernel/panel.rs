//! Rows of gradients times weights, the way back through a linear layer: `y = Σ g W`.
//!
//! ```text
//! y[m, n] = Σ_terms Σ_k g[m, k] W[k, n]
//! ```
//!
//! A panel of `W`, some columns wide and [`DEPTH`] deep, is copied so that its rows lie one behind the other, and stays
//! in the near caches while tiles of rows pass over it. Rows of halves are copied in pairs, number by number, as they are
//! multiplied. Adapters are further terms of the sum. The order in which one output is summed does not depend on what
//! other rows there are.

use super::factor::{Factor, Narrowed, narrowed};
use super::lanes::{Instructions, Lanes, dispatched, prefetch};
use super::product::{Into, LINE, members};
use super::team::{share_of, together};
use super::{Matrix, Rows, RowsMut};
use std::ops::Range;
use tch::Tensor;

/// One product of the sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    /// `g`, `[row, depth]`
    pub(super) left: Rows,
    /// `W`, `[depth, output]`
    pub(super) weight: Matrix,
    pub(super) depth: usize,
}

impl Term {
    /// Matrices on the CPU whose rows are contiguous, of f32, or weights of bf16.
    pub(super) fn new(left: &Tensor, weight: &Tensor) -> Self {
        let depth = left.size()[1];
        assert_eq!(weight.size()[0], depth, "a gradient has a column for every row of the weights");
        Self { left: Rows::of(left), weight: Matrix::of(weight), depth: depth as usize }
    }
}

/// Numbers of one output's sum that are copied at a time, twice as many halves: a panel of 48 columns is then 36 KiB.
const DEPTH: usize = 192;

/// Rows that pass over a panel together: enough of them to make up for its copy, and few enough for their inputs and
/// outputs to stay in the second cache.
const BLOCK: usize = 512;

/// Registers that a tile is wide, but for the last one of a row.
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

dispatched!(multiply_on(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) = panels by halves);

/// `H` is for weights of halves; those of f32 are multiplied by what halves are summed in.
#[inline(always)]
unsafe fn panels<H: Factor<Number = u16>>(terms: &[Term], rows: Range<usize>, columns: Range<usize>, y: RowsMut) {
    let width = ACROSS * <H::Sum as Lanes>::WIDTH;
    let mut storage = vec![Line([0.0; 16]); DEPTH * width / 16];
    let panel = storage.as_mut_ptr();
    // SAFETY: the caller's promise; a panel has room for `DEPTH` rows of `width` numbers of 32 bits.
    unsafe {
        for first in rows.clone().step_by(BLOCK) {
            let (count, y) = (BLOCK.min(rows.end - first), y.at_row(first));
            let factors: Vec<Factors> = terms.iter().map(|term| Factors::of(term, first, count)).collect();
            for column in columns.clone().step_by(width) {
                let mut block =
                    Block { rows: count, y, column, columns: width.min(columns.end - column), into: Into::Fresh };
                for (term, factors) in terms.iter().zip(&factors) {
                    match factors {
                        Factors::Full(left, weight) => {
                            block.add::<H::Sum>(*left, *weight, term.depth, panel.cast());
                        }
                        Factors::Half(left, weight) => {
                            block.add::<H>(left.rows(), *weight, term.depth, panel.cast());
                        }
                    }
                }
            }
        }
    }
}

/// Some rows of a term's gradients, and its weights, in numbers of one kind.
enum Factors {
    Full(Rows, Rows),
    Half(Narrowed, Rows<u16>),
}

impl Factors {
    /// # Safety
    /// See [`multiply`].
    unsafe fn of(term: &Term, first: usize, rows: usize) -> Self {
        let left = term.left.at_row(first);
        match term.weight {
            Matrix::Full(weight) => Self::Full(left, weight),
            // SAFETY: the caller's promise.
            Matrix::Half(weight) => Self::Half(unsafe { narrowed(left, rows, term.depth) }, weight),
        }
    }
}

/// Outputs that are summed together.
struct Block {
    rows: usize,
    y: RowsMut,
    /// The first column, and how many.
    column: usize,
    columns: usize,
    /// What the next panel's products do to `y`.
    into: Into,
}

impl Block {
    /// Adds the products of some rows with `weight`, one panel after the other.
    #[inline(always)]
    unsafe fn add<F: Factor>(
        &mut self,
        left: Rows<F::Number>,
        weight: Rows<F::Number>,
        depth: usize,
        panel: *mut F::Number,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.columns.div_ceil(<F::Sum as Lanes>::WIDTH) {
                1 => self.add_of::<F, 1>(left, weight, depth, panel),
                2 => self.add_of::<F, 2>(left, weight, depth, panel),
                _ => self.add_of::<F, ACROSS>(left, weight, depth, panel),
            }
        }
    }

    /// The same by tiles of `N` registers.
    #[inline(always)]
    unsafe fn add_of<F: Factor, const N: usize>(
        &mut self,
        left: Rows<F::Number>,
        weight: Rows<F::Number>,
        depth: usize,
        panel: *mut F::Number,
    ) {
        let (weight, y) = (weight.at_column(self.column), self.y.at_column(self.column));
        let width = N * <F::Sum as Lanes>::WIDTH;
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
                pass::<F, N>(left, self.rows, panel, steps, y, self.columns, self.into, &mut ahead);
            }
            self.into = Into::Sum;
        }
    }
}

/// Copies a panel: `STEP` rows side by side, number by number, with zeros behind the last column and the last row.
#[inline(always)]
unsafe fn copy<F: Factor>(weight: Rows<F::Number>, depth: usize, count: usize, panel: *mut F::Number, width: usize) {
    for (step, k) in (0..depth).step_by(F::STEP).enumerate() {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(panel.add(step * width * F::STEP), width * F::STEP) };
        if count < width || k + F::STEP > depth {
            to.fill(F::Number::default());
        }
        // SAFETY: as above.
        unsafe { F::beside(weight.at_row(k), F::STEP.min(depth - k), count, to.as_mut_ptr()) }
    }
}

/// What the next panel is copied from: pieces of rows, too far apart for the processor to see that they follow.
struct Ahead<T> {
    rows: Rows<T>,
    count: usize,
    columns: usize,
}

impl<T: Copy> Ahead<T> {
    /// Asks for one more row, if there is one.
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

/// The products of all rows with one panel, written or added to `y`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop")]
unsafe fn pass<F: Factor, const N: usize>(
    left: Rows<F::Number>,
    rows: usize,
    panel: *const F::Number,
    steps: usize,
    y: RowsMut,
    count: usize,
    into: Into,
    ahead: &mut Ahead<F::Number>,
) {
    let mut row = 0;
    // SAFETY: the caller's promise; a tile ends within the rows.
    unsafe {
        if <F::Sum as Lanes>::WIDTH == 16 {
            while row + 8 <= rows {
                let fetched = ahead.count.div_ceil((rows - row) / 8);
                tile::<F, 8, N>(left.at_row(row), panel, steps, y.at_row(row), count, into, ahead, fetched);
                row += 8;
            }
        }
        while row + 4 <= rows {
            let fetched = ahead.count.div_ceil((rows - row) / 4);
            tile::<F, 4, N>(left.at_row(row), panel, steps, y.at_row(row), count, into, ahead, fetched);
            row += 4;
        }
        while row < rows {
            tile::<F, 1, N>(left.at_row(row), panel, steps, y.at_row(row), count, into, ahead, 0);
            row += 1;
        }
    }
}

/// `M` rows of outputs, while `fetched` rows of what is copied next are fetched.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops over places are unrolled, and then the sums stay in registers")]
#[expect(clippy::too_many_arguments, reason = "it is the body of a loop")]
unsafe fn tile<F: Factor, const M: usize, const N: usize>(
    left: Rows<F::Number>,
    panel: *const F::Number,
    steps: usize,
    y: RowsMut,
    count: usize,
    into: Into,
    ahead: &mut Ahead<F::Number>,
    fetched: usize,
) {
    let lanes = <F::Sum as Lanes>::WIDTH;
    // SAFETY: the caller's promise: `steps` times `STEP` numbers of M rows, as many rows of the panel, `count` of M rows of
    // `y`.
    unsafe {
        let mut sums = [[<F::Sum as Lanes>::splat(0.0); N]; M];
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
                let number = F::everywhere(left.row(m).add(step * F::STEP));
                for n in 0..N {
                    sums[m][n] = number.added(right[n], sums[m][n]);
                }
            }
        }
        let one = <F::Sum as Lanes>::splat(1.0);
        for m in 0..M {
            for n in 0..N {
                let at = y.row(m).wrapping_add(n * lanes);
                let (here, sum) = (count.saturating_sub(n * lanes), sums[m][n]);
                match (here >= lanes, into) {
                    (true, Into::Fresh) => sum.store(at),
                    (true, Into::Sum) => sum.plus_product(one, <F::Sum as Lanes>::load(at)).store(at),
                    (false, _) if here == 0 => {}
                    (false, Into::Fresh) => sum.store_first(at, here),
                    (false, Into::Sum) => {
                        sum.plus_product(one, <F::Sum as Lanes>::load_first(at, here)).store_first(at, here);
                    }
                }
            }
        }
    }
}
