//! Attention over cached keys of one token per sequence, and over packed groups.

mod decode;
pub(crate) mod packed;

pub(crate) use decode::{DecodeHeads, decode};
