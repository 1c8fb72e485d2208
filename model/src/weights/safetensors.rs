//! Hugging Face folders: `config.json` beside `model.safetensors`, or beside shards and their index.
//!
//! A safetensors file is a length, a JSON header and raw little-endian tensors. The `safetensors` crate checks the
//! header (offsets inside the file, no gaps, no overlaps, sizes equal to shape times element); we read tensors from
//! the mapped file at the offsets it returns.

use super::{Source, Stored, gguf};
use crate::files::{map, read_json};
use crate::gguf::Pairs;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// All weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of shards: tensor names and their files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Optional files beside config and weights: tokenizer, chat template, generation settings.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// The names of the shards that an index lists, each once.
pub(crate) fn shards(index: &Value) -> BTreeSet<String> {
    let files = index.get("weight_map").and_then(Value::as_object).map(|files| files.values());
    files.into_iter().flatten().filter_map(|file| file.as_str().map(str::to_owned)).collect()
}

/// The weights of a Hugging Face folder.
pub(super) struct Folder {
    path: PathBuf,
    config: Value,
    shards: Vec<Shard>,
    /// The index of each tensor's shard, by tensor name.
    shard_of: BTreeMap<String, usize>,
}

/// A mapped safetensors file.
struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    data_start: usize,
}

/// Opens a folder: its config, and the headers of its shards.
///
/// # Errors
/// If the config, the index or a shard is missing or damaged, or the index names a tensor that its shard lacks.
pub(super) fn open(path: &Path) -> Result<(Value, Folder)> {
    let config = read_json(&path.join("config.json"))?;
    let mut folder =
        Folder { path: path.to_owned(), config: config.clone(), shards: Vec::new(), shard_of: BTreeMap::new() };
    if path.join(SINGLE).exists() {
        folder.add_shard(SINGLE)?;
        folder.shard_of = folder.shards[0].header.tensors().into_keys().map(|name| (name, 0)).collect();
    } else if path.join(INDEX).exists() {
        folder.add_indexed_shards()?;
    } else {
        return Err(Error::file(
            path,
            format!("this folder holds neither {SINGLE} nor {INDEX}; save the model with safe_serialization"),
        ));
    }
    Ok((config, folder))
}

impl Folder {
    fn add_shard(&mut self, file: &str) -> Result<usize> {
        if let Some(index) = self.shards.iter().position(|shard| shard.path.ends_with(file)) {
            return Ok(index);
        }
        self.shards.push(Shard::open(self.path.join(file))?);
        Ok(self.shards.len() - 1)
    }

    fn add_indexed_shards(&mut self) -> Result<()> {
        let index = self.path.join(INDEX);
        let json = read_json(&index)?;
        let weight_map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::file(&index, "has no object `weight_map`"))?;
        for (name, file) in weight_map {
            let file = file
                .as_str()
                .filter(|file| Path::new(file).file_name().is_some_and(|plain| plain == *file))
                .ok_or_else(|| {
                    Error::file(&index, format!("tensor `{name}` must be mapped to a plain file name, not {file}"))
                })?;
            if !self.path.join(file).exists() {
                return Err(Error::file(
                    &self.path,
                    format!(
                        "shard {file}, which {INDEX} names for tensor `{name}`, is missing; was the download cut off?"
                    ),
                ));
            }
            let shard_index = self.add_shard(file)?;
            let shard = &self.shards[shard_index];
            if shard.header.info(name).is_none() {
                return Err(Error::file(&shard.path, format!("holds no tensor `{name}`, although {INDEX} says so")));
            }
            self.shard_of.insert(name.clone(), shard_index);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let shard = &self.shards[*self.shard_of.get(name)?];
        Some((shard, shard.header.info(name)?))
    }
}

impl Source for Folder {
    fn names(&self) -> Vec<&str> {
        self.shard_of.keys().map(String::as_str).collect()
    }

    fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (shard, info) = self.find(name)?;
        Some(Stored { format: format!("{:?}", info.dtype), shape: info.shape.clone(), bytes: shard.bytes(info) })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let (shard, info) = self.find(name).ok_or_else(|| {
            Error::file(
                &self.path,
                format!("holds no tensor `{name}`; do config.json and the weights belong together?"),
            )
        })?;
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(Error::file(
                    &shard.path,
                    format!("tensor `{name}` is stored as {other:?}; F32, F16 and BF16 are supported"),
                ));
            }
        };
        let shape: Vec<i64> = info.shape.iter().map(|size| *size as i64).collect();
        Ok(Tensor::f_from_data_size(shard.bytes(info), &shape, kind)?)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_folder(&self.path, &self.config)
    }

    fn hub_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        COMPANIONS
            .iter()
            .map(|name| (name, self.path.join(name)))
            .filter(|(_, file)| file.exists())
            .map(|(name, file)| {
                Ok(((*name).to_owned(), std::fs::read(&file).map_err(|error| Error::file(&file, error))?))
            })
            .collect()
    }

    fn gguf_metadata(&self) -> Result<Pairs> {
        let mut pairs = gguf::hub_metadata(&self.path, &self.config)?;
        let rows = self.stored("model.embed_tokens.weight").map_or(0, |stored| stored.shape[0]);
        pairs.append(Tokenizer::gguf_metadata(&self.path, &self.config, rows)?);
        Ok(pairs)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let map = map(&path)?;
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|error| {
            Error::file(&path, format!("is not a complete safetensors file ({error}); was its download cut off?"))
        })?;
        // The header follows its own length, a u64.
        Ok(Self { path, map, header, data_start: size_of::<u64>() + header_len })
    }

    fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.map[self.data_start + start..self.data_start + end]
    }
}
