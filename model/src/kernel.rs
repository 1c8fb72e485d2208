//! Arithmetic for small batches on the CPU, written by hand.
//!
//! Decoding multiplies a few rows by all of the weights. A general library packs operands for large matrices first, or
//! streams weights one operation at a time; for 1 to 128 rows that leaves half of the machine unused. Here a product
//! reads the weights as they lie, once, in blocks of columns that stay in the first cache while all rows pass over them,
//! and fetches the next block meanwhile. So there is no second copy of the weights in another layout. Only gradients, which
//! sum down the columns of the weights, copy a small panel of them at a time.
//!
//! Every output is a sum over one row and one weight row in a fixed order, whatever else is in the batch and however
//! many threads share the work. A sequence is therefore decoded to the same bits alone and in company.
//!
//! [`sheet`], [`thin`] and [`vocab`] take tensors. The functions below them take raw addresses: threads write disjoint
//! parts of one buffer, which slices cannot say. Whoever calls those vouches for sizes and for that disjointness;
//! `architecture/decoder/decode.rs` is the one caller outside of this folder.

#![expect(unsafe_code, reason = "vector instructions, and threads that write disjoint parts of one buffer")]
#![expect(clippy::inline_always, reason = "a generic kernel has to become part of the function with the instructions")]

mod attend;
mod factor;
pub(crate) mod heads;
mod lanes;
mod panel;
mod product;
mod row;
pub(crate) mod sheet;
mod team;
pub(crate) mod thin;
pub(crate) mod vocab;

pub(crate) use attend::{Attend, attend};
pub(crate) use product::{Into, LowRankTerm, Product, UNIT, members, multiply};
pub(crate) use row::{gate_silu, rms_norm, rotate};
pub(crate) use team::{Barrier, share_of, together};

use tch::{Kind, Tensor};

/// Rows of numbers that lie a fixed distance apart, to be read; of f32 unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<T = f32> {
    first: *const T,
    /// From one row to the next, in numbers.
    stride: usize,
}

/// The same, to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowsMut<T = f32> {
    first: *mut T,
    stride: usize,
}

/// Frozen weights, as they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Matrix {
    /// f32
    Full(Rows),
    /// bf16. What they are multiplied with is rounded to bf16 too; sums are f32.
    Half(Rows<u16>),
}

// SAFETY: an address may travel between threads; who reads and writes what is the callers' business, as said above.
unsafe impl<T> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Send for RowsMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for RowsMut<T> {}

impl Matrix {
    /// A matrix of f32 or bf16 on the CPU whose rows are contiguous.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        if tensor.kind() == Kind::BFloat16 { Self::Half(Rows::of_halves(tensor)) } else { Self::Full(Rows::of(tensor)) }
    }
}

impl Rows {
    /// A matrix of f32 on the CPU whose rows are contiguous.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        debug_assert!(tensor.kind() == Kind::Float && tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast_const().cast(), stride: tensor.size().last().map_or(0, |n| *n as usize) }
    }
}

impl Rows<u16> {
    fn of_halves(tensor: &Tensor) -> Self {
        debug_assert!(tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast_const().cast(), stride: tensor.size().last().map_or(0, |n| *n as usize) }
    }
}

impl<T: Copy> Rows<T> {
    /// The address of a row.
    pub(crate) fn row(self, row: usize) -> *const T {
        self.first.wrapping_add(row * self.stride)
    }

    /// The rows from this one on.
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { first: self.row(row), ..self }
    }

    /// The same rows under numbers that begin at `first`.
    pub(crate) fn numbered_from(self, first: usize) -> Self {
        Self { first: self.first.wrapping_sub(first * self.stride), ..self }
    }

    /// The same rows without the first `columns` numbers of each.
    pub(crate) fn at_column(self, columns: usize) -> Self {
        Self { first: self.first.wrapping_add(columns), ..self }
    }

    /// The first `count` numbers of a row.
    ///
    /// # Safety
    /// They are there, and nobody writes to them while the slice lives.
    pub(crate) unsafe fn slice<'a>(self, row: usize, count: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.row(row), count) }
    }
}

impl RowsMut {
    /// A tensor of f32 on the CPU, contiguous, as rows of `stride` numbers.
    pub(crate) fn of_tensor(tensor: &Tensor, stride: usize) -> Self {
        debug_assert!(tensor.kind() == Kind::Float && tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast(), stride }
    }
}

impl<T: Copy> RowsMut<T> {
    /// A buffer of rows of `stride` numbers.
    pub(crate) fn of(buffer: &mut [T], stride: usize) -> Self {
        Self { first: buffer.as_mut_ptr(), stride }
    }

    /// To be read in a later phase.
    pub(crate) fn read(self) -> Rows<T> {
        Rows { first: self.first, stride: self.stride }
    }

    pub(crate) fn row(self, row: usize) -> *mut T {
        self.first.wrapping_add(row * self.stride)
    }

    /// The rows from this one on.
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { first: self.row(row), ..self }
    }

    /// The first `count` numbers of a row.
    ///
    /// # Safety
    /// They are there, and nobody else reads or writes them while the slice lives.
    pub(crate) unsafe fn slice<'a>(self, row: usize, count: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.row(row), count) }
    }

    /// The same rows without the first `columns` numbers of each.
    pub(crate) fn at_column(self, columns: usize) -> Self {
        Self { first: self.first.wrapping_add(columns), ..self }
    }
}

#[cfg(test)]
mod tests;
