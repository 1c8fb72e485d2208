//! Published adapters for workers: one small file per policy version, in the folder `published` of a run.
//!
//! A file appears under its name only when it is whole. Versions that a worker may still be reading stay. If the run is
//! shared at a URL, the files lie there too, and workers receive that URL.

use crate::bucket::Bucket;
use crate::checkpoint::bucket::Shared;
use crate::checkpoint::tensors;
use crate::files::write_atomically;
use crate::{Error, Result};
use model::Policy;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::Tensor;

/// Published adapters of one run.
#[derive(Debug)]
pub(crate) struct Publications {
    folder: PathBuf,
    shared: Option<Rc<Shared>>,
}

/// Folder of published adapters in a run folder.
const PUBLISHED: &str = "published";

impl Publications {
    /// Opens the published adapters of a run folder and creates the folder if it does not exist. Workers find them by
    /// their full path, or at the URL at which the run is shared.
    pub(crate) fn new(run_folder: &Path, shared: Option<Rc<Shared>>) -> Result<Self> {
        let folder = run_folder.join(PUBLISHED);
        let made = fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        made.map(|folder| Self { folder, shared }).map_err(|error| {
            Error::runtime(format!("cannot make the folder {} for the workers' policies: {error}", folder.display()))
        })
    }

    /// Writes a policy's adapter and removes versions before `oldest`. Returns the path or URL of the file.
    pub(crate) fn write(&self, policy: &Policy, oldest: u64) -> Result<String> {
        let adapter: Vec<(String, Tensor)> =
            policy.adapter().tensors().map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
        let file = |version: u64| format!("version_{version}.safetensors");
        let path = self.folder.join(file(policy.version().version));
        let bytes = tensors::to_bytes(&adapter)
            .map_err(|error| Error::runtime(format!("cannot write {}: {error}", path.display())))?;
        write_atomically(&path, &bytes)?;
        for (version, old) in self.files() {
            if version < oldest {
                // Best effort: it is small, and the next one tries again.
                let _ = fs::remove_file(old);
                if let Some(shared) = &self.shared {
                    let _ = shared.remove(&format!("{PUBLISHED}/{}", file(version)));
                }
            }
        }
        match &self.shared {
            Some(shared) => shared.write(&format!("{PUBLISHED}/{}", file(policy.version().version)), bytes),
            None => Ok(path.display().to_string()),
        }
    }

    fn files(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let version = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("version_")?.parse().ok();
        entries.filter_map(|path| Some((version(&path)?, path))).collect()
    }

    /// Loads the adapter at a path or URL into a policy; returns false if there is none.
    pub(crate) fn restore(location: &str, policy: &mut Policy) -> Result<bool> {
        let found = match location.rsplit_once('/').filter(|_| Bucket::is_url(location)) {
            Some((folder, file)) => Bucket::open(folder)?.read(file)?,
            None => fs::read(location).ok(),
        };
        let Some(bytes) = found else { return Ok(false) };
        policy.adapter_mut().restore(&tensors::from_bytes(&bytes, location)?)?;
        Ok(true)
    }
}
