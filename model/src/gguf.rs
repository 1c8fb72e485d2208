//! The GGUF container: header, metadata, tensor formats, and the names of tensors.
//!
//! Everything here is about the file format alone; `weights/gguf.rs` reads a checkpoint from it, `export/gguf.rs`
//! writes one, and `tokenizer` keeps a vocabulary in its metadata.

mod blocks;
mod names;
mod pairs;
mod reader;

pub(crate) use blocks::Format;
pub(crate) use names::{RowOrder, ggml_name, hub_name};
pub(crate) use pairs::{Pairs, text};
pub(crate) use reader::{Entry, Header, Metadata, read_header};
