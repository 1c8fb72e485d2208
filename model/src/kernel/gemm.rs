//! Matrix products with frozen weights, their backward pass, and products with the thin factors of adapters.

mod backward;
mod forward;
pub(crate) mod low_rank;

pub(in crate::kernel) use backward::{Term, gemm_backward, gemm_backward_on};
#[cfg(test)]
pub(in crate::kernel) use forward::gemm_on;
pub(crate) use forward::{Gemm, LowRankTerm, UNIT, gemm};

/// The effect of a product on the previous content of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accumulate {
    /// `y = …`
    Overwrite,
    /// `y += …`
    Add,
}

/// Bytes of a cache line.
const LINE: usize = 64;
