//! Checkpoints in a GGUF file: weights, config and tokenizer in one file, often quantised.
//!
//! ggml's names and row order are translated into the hub's (`gguf/names.rs`), so that the rest of the program knows
//! one convention.

mod config;

pub(super) use config::hub_metadata;

use super::{Source, Stored};
use crate::files::map;
use crate::gguf::{Entry, Format, Header, Pairs, RowOrder, ggml_name, hub_name, read_header};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use memmap2::Mmap;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The content of a GGUF file.
pub(super) struct Gguf {
    path: PathBuf,
    map: Mmap,
    header: Header,
    /// ggml's name of each hub name.
    names: BTreeMap<String, String>,
    row_order: RowOrder,
}

/// Metadata that describes the storage of this file's tensors.
const OF_THE_FILE: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];

/// Opens a file: its header, and the hub's config made from it.
///
/// # Errors
/// If the file cannot be read, is not GGUF, is damaged, is one of several parts, or lacks metadata of the config.
pub(super) fn open(path: &Path) -> Result<(Value, Gguf)> {
    let map = map(path)?;
    let header = read_header(&map).map_err(|problem| Error::file(path, problem))?;
    if let Some(parts) = header.metadata.integer("split.count").filter(|parts| *parts > 1) {
        return Err(Error::file(
            path,
            format!("is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`"),
        ));
    }
    let divisors = rope_divisors(&header, &map);
    let config = config::from_header(&header, divisors.as_deref()).map_err(|problem| Error::file(path, problem))?;
    let names = header.tensors.keys().filter_map(|name| Some((hub_name(name)?, name.clone()))).collect();
    let row_order = RowOrder::of(&config);
    Ok((config, Gguf { path: path.to_owned(), map, header, names, row_order }))
}

/// The divisors of the rotary frequencies, one per pair of a head, if the file has them.
fn rope_divisors(header: &Header, file: &[u8]) -> Option<Vec<f32>> {
    let entry = header.tensors.get("rope_freqs.weight").filter(|entry| matches!(entry.format, Format::F32))?;
    let bytes = &file[entry.start..entry.start + entry.len];
    Some(bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect())
}

impl Gguf {
    fn find(&self, name: &str) -> Option<&Entry> {
        self.header.tensors.get(self.names.get(name)?)
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map[entry.start..entry.start + entry.len]
    }
}

impl Source for Gguf {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let entry = self.find(name)?;
        Some(Stored { format: entry.format.name().into(), shape: entry.shape.clone(), bytes: self.bytes(entry) })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.find(name).ok_or_else(|| {
            let ggml = ggml_name(name).map_or_else(String::new, |ggml| format!(" (`{ggml}` in ggml's words)"));
            Error::file(&self.path, format!("holds no tensor `{name}`{ggml}"))
        })?;
        let tensor = load(entry.format, &entry.shape, self.bytes(entry))?;
        self.row_order.restore(name, tensor).map_err(|problem| Error::file(&self.path, problem))
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(&self.header.metadata).map_err(|error| Error::file(&self.path, error))
    }

    fn hub_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        Tokenizer::hub_files(&self.header.metadata).map_err(|error| Error::file(&self.path, error))
    }

    fn gguf_metadata(&self) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        for (key, value) in &self.header.values {
            if !OF_THE_FILE.contains(&key.as_str()) && !key.starts_with("split.") {
                pairs.raw(key, &self.map[value.clone()]);
            }
        }
        Ok(pairs)
    }
}

/// Decodes a tensor of `shape`, outermost axis first as in `[outputs, inputs]`.
fn load(format: Format, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
    let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
    let kind = match format {
        Format::F32 => Kind::Float,
        Format::F16 => Kind::Half,
        Format::Bf16 => Kind::BFloat16,
        Format::Quantised(blocks) => {
            let tensor = Tensor::f_empty(&shape, (Kind::Float, crate::device::HOST))?;
            // SAFETY: the tensor was just made, contiguous and on the CPU, with `numel` floats that nothing else uses;
            // every one of them is written before it is read.
            let numbers = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) };
            blocks.decode(bytes, numbers);
            return Ok(tensor);
        }
    };
    Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
}
