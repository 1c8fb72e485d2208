//! Downloads of models from the hub, into the cache that Python's client shares.
//!
//! Weights come last, so a folder that has them has everything. A download that was cut off goes on where it stopped.
//! All files are of one commit, that of the list of files.

use super::cache::is_plain;
use super::client::{Client, Failure, Listing, Log, Reason};
use super::{Hub, Id, Snapshot, is_gguf};
use crate::files::read_json;
use crate::weights;
use std::path::PathBuf;

/// Optional files, fetched before the weights.
const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

impl Hub {
    /// Downloads the files of a model that the snapshot lacks; returns the path of the model.
    ///
    /// # Errors
    /// If the hub does not answer, refuses, or has no such model or file, a download breaks off, or the hub's answer is
    /// not what a hub answers.
    pub(super) fn download(&self, id: &Id, snapshot: &Snapshot) -> Result<PathBuf, Reason> {
        let client = Client::new(self)?;
        let listing = client.list(id)?;
        let source = Source { client, id, listing, snapshot };
        match &id.file {
            Some(file) => drop(source.get(file)?),
            None => source.get_model()?,
        }
        snapshot.point_at(&source.listing.commit)?;
        snapshot.find().ok_or_else(|| format!("what {} sent is not a whole model", self.endpoint))
    }
}

/// A model's files on the hub.
struct Source<'a> {
    client: Client<'a>,
    id: &'a Id,
    listing: Listing,
    snapshot: &'a Snapshot,
}

impl Source<'_> {
    fn get_model(&self) -> Result<(), Reason> {
        if !self.has("config.json") || !(self.has(weights::SINGLE) || self.has(weights::INDEX)) {
            let ggufs: Vec<_> = self.listing.files.iter().filter(|file| is_gguf(file)).map(String::as_str).collect();
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
        self.listing.files.iter().any(|known| known == file)
    }

    fn get(&self, file: &str) -> Result<PathBuf, Reason> {
        if !self.has(file) || !is_plain(file) {
            return Err(format!("it has no file {file}"));
        }
        if let Some(path) = self.snapshot.file_of(&self.listing.commit, file) {
            return Ok(path);
        }
        self.fetch(file).map_err(|reason| format!("its file {file} did not come through ({reason})"))
    }

    fn fetch(&self, file: &str) -> Result<PathBuf, Reason> {
        let commit = &self.listing.commit;
        let address = self.client.address(self.id, commit, file);
        let hash = self.client.hash(&address, commit).map_err(Failure::into_reason)?;
        self.snapshot.add(commit, file, &hash, |part| {
            self.client.fetch(&address, part, &mut Log::new(file)).map_err(Failure::into_reason)
        })
    }
}
