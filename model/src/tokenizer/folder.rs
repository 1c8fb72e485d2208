//! Tokenizers from a Hugging Face folder.
//!
//! `tokenizer.json` holds the vocabulary and its rules. Further tokens, end-of-sequence tokens and the chat template are
//! in up to six other files.

use super::{Tokenizer, added, growth, unusable};
use crate::chat_template::ChatTemplate;
use crate::files::read_json;
use crate::{Error, Result};
use schema::Token;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder. `config` is its `config.json`.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing, one of the files or the chat template is damaged or not supported, or the files
    /// contradict each other.
    pub(crate) fn from_folder(path: &Path, config: &Value) -> Result<Self> {
        let file = path.join("tokenizer.json");
        if !file.exists() {
            return Err(Error::file(
                path,
                "holds no tokenizer.json; load its tokenizer with transformers' AutoTokenizer and save it here with save_pretrained",
            ));
        }
        let bytes = std::fs::read(&file).map_err(|error| Error::file(&file, format!("cannot be read ({error})")))?;
        let problem = |problem: Error| Error::file(&file, problem);
        growth::check(&bytes).map_err(problem)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| problem(unusable(error)))?;
        // A tokenizer.json may carry the length limits of a training run; prompts must not be cut.
        inner.with_truncation(None).map_err(unusable)?.with_padding(None);

        let settings = Settings::read(path)?;
        added::add(&mut inner, &settings, path)?;
        let template = settings
            .chat_template(path)?
            .map(|source| ChatTemplate::new(&source, settings.special_texts()))
            .transpose()
            .map_err(|error| Error::file(path, error))?;
        let eos = eos_ids(&inner, path, config, &settings)?;
        Ok(Self::new(inner, eos, template))
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json`; either may be missing.
pub(super) struct Settings {
    pub(super) tokenizer: Value,
    special_tokens: Value,
}

impl Settings {
    /// Reads the settings in the folder `path`.
    ///
    /// # Errors
    /// If a file is there and is not valid JSON.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            tokenizer: read_optional(&path.join("tokenizer_config.json"))?,
            special_tokens: read_optional(&path.join("special_tokens_map.json"))?,
        })
    }

    /// The entry of a special token, or of a list of them.
    pub(super) fn special(&self, name: &str) -> Option<&Value> {
        [&self.tokenizer, &self.special_tokens].into_iter().find_map(|file| file.get(name).filter(|it| !it.is_null()))
    }

    /// The text of a special token, written as a string or as an object with `content`.
    pub(super) fn special_text(&self, name: &str) -> Option<&str> {
        let token = self.special(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }

    /// The special tokens that a chat template may name.
    fn special_texts(&self) -> BTreeMap<String, String> {
        added::ROLES.iter().filter_map(|name| Some(((*name).to_owned(), self.special_text(name)?.to_owned()))).collect()
    }

    /// The source of the chat template: a file of its own, or a string or a list of named strings in the settings.
    ///
    /// # Errors
    /// If a file cannot be read, or the settings hold neither a string nor a list with a template named `default`.
    pub(super) fn chat_template(&self, path: &Path) -> Result<Option<String>> {
        let file = path.join("chat_template.jinja");
        if file.exists() {
            let source = std::fs::read_to_string(&file).map_err(|error| Error::file(&file, error))?;
            return Ok(Some(source));
        }
        let older = read_optional(&path.join("chat_template.json"))?;
        let source = match self.tokenizer.get("chat_template").or(older.get("chat_template")) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(named)) => named
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")),
            Some(source) => Some(source),
        };
        match source.and_then(Value::as_str) {
            Some(source) => Ok(Some(source.to_owned())),
            None => Err(Error::file(path, "chat_template must be a text or a list with one named `default`")),
        }
    }
}

/// Every token that ends an answer: those of `generation_config.json`, else of `config.json` (whose default is often
/// wrong), and the tokenizer's own.
fn eos_ids(inner: &tokenizers::Tokenizer, path: &Path, config: &Value, settings: &Settings) -> Result<Vec<Token>> {
    let generation = read_optional(&path.join("generation_config.json"))?;
    let listed = |file: &Value| -> Vec<Token> {
        match file.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(token).collect(),
            Some(id) => token(id).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let mut ids = listed(&generation);
    if ids.is_empty() {
        ids = listed(config);
    }
    ids.extend(settings.special_text("eos_token").and_then(|text| inner.token_to_id(text)));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// A token id of a JSON file.
fn token(value: &Value) -> Option<Token> {
    value.as_u64()?.try_into().ok()
}

/// The content of a JSON file, or null if there is no such file.
fn read_optional(path: &Path) -> Result<Value> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}
