//! Downloads from the hub, by the hub's own client (`hf-hub`), into the cache that Python's client shares.
//!
//! Weights come last, so a folder that has them has everything. A download that was cut off goes on where it stopped.

use super::{Hub, Id, Snapshot, is_gguf};
use crate::files::read_json;
use crate::weights;
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Time limit for the hub to list a model's files. The client itself would wait forever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Optional files, fetched before the weights.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The reason for a failed download, as a clause.
type Reason = String;

impl Hub {
    /// Downloads the files of a model that the snapshot lacks; returns the path of the model.
    ///
    /// # Errors
    /// If the hub does not answer, refuses, or has no such model or file, or a download breaks off.
    pub(super) fn download(&self, id: &Id, snapshot: &Snapshot) -> Result<PathBuf, Reason> {
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("proxrl", env!("CARGO_PKG_VERSION"))
            .with_retries(3)
            .build()
            .map_err(|error| format!("the hub's client does not start ({error})"))?;
        let repo = || api.repo(Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone()));
        let files = self.list(repo(), &id.repository)?;
        let source = Source { repo: repo(), files, snapshot };
        match &id.file {
            Some(file) => drop(source.get(file)?),
            None => source.get_model()?,
        }
        snapshot.find().ok_or_else(|| format!("what {} sent is not a whole model", self.endpoint))
    }

    /// The names of a model's files on the hub.
    fn list(&self, repo: ApiRepo, repository: &str) -> Result<Vec<String>, Reason> {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(repo.info()));
        let answer = receiver
            .recv_timeout(PATIENCE)
            .map_err(|_| format!("{} did not answer within {} s", self.endpoint, PATIENCE.as_secs()))?;
        match answer {
            Ok(info) => Ok(info.siblings.into_iter().map(|file| file.rfilename).collect()),
            Err(error) => Err(self.explain(&error.to_string(), repository)),
        }
    }

    fn explain(&self, error: &str, repository: &str) -> Reason {
        let mentions = |status: &str| error.contains(status);
        if mentions("401") || mentions("403") {
            let token = if self.token.is_some() { "HF_TOKEN may not read it" } else { "it may need HF_TOKEN" };
            format!("{} refuses `{repository}` (no such model, or {token})", self.endpoint)
        } else if mentions("404") {
            format!("{} has no such model or revision", self.endpoint)
        } else {
            format!("{} cannot be reached ({error})", self.endpoint)
        }
    }
}

/// A model's files on the hub.
struct Source<'a> {
    repo: ApiRepo,
    files: Vec<String>,
    /// The files that are in the cache already.
    snapshot: &'a Snapshot,
}

impl Source<'_> {
    fn get_model(&self) -> Result<(), Reason> {
        if !self.has("config.json") || !(self.has(weights::SINGLE) || self.has(weights::INDEX)) {
            let ggufs: Vec<_> = self.files.iter().filter(|file| is_gguf(file)).map(String::as_str).collect();
            return Err(if ggufs.is_empty() {
                format!("it has no config.json with {}", weights::SINGLE)
            } else {
                format!("it holds GGUF files, of which the path must name one: {}", ggufs.join(", "))
            });
        }
        for file in SMALL_FILES.iter().filter(|file| self.has(file)) {
            self.get(file)?;
        }
        if self.has(weights::SINGLE) {
            return self.get(weights::SINGLE).map(drop);
        }
        let index = self.get(weights::INDEX)?;
        let index = read_json(&index).map_err(|error| format!("its index is damaged ({error})"))?;
        for shard in weights::shards(&index) {
            self.get(&shard)?;
        }
        Ok(())
    }

    fn has(&self, file: &str) -> bool {
        self.files.iter().any(|known| known == file)
    }

    fn get(&self, file: &str) -> Result<PathBuf, Reason> {
        if !self.has(file) || Path::new(file).file_name().is_none_or(|plain| plain != file) {
            return Err(format!("it has no file {file}"));
        }
        if let Some(path) = self.snapshot.file(file) {
            return Ok(path);
        }
        self.repo
            .download_with_progress(file, Log::default())
            .map_err(|error| format!("its file {file} did not come through ({error})"))
    }
}

/// Progress as log lines, one for each tenth of a file.
#[derive(Default)]
struct Log {
    file: String,
    size: usize,
    done: usize,
}

impl Progress for Log {
    fn init(&mut self, size: usize, file: &str) {
        if self.file.is_empty() {
            tracing::info!("fetching {file} ({:.1} MB)", size as f64 / 1e6);
        }
        *self = Self { file: file.to_owned(), size, done: 0 };
    }

    fn update(&mut self, size: usize) {
        let tenth = |done: usize| done * 10 / self.size.max(1);
        if tenth(self.done + size) > tenth(self.done) {
            tracing::info!("fetching {}: {} %", self.file, 10 * tenth(self.done + size));
        }
        self.done += size;
    }

    fn finish(&mut self) {}
}
