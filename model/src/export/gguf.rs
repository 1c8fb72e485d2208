//! A merged model as one GGUF file (version 3, little-endian) that llama.cpp loads.
//!
//! Vectors (norms, biases) stay f32 and matrices take the storage that is asked for; where a matrix's rows are no whole
//! number of blocks it is f16, as llama.cpp's own tools do it. Metadata of a base that was a GGUF file is copied byte
//! for byte, so nothing is lost that this program does not know. That of a hub folder is translated.

use super::{Merged, Storage};
use crate::dimensions::{Dimensions, RopeScaling};
use crate::family;
use crate::gguf::{Pairs, RowOrder, ggml_name, text};
use crate::{Error, Result};
use serde_json::Value;
use std::io::Write;
use tch::Tensor;

/// Tensors begin at multiples of this, llama.cpp's default.
const ALIGNMENT: usize = 32;

/// The name of the tensor with the divisors of the rotary frequencies.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// An entry of the tensor table.
struct Line {
    /// The hub's name; ggml's where the hub has none.
    source: String,
    name: String,
    shape: Vec<usize>,
    storage: Storage,
}

impl Line {
    fn new(source: &str, name: String, shape: Vec<usize>, wanted: Storage) -> Self {
        let row = shape.last().copied().unwrap_or(1);
        let storage = match (shape.len(), wanted) {
            (..=1, _) => Storage::F32,
            (_, wanted) if row % wanted.block() != 0 => Storage::F16,
            (_, wanted) => wanted,
        };
        Self { source: source.to_owned(), name, shape, storage }
    }

    fn bytes(&self) -> usize {
        self.storage.bytes(self.shape.iter().product())
    }
}

/// Writes a merged model as a GGUF file.
///
/// # Errors
/// If the base's tokenizer has no form in GGUF, or the file cannot be written.
pub fn write_gguf(merged: &Merged<'_>, storage: Storage, out: &mut dyn Write) -> Result<()> {
    let checkpoint = merged.checkpoint();
    let config = checkpoint.config();
    let mut pairs = checkpoint.gguf_metadata()?;
    let (_, file_type) = storage.ggml_ids();
    pairs.integer("general.file_type", file_type);
    pairs.integer("general.quantization_version", 2);

    let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    let mut lines: Vec<Line> = merged
        .names()
        .into_iter()
        .filter(|name| !(tied && *name == "lm_head.weight"))
        .filter_map(|name| Some(Line::new(name, ggml_name(name)?, checkpoint.shape(name), storage)))
        .collect();
    let dimensions = family::dimensions(config)?;
    let divisors = rope_divisors(&dimensions);
    if let Some(divisors) = &divisors {
        lines.push(Line::new(ROPE_DIVISORS, ROPE_DIVISORS.into(), vec![divisors.len()], storage));
    }

    let unwritten = |error: std::io::Error| Error::runtime(format!("the GGUF file cannot be written: {error}"));
    let header = header(&pairs, &lines);
    out.write_all(&header).and_then(|()| pad(header.len(), out)).map_err(unwritten)?;
    let row_order = RowOrder::of(config);
    for line in &lines {
        let tensor = match &divisors {
            Some(divisors) if line.source == ROPE_DIVISORS => Tensor::from_slice(divisors),
            _ => row_order.apply(&line.source, merged.tensor(&line.source)?),
        };
        let bytes = line.storage.encode(&tensor);
        out.write_all(&bytes).and_then(|()| pad(bytes.len(), out)).map_err(unwritten)?;
    }
    Ok(())
}

/// The divisors of the frequency of each pair of a head under Llama 3's scaling; `None` without that scaling.
fn rope_divisors(d: &Dimensions) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = d.rope_scaling else { return None };
    let divisor = |pair: i64| {
        let frequency = d.rope_theta.powf(-2.0 * pair as f64 / d.head_dim as f64);
        (frequency / d.rope_scaling.apply(frequency)) as f32
    };
    Some((0..d.head_dim / 2).map(divisor).collect())
}

/// Everything before the tensors: magic, counts, metadata, table.
fn header(pairs: &Pairs, lines: &[Line]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((lines.len() as u64).to_le_bytes());
    bytes.extend((pairs.len() as u64).to_le_bytes());
    bytes.extend(pairs.bytes());
    let mut start = 0;
    for line in lines {
        bytes.extend(text(&line.name));
        bytes.extend((line.shape.len() as u32).to_le_bytes());
        // The innermost axis comes first.
        line.shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
        bytes.extend(line.storage.ggml_ids().0.to_le_bytes());
        bytes.extend((start as u64).to_le_bytes());
        start += line.bytes().next_multiple_of(ALIGNMENT);
    }
    bytes
}

/// Writes zeros up to the alignment after this many bytes.
fn pad(written: usize, out: &mut dyn Write) -> std::io::Result<()> {
    out.write_all(&vec![0; written.next_multiple_of(ALIGNMENT) - written])
}
