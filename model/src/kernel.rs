//! CPU kernels written by hand, for batches of 1 to some thousand rows.
//!
//! Decoding multiplies a few rows by all of the weights. A general library packs operands for large matrices first, or
//! streams weights one operation at a time; for 1 to 128 rows that leaves half of the machine unused. Here a GEMM reads
//! the weights in the checkpoint's layout, once, in blocks of columns that stay in the L1 cache while all rows pass
//! over them, and prefetches the next block meanwhile. There is no second copy of the weights in another layout. Only
//! the backward pass, which sums down the columns of the weights, copies a small panel of them at a time.
//!
//! Every output is a sum over one row and one weight row in a fixed order, independent of the rest of the batch and of
//! the number of threads. A sequence is therefore decoded to the same bits alone and in a batch.
//!
//! [`ops`], [`low_rank`], [`logits`] and [`attention::packed`] take tensors. The functions below them take raw
//! addresses: threads write disjoint parts of one buffer, which slices cannot express. Their callers guarantee sizes
//! and disjointness; `architecture/decoder/decode.rs` is the only such caller outside this folder.

#![expect(unsafe_code, reason = "vector instructions, and threads that write disjoint parts of one buffer")]
#![expect(clippy::inline_always, reason = "a generic kernel has to become part of the function with the instructions")]

pub(crate) mod attention;
mod dtype;
mod gemm;
pub(crate) mod logits;
pub(crate) mod ops;
mod pointwise;
mod simd;
mod threads;
mod view;

pub(crate) use gemm::low_rank;
pub(crate) use gemm::{Accumulate, Gemm, LowRankTerm, UNIT, gemm};
pub(crate) use pointwise::{gate_silu, rms_norm, rotate};
pub(crate) use threads::{Barrier, run_threads, share_of, thread_count};
pub(crate) use view::{Matrix, Rows, RowsMut};

#[cfg(test)]
mod tests;
