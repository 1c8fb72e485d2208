//! Model lookup: a path, the cache, or the Hugging Face hub.
//!
//! A name is looked up in the cheapest order: as a path, in our own models folder, in the hub's cache on this
//! machine (shared with Python's `huggingface_hub`), and only then on the network. `HF_HUB_CACHE`, `HF_HOME`,
//! `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean there.
//!
//! The network is not trusted: what a server answers names no file but one inside the model's folder of the cache
//! (`hub/cache.rs`), and the token goes to the endpoint's host alone (`hub/client.rs`).

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod snapshot;

use crate::{Error, Result};
use snapshot::Snapshot;
use std::path::{Path, PathBuf};

/// The folder of downloads: `PROXRL_CACHE`, else `proxrl` in the user's cache folder.
pub fn cache_folder() -> PathBuf {
    variable("PROXRL_CACHE").map_or_else(|| user_cache().join("proxrl"), PathBuf::from)
}

/// The models folder inside the cache.
pub fn models_folder() -> PathBuf {
    cache_folder().join("models")
}

/// Finds a model: an existing path (`~` is the home folder), a name in the models folder, or a hub id.
///
/// A hub id is `owner/name`, or `owner/name/file.gguf` for one file, either optionally followed by `@revision`.
///
/// # Errors
/// If `path` is none of these, or the hub is offline, refuses, or sends an incomplete model.
pub fn resolve(path: &str, models_folder: &Path) -> Result<PathBuf> {
    resolve_with(path, models_folder, &Hub::from_env())
}

fn resolve_with(path: &str, models_folder: &Path, hub: &Hub) -> Result<PathBuf> {
    let given = match path.strip_prefix("~/") {
        Some(rest) => std::env::home_dir().unwrap_or_default().join(rest),
        None => PathBuf::from(path),
    };
    let cached = models_folder.join(path);
    if let Some(found) = [given, cached].into_iter().find(|path| path.exists()) {
        return Ok(found);
    }
    let nowhere = format!("model `{path}` is neither a path here nor a name in {}", models_folder.display());
    let Some(id) = Id::parse(path) else {
        return Err(Error::input(format!(
            "{nowhere}; give a Hugging Face folder, a .gguf file, or a hub id such as owner/name"
        )));
    };
    let snapshot = Snapshot::new(&hub.cache, &id);
    if let Some(found) = snapshot.find() {
        return Ok(found);
    }
    let nowhere = format!("{nowhere}, nor in the hub's cache {}", hub.cache.display());
    hub.fetch(&id, &snapshot).map_err(|reason| {
        Error::input(format!(
            "{nowhere}, and {reason}; fetch it where there is a network and give its folder as the path"
        ))
    })
}

/// A model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Id {
    /// `owner/name`.
    repository: String,
    /// One GGUF file of it, instead of the folder.
    file: Option<String>,
    revision: String,
}

impl Id {
    fn parse(text: &str) -> Option<Self> {
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |word: &str| {
            !word.is_empty()
                && !word.starts_with('.')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let words: Vec<&str> = path.split('/').collect();
        if !plain(revision) || !words.iter().copied().all(plain) {
            return None;
        }
        match words[..] {
            [owner, name] => {
                Some(Self { repository: format!("{owner}/{name}"), file: None, revision: revision.to_owned() })
            }
            [owner, name, file] if is_gguf(file) => Some(Self {
                repository: format!("{owner}/{name}"),
                file: Some(file.to_owned()),
                revision: revision.to_owned(),
            }),
            _ => None,
        }
    }
}

fn is_gguf(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "gguf")
}

/// The hub's settings, from the environment.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "hub"),
    expect(dead_code, reason = "without downloads, no request is made and no token shown")
)]
struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    fn from_env() -> Self {
        let home = variable("HF_HOME").map_or_else(|| user_cache().join("huggingface"), PathBuf::from);
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let saved_token = || std::fs::read_to_string(token_file).ok();
        Self {
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: variable("HF_TOKEN").or_else(saved_token).map(|token| token.trim().to_owned()),
            offline: variable("HF_HUB_OFFLINE")
                .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())),
        }
    }

    /// Downloads a model; the error is the reason as a clause.
    fn fetch(&self, id: &Id, snapshot: &Snapshot) -> std::result::Result<PathBuf, String> {
        if self.offline {
            return Err("HF_HUB_OFFLINE forbids to ask the hub".into());
        }
        self.download(id, snapshot)
    }

    #[cfg(not(feature = "hub"))]
    #[expect(clippy::unused_self, reason = "with the feature, this is a method")]
    fn download(&self, _: &Id, _: &Snapshot) -> std::result::Result<PathBuf, String> {
        Err("this program was built without the feature `hub`, so it cannot download".into())
    }
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `XDG_CACHE_HOME`, else `~/.cache`.
fn user_cache() -> PathBuf {
    variable("XDG_CACHE_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_else(|| PathBuf::from(".")).join(".cache"), PathBuf::from)
}

#[cfg(test)]
mod tests;
