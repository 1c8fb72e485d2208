//! The hub's cache on this machine: `models--OWNER--NAME/refs/REVISION` names a commit, and
//! `models--OWNER--NAME/snapshots/COMMIT/` holds its files.

use super::Id;
use crate::files::read_json;
use crate::weights;
use std::path::{Path, PathBuf};

/// One model in the hub's cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) repository: PathBuf,
    pub(super) revision: String,
    file: Option<String>,
}

impl Snapshot {
    pub(super) fn new(cache: &Path, id: &Id) -> Self {
        let repository = cache.join(format!("models--{}", id.repository.replace('/', "--")));
        Self { repository, revision: id.revision.clone(), file: id.file.clone() }
    }

    /// The model's folder or file, if all of it is there. A download that was cut off leaves a part, which is not
    /// enough.
    pub(super) fn find(&self) -> Option<PathBuf> {
        match &self.file {
            Some(file) => self.file(file),
            None => Some(self.folder()).filter(|folder| is_complete(folder)),
        }
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder().join(name)).filter(|path| path.exists())
    }

    fn folder(&self) -> PathBuf {
        // A revision is a branch or tag, which names a commit, or a commit itself.
        let commit = std::fs::read_to_string(self.repository.join("refs").join(&self.revision));
        let commit = commit.unwrap_or_else(|_| self.revision.clone());
        self.repository.join("snapshots").join(commit.trim())
    }
}

/// True if a folder holds a config and all the weights that belong to it.
fn is_complete(folder: &Path) -> bool {
    if !folder.join("config.json").exists() {
        return false;
    }
    if folder.join(weights::SINGLE).exists() {
        return true;
    }
    let index = read_json(&folder.join(weights::INDEX)).unwrap_or_default();
    let shards = weights::shards(&index);
    !shards.is_empty() && shards.iter().all(|shard| folder.join(shard).exists())
}
