//! What a product multiplies: numbers of 32 bits, or halves (bf16) whose products are summed in 32 bits.
//!
//! Halves are taken two at a time along `k`, as the instruction `vdpbf16ps` takes them: `sum += a₀ b₀ + a₁ b₁` in each
//! lane. Where a machine has no such instruction, each half is widened and multiplied as f32, which saves memory and what
//! reading it costs. Inputs are rounded to the nearest half on the way in, weights already are halves.

use super::lanes::{Instructions, Lanes, dispatched};
use super::{Rows, RowsMut};

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, __m512bh, __m512i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_slli_epi32, _mm512_and_si512, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi16, _mm512_set1_epi32, _mm512_slli_epi32,
};

/// Numbers of one kind and how a register of them is multiplied.
///
/// All functions are unsafe for the reasons that [`Lanes`] gives.
pub(super) trait Factor: Copy {
    /// What products are summed in.
    type Sum: Lanes;
    /// What lies in memory.
    type Number: Copy + Default;
    /// Numbers along `k` that one lane takes at a time.
    const STEP: usize;
    /// Numbers in a register.
    const COUNT: usize = Self::STEP * <Self::Sum as Lanes>::WIDTH;
    /// Columns of outputs in a tile of four rows: as many as registers are for.
    const ACROSS: usize;

    /// `COUNT` numbers from any address.
    unsafe fn load(from: *const Self::Number) -> Self;
    /// The first `count` < `COUNT` numbers; the others are zero.
    unsafe fn load_first(from: *const Self::Number, count: usize) -> Self;
    /// `STEP` numbers in every lane.
    unsafe fn everywhere(from: *const Self::Number) -> Self;
    /// Writes the first `count` numbers of `STEP` rows side by side, number by number: all firsts, all seconds and so
    /// on. Of rows beyond `present`, which is at least one, nothing is read, and nothing or zeros are written.
    unsafe fn beside(rows: Rows<Self::Number>, present: usize, count: usize, to: *mut Self::Number);
    /// `sum + self · other`, lane by lane.
    unsafe fn added(self, other: Self, sum: Self::Sum) -> Self::Sum;
}

impl<L: Lanes> Factor for L {
    type Sum = L;
    type Number = f32;
    const STEP: usize = 1;
    const ACROSS: usize = if L::WIDTH == 16 { 6 } else { 3 };

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
    unsafe fn everywhere(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::splat(*from) }
    }

    #[inline(always)]
    unsafe fn beside(rows: Rows, _: usize, count: usize, to: *mut f32) {
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
    unsafe fn added(self, other: Self, sum: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(self, other) }
    }
}

/// 32 halves, multiplied by one instruction.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct NativeHalves(__m512bh);

#[cfg(target_arch = "x86_64")]
impl Factor for NativeHalves {
    type Sum = Avx512;
    type Number = u16;
    const STEP: usize = 2;
    const ACROSS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self {
        // SAFETY: the caller's promise; both are 64 bytes without a meaning of their own.
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
    unsafe fn everywhere(from: *const u16) -> Self {
        // SAFETY: as above.
        unsafe {
            Self(std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())))
        }
    }

    #[inline(always)]
    unsafe fn beside(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { in_pairs(rows, present, count, to) }
    }

    #[inline(always)]
    unsafe fn added(self, other: Self, sum: Avx512) -> Avx512 {
        // SAFETY: the caller's promise.
        unsafe { Avx512(_mm512_dpbf16_ps(sum.0, self.0, other.0)) }
    }
}

/// As many pairs of halves as there are lanes, widened: the first of each pair, and the second.
#[derive(Clone, Copy)]
pub(super) struct WideHalves<L>(L, L);

/// How a register of pairs is widened.
pub(super) trait Widen: Lanes {
    /// `2 WIDTH` halves as the firsts and the seconds of pairs.
    unsafe fn widened(from: *const u16) -> WideHalves<Self>;
}

#[cfg(target_arch = "x86_64")]
impl Widen for Avx512 {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WideHalves<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs: __m512i = _mm512_loadu_si512(from.cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32.cast_signed()));
            let first = _mm512_slli_epi32::<16>(pairs);
            WideHalves(Self(_mm512_castsi512_ps(first)), Self(_mm512_castsi512_ps(second)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Widen for Avx2 {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WideHalves<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs: __m256i = _mm256_loadu_si256(from.cast());
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32.cast_signed()));
            let first = _mm256_slli_epi32::<16>(pairs);
            WideHalves(Self(_mm256_castsi256_ps(first)), Self(_mm256_castsi256_ps(second)))
        }
    }
}

impl Widen for super::lanes::Portable {
    #[inline(always)]
    unsafe fn widened(from: *const u16) -> WideHalves<Self> {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        let part = |place: usize| Self(std::array::from_fn(|lane| widen(halves[2 * lane + place])));
        WideHalves(part(0), part(1))
    }
}

impl<L: Widen> Factor for WideHalves<L> {
    type Sum = L;
    type Number = u16;
    const STEP: usize = 2;
    const ACROSS: usize = if L::WIDTH == 16 { 4 } else { 2 };

    #[inline(always)]
    unsafe fn load(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::widened(from) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const u16, count: usize) -> Self {
        let mut halves = [0u16; 32];
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from, halves.as_mut_ptr(), count);
            L::widened(halves.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn everywhere(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(L::splat(widen(*from)), L::splat(widen(*from.add(1)))) }
    }

    #[inline(always)]
    unsafe fn beside(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { in_pairs(rows, present, count, to) }
    }

    #[inline(always)]
    unsafe fn added(self, other: Self, sum: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { sum.plus_product(self.0, other.0).plus_product(self.1, other.1) }
    }
}

/// Two rows side by side, or one and zeros.
#[inline(always)]
unsafe fn in_pairs(rows: Rows<u16>, present: usize, count: usize, to: *mut u16) {
    // SAFETY: the caller's promise; a pair is two numbers.
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
fn widen(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// The nearest half, the even one of two.
#[inline(always)]
fn narrow(number: f32) -> u16 {
    let bits = number.to_bits();
    // The NaN that arithmetic makes, 7fc00000, stays one.
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rows of halves that [`narrowed`] made.
pub(super) struct Narrowed {
    numbers: Vec<u16>,
    stride: usize,
}

impl Narrowed {
    pub(super) fn rows(&self) -> Rows<u16> {
        Rows { first: self.numbers.as_ptr(), stride: self.stride }
    }
}

/// The first `count` numbers of `rows` rows, rounded to halves, with a zero behind an odd last one.
///
/// # Safety
/// The numbers are there, and nobody writes to them meanwhile.
pub(super) unsafe fn narrowed(x: Rows, rows: usize, count: usize) -> Narrowed {
    let stride = count.next_multiple_of(2);
    let mut numbers = vec![0u16; rows * stride];
    let to = RowsMut { first: numbers.as_mut_ptr(), stride };
    for row in 0..rows {
        // SAFETY: the caller's promise; the best instructions are there.
        unsafe { narrow_on(Instructions::best(), x.row(row), count, to.row(row)) }
    }
    Narrowed { numbers, stride }
}

dispatched!(narrow_on(from: *const f32, count: usize, to: *mut u16) = narrow_row);

#[inline(always)]
unsafe fn narrow_row<L: Lanes>(from: *const f32, count: usize, to: *mut u16) {
    // SAFETY: the caller's promise. The generic parameter only picks the instructions.
    let (from, to) = unsafe { (std::slice::from_raw_parts(from, count), std::slice::from_raw_parts_mut(to, count)) };
    for (to, from) in to.iter_mut().zip(from) {
        *to = narrow(*from);
    }
}
