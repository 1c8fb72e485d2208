//! SIMD registers of f32, and the choice of instructions at run time.
//!
//! A kernel is written once over [`Simd`] and compiled for AVX-512, for AVX2 and for plain Rust; [`dispatched`] picks
//! the version.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128, __m256, __m512, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
    _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps256, _mm512_extractf32x8_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_movehdup_ps, _mm512_set1_ps,
    _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};

/// A register of `WIDTH` elements of f32.
///
/// All functions are unsafe: the machine must have the instructions, and addresses must hold enough elements.
pub(super) trait Simd: Copy {
    /// Elements in a register.
    const WIDTH: usize;
    /// Copies one value into every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Loads `WIDTH` elements from any address.
    unsafe fn load(from: *const f32) -> Self;
    /// Loads the first `count` < `WIDTH` elements; the others are zero.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// Computes `self + a · b`.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Sums all lanes, in a fixed order.
    unsafe fn sum(self) -> f32;
    /// Sums the lanes of four registers, each in the order of [`Self::sum`].
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        four.map(|one| unsafe { one.sum() })
    }
    /// Writes all lanes.
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `count` lanes.
    unsafe fn store_first(self, to: *mut f32, count: usize);
}

/// Sixteen lanes of AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's promise; lanes that are masked out are not read.
        unsafe { Self(_mm512_maskz_loadu_ps((1u32 << count).wrapping_sub(1) as u16, from)) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise. The order is that of `sums` with the same register twice in a pair.
        unsafe {
            let pairs = _mm512_add_ps(self.0, _mm512_shuffle_ps::<0b01_00_11_10>(self.0, self.0));
            let quarters = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
            _mm_cvtss_f32(folded(quarters))
        }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise. Simd 0 + 2 and 1 + 3 of each quarter side by side, then their sums, then the
        // quarters.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let even = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let odd = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            std::mem::transmute::<__m128, [f32; 4]>(folded(_mm512_add_ps(even, odd)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's promise; lanes that are masked out are not written.
        unsafe { _mm512_mask_storeu_ps(to, (1u32 << count).wrapping_sub(1) as u16, self.0) }
    }
}

/// Adds up the four quarters of a register.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn folded(quarters: __m512) -> __m128 {
    // SAFETY: the caller's promise: the machine has AVX-512.
    unsafe {
        let half = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
        _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
    }
}

/// Eight lanes of AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) __m256);

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut elements = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from, elements.as_mut_ptr(), count);
            Self::load(elements.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        let mut elements = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe {
            self.store(elements.as_mut_ptr());
            std::ptr::copy_nonoverlapping(elements.as_ptr(), to, count);
        }
    }
}

/// Eight lanes in plain Rust, which the compiler vectorises for the target.
#[derive(Clone, Copy)]
pub(super) struct Portable(pub(super) [f32; 8]);

impl Simd for Portable {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; an array of f32 is aligned as f32 is.
        unsafe { Self(from.cast::<[f32; 8]>().read()) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        let mut elements = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, elements.as_mut_ptr(), count) };
        Self(elements)
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + a.0[lane] * b.0[lane]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, count) }
    }
}

/// Prefetches the cache line of an address.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    /// AVX-512 with products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Instructions {
    /// The widest instructions of this machine.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                return if is_x86_feature_detected!("avx512bf16") { Self::Avx512Bf16 } else { Self::Avx512 };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All instructions of this machine.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self::Avx2);
            }
            if matches!(Self::best(), Self::Avx512 | Self::Avx512Bf16) {
                all.push(Self::Avx512);
            }
            if Self::best() == Self::Avx512Bf16 {
                all.push(Self::Avx512Bf16);
            }
        }
        all
    }
}

/// `dispatched!(function(argument: Type, …) = generic)` defines a function that runs `generic::<L: Simd>` compiled for
/// the instructions given as its first argument; `= generic over bf16` does so for `generic::<H: Operand>` over bf16.
macro_rules! dispatched {
    ($name:ident($($argument:ident: $type:ty),*) = $generic:ident) => {
        $crate::kernel::simd::dispatched!(
            $name($($argument: $type),*) = $generic,
            $crate::kernel::simd::Avx512,
            $crate::kernel::simd::Avx2,
            $crate::kernel::simd::Portable
        );
    };
    ($name:ident($($argument:ident: $type:ty),*) = $generic:ident over bf16) => {
        /// Runs the kernel on these instructions, which the machine must have. The generic function's requirements on
        /// addresses hold too.
        pub(in crate::kernel) unsafe fn $name(instructions: $crate::kernel::simd::Instructions, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            unsafe fn native($($argument: $type),*) {
                // SAFETY: the instructions are there; the rest is the caller's promise.
                unsafe { $generic::<$crate::kernel::dtype::NativeBf16>($($argument),*) }
            }
            $crate::kernel::simd::dispatched!(
                widened($($argument: $type),*) = $generic,
                $crate::kernel::dtype::WidenedBf16<$crate::kernel::simd::Avx512>,
                $crate::kernel::dtype::WidenedBf16<$crate::kernel::simd::Avx2>,
                $crate::kernel::dtype::WidenedBf16<$crate::kernel::simd::Portable>
            );
            // SAFETY: the caller's promise.
            unsafe {
                match instructions {
                    #[cfg(target_arch = "x86_64")]
                    $crate::kernel::simd::Instructions::Avx512Bf16 => native($($argument),*),
                    others => widened(others, $($argument),*),
                }
            }
        }
    };
    ($name:ident($($argument:ident: $type:ty),*) = $generic:ident, $avx512:ty, $avx2:ty, $portable:ty) => {
        /// Runs the kernel on these instructions, which the machine must have. The generic function's requirements on
        /// addresses hold too.
        pub(in crate::kernel) unsafe fn $name(instructions: $crate::kernel::simd::Instructions, $($argument: $type),*) {
            use $crate::kernel::simd::Instructions;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            unsafe fn avx512($($argument: $type),*) {
                // SAFETY: the instructions are there; the rest is the caller's promise.
                unsafe { $generic::<$avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $type),*) {
                // SAFETY: as above.
                unsafe { $generic::<$avx2>($($argument),*) }
            }
            // SAFETY: the caller's promise.
            unsafe {
                match instructions {
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 | Instructions::Avx512Bf16 => avx512($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => avx2($($argument),*),
                    Instructions::Portable => $generic::<$portable>($($argument),*),
                }
            }
        }
    };
}
pub(super) use dispatched;
