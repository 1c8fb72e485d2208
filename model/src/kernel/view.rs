//! Strided views of matrices as raw addresses, which threads may share.

use tch::{Kind, Tensor};

/// A read-only view of matrix rows a fixed distance apart; of f32 unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<T = f32> {
    first: *const T,
    /// Distance between two rows, in elements.
    stride: usize,
}

/// A writable view of matrix rows a fixed distance apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowsMut<T = f32> {
    first: *mut T,
    /// Distance between two rows, in elements.
    stride: usize,
}

/// Frozen weights in their stored format.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Matrix {
    /// f32
    F32(Rows),
    /// bf16. Inputs are rounded to bf16 too; sums are f32.
    Bf16(Rows<u16>),
}

// SAFETY: an address may travel between threads; disjointness of accesses is the callers' guarantee, as `kernel` says.
unsafe impl<T> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Send for RowsMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for RowsMut<T> {}

impl Matrix {
    /// A view of a contiguous matrix of f32 or bf16 on the CPU, `[row, column]`.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        if tensor.kind() == Kind::BFloat16 { Self::Bf16(Rows::of_bf16(tensor)) } else { Self::F32(Rows::of(tensor)) }
    }
}

impl Rows {
    /// A view of a contiguous matrix of f32 on the CPU, `[row, column]`, or of a vector as one row.
    pub(crate) fn of(tensor: &Tensor) -> Self {
        debug_assert!(tensor.kind() == Kind::Float && tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast_const().cast(), stride: tensor.size().last().map_or(0, |n| *n as usize) }
    }
}

impl Rows<u16> {
    /// A view of a contiguous matrix of bf16 on the CPU, `[row, column]`.
    fn of_bf16(tensor: &Tensor) -> Self {
        debug_assert!(tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast_const().cast(), stride: tensor.size().last().map_or(0, |n| *n as usize) }
    }
}

impl<T> Rows<T> {
    /// A view of rows `stride` elements apart from this address on.
    pub(super) fn at(first: *const T, stride: usize) -> Self {
        Self { first, stride }
    }

    /// The distance between two rows, in elements.
    pub(super) fn stride(self) -> usize {
        self.stride
    }
}

impl<T: Copy> Rows<T> {
    /// The address of a row.
    pub(crate) fn row(self, row: usize) -> *const T {
        self.first.wrapping_add(row * self.stride)
    }

    /// The rows from `row` on.
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { first: self.row(row), ..self }
    }

    /// The same rows with indices that begin at `first`.
    pub(crate) fn indexed_from(self, first: usize) -> Self {
        Self { first: self.first.wrapping_sub(first * self.stride), ..self }
    }

    /// The same rows without their first `columns` elements.
    pub(crate) fn at_column(self, columns: usize) -> Self {
        Self { first: self.first.wrapping_add(columns), ..self }
    }

    /// The first `count` elements of a row.
    ///
    /// # Safety
    /// The elements exist, and nothing writes to them while the slice lives.
    pub(crate) unsafe fn slice<'a>(self, row: usize, count: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.row(row), count) }
    }
}

impl RowsMut {
    /// A view of a contiguous tensor of f32 on the CPU as `[row, stride]`.
    pub(crate) fn of_tensor(tensor: &Tensor, stride: usize) -> Self {
        debug_assert!(tensor.kind() == Kind::Float && tensor.is_contiguous());
        Self { first: tensor.data_ptr().cast(), stride }
    }
}

impl<T> RowsMut<T> {
    /// A view of rows `stride` elements apart from this address on.
    pub(super) fn at(first: *mut T, stride: usize) -> Self {
        Self { first, stride }
    }
}

impl<T: Copy> RowsMut<T> {
    /// A view of a buffer as rows of `stride` elements.
    pub(crate) fn of(buffer: &mut [T], stride: usize) -> Self {
        Self { first: buffer.as_mut_ptr(), stride }
    }

    /// A read-only view of the same rows, for a later phase.
    pub(crate) fn read(self) -> Rows<T> {
        Rows { first: self.first, stride: self.stride }
    }

    /// The address of a row.
    pub(crate) fn row(self, row: usize) -> *mut T {
        self.first.wrapping_add(row * self.stride)
    }

    /// The rows from `row` on.
    pub(crate) fn at_row(self, row: usize) -> Self {
        Self { first: self.row(row), ..self }
    }

    /// The first `count` elements of a row.
    ///
    /// # Safety
    /// The elements exist, and nothing else reads or writes them while the slice lives.
    pub(crate) unsafe fn slice<'a>(self, row: usize, count: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.row(row), count) }
    }

    /// The same rows without their first `columns` elements.
    pub(crate) fn at_column(self, columns: usize) -> Self {
        Self { first: self.first.wrapping_add(columns), ..self }
    }
}
