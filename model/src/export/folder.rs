//! A merged model as a Hugging Face folder: shards of safetensors, their index, and the files beside them.
//!
//! Weights are cut into shards of at most a given size, in the order of names; with one shard there is no index and the
//! file is `model.safetensors`, as the hub has it.

use super::{Merged, Storage};
use crate::weights::{INDEX, SINGLE};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::io::Write;

/// One file of weights.
#[derive(Debug)]
pub struct Shard {
    /// The name of its file.
    pub file: String,
    storage: Storage,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    shape: Vec<usize>,
}

impl Entry {
    fn bytes(&self, storage: Storage) -> usize {
        storage.bytes(self.shape.iter().product())
    }
}

/// Splits the tensors of a model into files of at most `limit` bytes; a larger tensor gets a file of its own.
///
/// # Errors
/// If a hub folder cannot hold this storage format.
pub fn hub_shards(merged: &Merged<'_>, storage: Option<Storage>, limit: u64) -> Result<Vec<Shard>> {
    let storage = storage.unwrap_or_else(|| merged.checkpoint().float_storage());
    if storage.hub_names().is_none() {
        return Err(Error::input("a Hugging Face folder cannot hold q8_0; use f32, f16 or bf16, or export gguf"));
    }
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut filled = 0;
    for name in merged.names() {
        let entry = Entry { name: name.to_owned(), shape: merged.checkpoint().shape(name) };
        let size = entry.bytes(storage) as u64;
        if filled > 0 && filled + size > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        shards.last_mut().expect("there is always one").push(entry);
    }
    let count = shards.len();
    let file = |index: usize| match count {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    };
    Ok(shards.into_iter().enumerate().map(|(index, entries)| Shard { file: file(index), storage, entries }).collect())
}

/// The index of several shards: its file name and content; `None` for a single shard, which needs none.
pub fn hub_index(shards: &[Shard]) -> Option<(&'static str, Value)> {
    if shards.len() < 2 {
        return None;
    }
    let entries = || shards.iter().flat_map(|shard| shard.entries.iter().map(move |entry| (shard, entry)));
    let total: usize = entries().map(|(shard, entry)| entry.bytes(shard.storage)).sum();
    let files: Map<String, Value> = entries().map(|(shard, entry)| (entry.name.clone(), json!(shard.file))).collect();
    Some((INDEX, json!({"metadata": {"total_size": total}, "weight_map": files})))
}

/// The files beside the weights, by name: config, tokenizer, chat template, generation settings.
///
/// # Errors
/// If a hub folder cannot hold this storage format, or the base's config or tokenizer files cannot be read.
pub fn hub_files(merged: &Merged<'_>, storage: Option<Storage>) -> Result<Vec<(String, Vec<u8>)>> {
    let storage = storage.unwrap_or_else(|| merged.checkpoint().float_storage());
    let mut config = merged.checkpoint().config().clone();
    let fields = config.as_object_mut().ok_or_else(|| Error::input("config.json is not an object"))?;
    // A quantised base was turned into floats.
    fields.remove("quantization_config");
    if !fields.contains_key("architectures") {
        let family = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let (first, rest) = family.split_at(family.len().min(1));
        let class = format!("{}{rest}ForCausalLM", first.to_uppercase());
        fields.insert("architectures".into(), json!([class]));
    }
    let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    let (_, name) = storage.hub_names().ok_or_else(|| Error::input("a Hugging Face folder cannot hold q8_0"))?;
    fields.insert(key.into(), json!(name));
    let config = serde_json::to_vec_pretty(&config).map_err(|error| Error::runtime(error.to_string()))?;
    let mut files = vec![("config.json".to_owned(), config)];
    files.extend(merged.checkpoint().hub_files()?);
    Ok(files)
}

impl Shard {
    /// Writes the file, tensor by tensor: a length, a JSON header, and the tensors.
    ///
    /// # Errors
    /// If a tensor of the base cannot be read, or `out` cannot be written.
    pub fn write(&self, merged: &Merged<'_>, out: &mut dyn Write) -> Result<()> {
        let unwritten = |error: std::io::Error| Error::runtime(format!("{} cannot be written: {error}", self.file));
        let (dtype, _) = self.storage.hub_names().ok_or_else(|| Error::input("safetensors cannot hold q8_0"))?;
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut end = 0;
        for entry in &self.entries {
            let start = end;
            end += entry.bytes(self.storage);
            let line = json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [start, end]});
            header.insert(entry.name.clone(), line);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // The tensors begin at a multiple of eight.
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&header)).map_err(unwritten)?;
        for entry in &self.entries {
            out.write_all(&self.storage.encode(&merged.tensor(&entry.name)?)).map_err(unwritten)?;
        }
        Ok(())
    }
}
