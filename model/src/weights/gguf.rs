//! GGUF files: one file with weights, sizes and words, often quantised.
//!
//! ggml has its own names and, for the Llama family, its own order of the rows of q and k: its rotary embedding turns
//! neighbours (elements `2i` and `2i + 1` of a head), while the hub's turns halves (`i` and `i + d/2`). Here everything
//! is turned back into the hub's names and order, so that the rest of the program knows one convention.

mod blocks;
mod config;
mod pairs;
mod reader;
mod writer;

pub(super) use config::hub_metadata;
pub(crate) use pairs::Pairs;
pub(crate) use reader::Metadata;
pub use writer::write_gguf;

use super::{Source, Stored, map};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use blocks::Format;
use memmap2::Mmap;
use reader::{Entry, Header};
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
    reordered: Reordered,
}

/// How many heads the rows of q and k are reordered in, if they are.
struct Reordered(Option<(i64, i64)>);

/// Metadata that tells how the tensors of this very file are stored.
const OF_THE_FILE: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];

/// Opens a file: its header, and the hub's config made from it.
pub(super) fn open(path: &Path) -> Result<(Value, Gguf)> {
    let map = map(path)?;
    let header = reader::read_header(&map).map_err(|problem| Error::file(path, problem))?;
    if let Some(parts) = header.metadata.integer("split.count").filter(|parts| *parts > 1) {
        return Err(Error::file(
            path,
            format!("is one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`"),
        ));
    }
    let divisors = rope_divisors(&header, &map);
    let config = config::from_header(&header, divisors.as_deref()).map_err(|problem| Error::file(path, problem))?;
    let names = header.tensors.keys().filter_map(|name| Some((hub_name(name)?, name.clone()))).collect();
    let reordered = Reordered::of(&config);
    Ok((config, Gguf { path: path.to_owned(), map, header, names, reordered }))
}

/// The factors by which rotary frequencies are divided, one per pair of a head.
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
        self.reordered.restore(name, tensor).map_err(|problem| Error::file(&self.path, problem))
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

fn load(format: Format, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
    let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
    let kind = match format {
        Format::F32 => Kind::Float,
        Format::F16 => Kind::Half,
        Format::Bf16 => Kind::BFloat16,
        Format::Quantised(blocks) => {
            let tensor = Tensor::f_empty(&shape, (Kind::Float, crate::device::HOST))?;
            // SAFETY: the tensor was just made, contiguous and on the CPU, with `numel` floats that nobody else sees;
            // every one of them is written before it is read.
            let numbers = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) };
            blocks.decode(bytes, numbers);
            return Ok(tensor);
        }
    };
    Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
}

impl Reordered {
    /// What the model of a hub config is reordered by.
    fn of(config: &Value) -> Self {
        let heads = |key: &str| config.get(key).and_then(Value::as_i64);
        match config.get("model_type").and_then(Value::as_str) {
            Some("llama") => {
                let queries = heads("num_attention_heads");
                Self(queries.zip(heads("num_key_value_heads").or(queries)))
            }
            _ => Self(None),
        }
    }

    /// The heads that the rows of this tensor (a weight or a bias) are ordered by, if they are.
    fn heads(&self, name: &str) -> Option<i64> {
        let (heads, kv_heads) = self.0?;
        if name.contains(".self_attn.q_proj.") {
            Some(heads)
        } else {
            name.contains(".self_attn.k_proj.").then_some(kv_heads)
        }
    }

    /// Brings the rows of q and k from the hub's order into ggml's.
    fn apply(&self, name: &str, tensor: Tensor) -> Tensor {
        let Some(heads) = self.heads(name) else { return tensor };
        let shape = tensor.size();
        tensor.view([heads, 2, shape[0] / heads / 2, -1]).transpose(1, 2).reshape(shape)
    }

    /// The reverse: from ggml's order into the hub's.
    fn restore(&self, name: &str, tensor: Tensor) -> std::result::Result<Tensor, String> {
        let Some(heads) = self.heads(name) else { return Ok(tensor) };
        let shape = tensor.size();
        if heads < 1 || shape[0] % (2 * heads) != 0 {
            return Err(format!("tensor `{name}` has {} rows, which {heads} heads cannot share evenly", shape[0]));
        }
        let pairs = shape[0] / heads / 2;
        Ok(tensor.view([heads, pairs, 2, -1]).transpose(1, 2).reshape(shape))
    }
}

/// ggml's names outside layers, each with the hub's.
const GLOBAL_NAMES: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// ggml's names inside a layer, each with the hub's.
const LAYER_NAMES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The hub's name of a ggml tensor: `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`. A tensor that
/// no network here uses has none.
fn hub_name(ggml: &str) -> Option<String> {
    let (module, parameter) = ggml.rsplit_once('.')?;
    let find = |names: &[(&str, &'static str)], module: &str| {
        names.iter().find(|(ggml, _)| *ggml == module).map(|(_, hub)| *hub)
    };
    match module.strip_prefix("blk.") {
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            Some(format!("model.layers.{layer}.{}.{parameter}", find(LAYER_NAMES, module)?))
        }
        None => Some(format!("{}.{parameter}", find(GLOBAL_NAMES, module)?)),
    }
}

/// The reverse of [`hub_name`].
fn ggml_name(hub: &str) -> Option<String> {
    let (module, parameter) = hub.rsplit_once('.')?;
    let find = |names: &[(&'static str, &str)], module: &str| {
        names.iter().find(|(_, hub)| *hub == module).map(|(ggml, _)| *ggml)
    };
    match module.strip_prefix("model.layers.") {
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            Some(format!("blk.{layer}.{}.{parameter}", find(LAYER_NAMES, module)?))
        }
        None => Some(format!("{}.{parameter}", find(GLOBAL_NAMES, module)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_both_ways() {
        for (ggml, hub) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ] {
            assert_eq!(hub_name(ggml).as_deref(), Some(hub));
            assert_eq!(ggml_name(hub).as_deref(), Some(ggml));
        }
        assert_eq!(hub_name("rope_freqs.weight"), None);
    }

    #[test]
    fn neighbouring_pairs_become_halves() {
        // One head of four rows in ggml's order: pair 0 is rows 0 and 1, pair 1 is rows 2 and 3.
        let ggml = Tensor::from_slice(&[10f32, 11.0, 20.0, 21.0]).view([4, 1]);
        let hub = Reordered(Some((1, 1))).restore("model.layers.0.self_attn.q_proj.weight", ggml).unwrap();
        assert_eq!(Vec::<f32>::try_from(hub.view([-1])).unwrap(), [10.0, 20.0, 11.0, 21.0]);
        let back = Reordered(Some((1, 1))).apply("model.layers.0.self_attn.q_proj.weight", hub);
        assert_eq!(Vec::<f32>::try_from(back.view([-1])).unwrap(), [10.0, 11.0, 20.0, 21.0]);
    }

    #[test]
    fn values_keep_their_order() {
        let tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]);
        let same = Reordered(Some((1, 1))).restore("model.layers.0.self_attn.v_proj.bias", tensor).unwrap();
        assert_eq!(Vec::<f32>::try_from(same).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }
}
