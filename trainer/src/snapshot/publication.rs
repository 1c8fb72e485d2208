//! Adapters for workers: one small file per policy version, in the folder `published` of a run.
//!
//! A file appears under its name when it is whole. Of the versions before the newest one stays, for whoever is reading
//! it just now.

use super::{tensors, write_atomically};
use crate::{Error, Result};
use model::Policy;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The published adapters of one run.
#[derive(Debug)]
pub(crate) struct Publications {
    folder: PathBuf,
}

impl Publications {
    /// Those of this run folder, made where they are not there. Workers find them by their full path.
    pub(crate) fn new(run_folder: &Path) -> Result<Self> {
        let folder = run_folder.join("published");
        let made = fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        made.map(|folder| Self { folder }).map_err(|error| {
            Error::runtime(format!("cannot make the folder {} for the workers' policies: {error}", folder.display()))
        })
    }

    /// Writes a policy's adapter, and drops those of versions that are `oldest` no longer. Returns where it is.
    pub(crate) fn write(&self, policy: &Policy, oldest: u64) -> Result<PathBuf> {
        let adapter: Vec<(String, Tensor)> =
            policy.adapter().tensors().map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
        let path = self.folder.join(format!("version_{}.safetensors", policy.version().version));
        let bytes = tensors::to_bytes(&adapter)
            .map_err(|error| Error::runtime(format!("cannot write {}: {error}", path.display())))?;
        write_atomically(&path, &bytes)?;
        for (version, old) in self.files() {
            if version < oldest {
                // Best effort: it is small, and the next one tries again.
                let _ = fs::remove_file(old);
            }
        }
        Ok(path)
    }

    fn files(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let version = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("version_")?.parse().ok();
        entries.filter_map(|path| Some((version(&path)?, path))).collect()
    }

    /// Puts the adapter at `path` into a policy.
    pub(crate) fn restore(path: &Path, policy: &mut Policy) -> Result<()> {
        Ok(policy.adapter_mut().restore(&tensors::read(path)?)?)
    }
}
