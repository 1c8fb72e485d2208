//! Checkpoints: a network's weights, config and tokenizer on disk.
//!
//! A checkpoint is a Hugging Face folder (`config.json` beside `model.safetensors` or its shards) or one GGUF file.
//! Both look alike from here on: the hub's `config.json`, and tensors under the hub's names in the hub's layout. Files
//! are memory-mapped, so that a tensor costs one copy and an unused one costs nothing.

mod gguf;
mod safetensors;
mod storage;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use safetensors::{INDEX, SINGLE, shards};
pub use storage::Storage;

use crate::adapter::is_finite;
use crate::gguf::Pairs;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// One model on disk.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    source: Box<dyn Source>,
}

/// The content of a checkpoint, whatever its format. Names are the hub's.
trait Source {
    /// Every tensor's name, sorted.
    fn names(&self) -> Vec<&str>;
    /// A tensor as it is stored.
    fn stored(&self, name: &str) -> Option<Stored<'_>>;
    /// A tensor in the hub's layout and shape, such as `[outputs, inputs]`, on the CPU.
    ///
    /// # Errors
    /// If there is no such tensor, or its format is not supported.
    fn tensor(&self, name: &str) -> Result<Tensor>;
    /// The tokenizer that belongs to the weights.
    ///
    /// # Errors
    /// If it is missing, damaged or not supported.
    fn tokenizer(&self) -> Result<Tokenizer>;
    /// The other files of a hub folder, besides config and weights, by name.
    ///
    /// # Errors
    /// If a file cannot be read, or made from the metadata.
    fn hub_files(&self) -> Result<Vec<(String, Vec<u8>)>>;
    /// The metadata of a GGUF file with this content, without keys that depend on the storage format.
    ///
    /// # Errors
    /// If the config or the tokenizer is not supported.
    fn gguf_metadata(&self) -> Result<Pairs>;
}

/// A tensor's bytes in the file.
struct Stored<'a> {
    format: String,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file and reads its headers; weights stay on disk until requested.
    ///
    /// # Errors
    /// If there is no model at `path`, or its config, index or headers are missing, damaged or not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, source): (Value, Box<dyn Source>) = match layout(path)? {
            Layout::Folder => {
                let (config, source) = safetensors::open(path)?;
                (config, Box::new(source))
            }
            Layout::Gguf(file) => {
                let (config, source) = gguf::open(&file)?;
                (config, Box::new(source))
            }
        };
        Ok(Self { path: path.to_owned(), config, source })
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The hub's `config.json`; for a GGUF file, an equal object built from its metadata.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Every tensor's hub name, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.source.names()
    }

    /// True if it has a tensor of this hub name.
    pub fn contains(&self, name: &str) -> bool {
        self.source.stored(name).is_some()
    }

    /// The tensor of this hub name (`model.layers.0.self_attn.q_proj.weight`, `[outputs, inputs]`), on the CPU, in the
    /// stored float format; quantised tensors become f32.
    ///
    /// # Errors
    /// If there is no such tensor, or its format is not supported.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.source.tensor(name)
    }

    /// The tokenizer that belongs to the weights.
    ///
    /// # Errors
    /// If the checkpoint has no tokenizer, or one that is damaged or not supported.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.source.tokenizer()
    }

    /// The hub name of the first tensor with a number that is not finite, if there is one. Reads every weight.
    pub(crate) fn first_non_finite(&self) -> Option<String> {
        let bad = |name: &&str| self.tensor(name).is_ok_and(|tensor| !is_finite(&tensor.to_kind(Kind::Float)));
        self.names().into_iter().find(bad).map(str::to_owned)
    }

    /// The shape of a tensor, outermost axis first; empty if there is no tensor of this name.
    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.source.stored(name).map(|stored| stored.shape).unwrap_or_default()
    }

    /// The float format of the embedding, and so of the model; f16 where it is quantised.
    pub(crate) fn float_storage(&self) -> Storage {
        let stored = self.source.stored("model.embed_tokens.weight");
        match stored.as_ref().map_or("", |stored| stored.format.as_str()) {
            "F32" => Storage::F32,
            "BF16" => Storage::Bf16,
            _ => Storage::F16,
        }
    }

    /// The other files of a hub folder, besides config and weights, by name.
    ///
    /// # Errors
    /// If a file cannot be read, or made from the metadata.
    pub(crate) fn hub_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        self.source.hub_files()
    }

    /// The metadata of a GGUF file with this content, without keys that depend on the storage format.
    ///
    /// # Errors
    /// If the config or the tokenizer is not supported.
    pub(crate) fn gguf_metadata(&self) -> Result<Pairs> {
        self.source.gguf_metadata()
    }

    /// The identity of the content: SHA-256, in hexadecimal, cheap enough to compute at every start.
    ///
    /// It covers the config (with sorted keys, without `_name_or_path` and `transformers_version`) and, for each
    /// tensor in the order of names, its hub name, stored format, shape, and the first and last 4 KiB of its bytes.
    /// It does not cover the middle of tensors, nor the tokenizer; and one model stored in two formats has two names.
    pub fn identity(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hash = Sha256::new();
        let mut absorb = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        absorb(canonical(&self.config).as_bytes());
        for name in self.names() {
            let Some(stored) = self.source.stored(name) else { continue };
            absorb(name.as_bytes());
            absorb(stored.format.as_bytes());
            absorb(format!("{:?}", stored.shape).as_bytes());
            absorb(&stored.bytes[..stored.bytes.len().min(SAMPLE)]);
            absorb(&stored.bytes[stored.bytes.len().saturating_sub(SAMPLE)..]);
        }
        format!("{:x}", hash.finalize())
    }
}

/// The format of a checkpoint.
enum Layout {
    Folder,
    Gguf(PathBuf),
}

fn layout(path: &Path) -> Result<Layout> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Error::file(path, format!("no model here ({error}); give a Hugging Face folder or a .gguf file"))
    })?;
    if metadata.is_file() {
        return match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors" | "json") => Err(Error::file(
                path,
                "this is one file of a Hugging Face model; give the folder that holds it and its config.json",
            )),
            _ => Ok(Layout::Gguf(path.to_owned())),
        };
    }
    if path.join("config.json").exists() {
        return Ok(Layout::Folder);
    }
    let mut ggufs: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(|error| Error::file(path, error))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    match (ggufs.pop(), ggufs.len()) {
        (Some(file), 0) => Ok(Layout::Gguf(file)),
        (Some(_), more) => Err(Error::file(path, format!("{} .gguf files in this folder; name one of them", more + 1))),
        (None, _) => Err(Error::file(path, "this folder holds neither config.json nor a .gguf file")),
    }
}

/// JSON with sorted keys, without the keys that change although the model does not.
fn canonical(config: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let mut keys: Vec<_> = fields.iter().collect();
                keys.sort_by_key(|(key, _)| *key);
                keys.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
            }
            Value::Array(items) => items.iter().map(sorted).collect(),
            other => other.clone(),
        }
    }
    let mut config = sorted(config);
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|key, _| !matches!(key.as_str(), "_name_or_path" | "transformers_version"));
    }
    config.to_string()
}
