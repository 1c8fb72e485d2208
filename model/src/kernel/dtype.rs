//! Element formats of products: f32, and bf16 with sums in f32.
//!
//! bf16 is multiplied in pairs along `k`, as the instruction `vdpbf16ps` does: `sum += a₀ b₀ + a₁ b₁` in each lane.
//! Without that instruction each element is widened and multiplied as f32, which still halves memory and bandwidth.
//! Inputs are rounded to the nearest bf16 first; weights are stored in bf16.

use super::simd::{Instructions, Simd, dispatched};
use super::{Rows, RowsMut};

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, __m512bh, __m512i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_slli_epi32, _mm512_and_si512, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi16, _mm512_set1_epi32, _mm512_slli_epi32,
};

/// A register of elements of one format, as a factor of products.
///
/// All functions are unsafe for the reasons that [`Simd`] gives.
pub(super) trait Operand: Copy {
    /// The register that sums products.
    type Sum: Simd;
    /// The element in memory.
    type Element: Copy + Default;
    /// Elements along `k` in one lane.
    const STEP: usize;
    /// Elements in a register.
    const COUNT: usize = Self::STEP * <Self::Sum as Simd>::WIDTH;
    /// Columns of outputs in a tile of four rows, as many as there are registers for.
    const TILE_COLUMNS: usize;

    /// Loads `COUNT` elements from any address.
    unsafe fn load(from: *const Self::Element) -> Self;
    /// Loads the first `count` < `COUNT` elements; the others are zero.
    unsafe fn load_first(from: *const Self::Element, count: usize) -> Self;
    /// Loads `STEP` elements into every lane.
    unsafe fn broadcast(from: *const Self::Element) -> Self;
    /// Interleaves the first `count` elements of `STEP` rows: all first elements, all second ones and so on. Rows from
    /// `present` (at least 1) on are not read, and become zeros or are left out.
    unsafe fn interleave(rows: Rows<Self::Element>, present: usize, count: usize, to: *mut Self::Element);
    /// Computes `sum + self · other`, lane by lane.
    unsafe fn fma(self, other: Self, sum: Self::Sum) -> Self::Sum;
}

impl<L: Simd> Operand for L {
    type Sum = L;
    type Element = f32;
    const STEP: usize = 1;
    const TILE_COLUMNS: usize = if L::WIDTH == 16 { 6 } else { 3 };

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::load_first(from, count) }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::splat(*from) }
    }

    #[inline(always)]
    unsafe fn interleave(rows: Rows, _: usize, count: usize, to: *mut f32) {
        let whole = count / 16 * 16;
        // SAFETY: the caller's promise. Sixteen at a time, which are moves and not a call.
        unsafe {
            for at in (0..whole).step_by(16) {
                std::ptr::copy_nonoverlapping(rows.row(0).add(at), to.add(at), 16);
            }
            std::ptr::copy_nonoverlapping(rows.row(0).add(whole), to.add(whole), count - whole);
        }
    }

    #[inline(always)]
    unsafe fn fma(self, other: Self, sum: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(self, other) }
    }
}

/// 32 elements of bf16, multiplied by one instruction.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct NativeBf16(__m512bh);

#[cfg(target_arch = "x86_64")]
impl Operand for NativeBf16 {
    type Sum = Avx512;
    type Element = u16;
    const STEP: usize = 2;
    const TILE_COLUMNS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self {
        // SAFETY: the caller's promise; both types are 64 plain bytes.
        unsafe { Self(std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u16, count: usize) -> Self {
        // SAFETY: as above; lanes that are masked out are not read.
        unsafe {
            let mask = (1u64 << count).wrapping_sub(1) as u32;
            Self(std::mem::transmute::<__m512i, __m512bh>(_mm512_maskz_loadu_epi16(mask, from.cast())))
        }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u16) -> Self {
        // SAFETY: as above.
        unsafe {
            Self(std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())))
        }
    }

    #[inline(always)]
    unsafe fn interleave(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { in_pairs(rows, present, count, to) }
    }

    #[inline(always)]
    unsafe fn fma(self, other: Self, sum: Avx512) -> Avx512 {
        // SAFETY: the caller's promise.
        unsafe { Avx512(_mm512_dpbf16_ps(sum.0, self.0, other.0)) }
    }
}

/// A pair of bf16 elements per lane, widened to f32: the first of each pair, and the second.
#[derive(Clone, Copy)]
pub(super) struct WidenedBf16<L>(L, L);

/// Widening of a register of bf16 pairs.
pub(super) trait Widen: Simd {
    /// Loads `2 WIDTH` elements of bf16 as the first and the second elements of pairs.
    unsafe fn widened(from: *const u16) -> WidenedBf16<Self>;
}

#[cfg(target_arch = "x86_64")]
impl Widen for Avx512 {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WidenedBf16<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs: __m512i = _mm512_loadu_si512(from.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32.cast_signed()));
            let first = _mm512_slli_epi32::<16>(pairs);
            WidenedBf16(Self(_mm512_castsi512_ps(first)), Self(_mm512_castsi512_ps(second)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Widen for Avx2 {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WidenedBf16<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs: __m256i = _mm256_loadu_si256(from.cast());
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32.cast_signed()));
            let first = _mm256_slli_epi32::<16>(pairs);
            WidenedBf16(Self(_mm256_castsi256_ps(first)), Self(_mm256_castsi256_ps(second)))
        }
    }
}

impl Widen for super::simd::Portable {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WidenedBf16<Self> {
        // SAFETY: the caller's promise.
        let pairs = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        let part = |offset: usize| Self(std::array::from_fn(|lane| widen(pairs[2 * lane + offset])));
        WidenedBf16(part(0), part(1))
    }
}

impl<L: Widen> Operand for WidenedBf16<L> {
    type Sum = L;
    type Element = u16;
    const STEP: usize = 2;
    const TILE_COLUMNS: usize = if L::WIDTH == 16 { 4 } else { 2 };

    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::widened(from) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u16, count: usize) -> Self {
        let mut padded = [0u16; 32];
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
            L::widened(padded.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(L::splat(widen(*from)), L::splat(widen(*from.add(1)))) }
    }

    #[inline(always)]
    unsafe fn interleave(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { in_pairs(rows, present, count, to) }
    }

    #[inline(always)]
    unsafe fn fma(self, other: Self, sum: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(self.0, other.0).plus_product(self.1, other.1) }
    }
}

/// Interleaves two rows, or one row and zeros.
#[inline(always)]
unsafe fn in_pairs(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
    // SAFETY: the caller's promise; a pair is two elements.
    unsafe {
        let to = std::slice::from_raw_parts_mut(to.cast::<[u16; 2]>(), count);
        let first = rows.slice(0, count);
        if present == 1 {
            to.iter_mut().zip(first).for_each(|(to, first)| *to = [*first, 0]);
        } else {
            let pairs = first.iter().zip(rows.slice(1, count));
            to.iter_mut().zip(pairs).for_each(|(to, (first, second))| *to = [*first, *second]);
        }
    }
}

#[inline(always)]
fn widen(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

/// The nearest bf16, ties to even.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    // The NaN that arithmetic produces, 7fc00000, stays a NaN.
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rows of bf16, as [`to_bf16`] makes them.
pub(super) struct Bf16Rows {
    elements: Vec<u16>,
    stride: usize,
}

impl Bf16Rows {
    pub(super) fn rows(&self) -> Rows<u16> {
        Rows::at(self.elements.as_ptr(), self.stride)
    }
}

/// Rounds the first `count` elements of `rows` rows to bf16, with a zero after an odd last one.
///
/// # Safety
/// The elements exist, and nothing writes to them meanwhile.
pub(super) unsafe fn to_bf16(x: Rows, rows: usize, count: usize) -> Bf16Rows {
    let stride = count.next_multiple_of(2);
    let mut elements = vec![0u16; rows * stride];
    let to = RowsMut::at(elements.as_mut_ptr(), stride);
    for row in 0..rows {
        // SAFETY: the caller's promise; the machine has its best instructions.
        unsafe { narrow_on(Instructions::best(), x.row(row), count, to.row(row)) }
    }
    Bf16Rows { elements, stride }
}

dispatched!(narrow_on(from: *const f32, count: usize, to: *mut u16) = narrow_row);

#[inline(always)]
unsafe fn narrow_row<L: Simd>(from: *const f32, count: usize, to: *mut u16) {
    // SAFETY: the caller's promise. The generic parameter only picks the instructions.
    let (from, to) = unsafe { (std::slice::from_raw_parts(from, count), std::slice::from_raw_parts_mut(to, count)) };
    for (to, from) in to.iter_mut().zip(from) {
        *to = narrow(*from);
    }
}
