//! Adapters for workers: one small file per policy version, in the folder `published` of a run.
//!
//! A file appears under its name when it is whole. Of the versions before the newest one stays, for whoever is reading
//! it just now. Where the run is shared at a URL, they lie there too, and workers are told that place.

use crate::checkpoint::bucket::Shared;
use crate::checkpoint::tensors;
use crate::files::write_atomically;
use crate::{Error, Result};
use model::Policy;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use store::Files;
use tch::Tensor;

/// The published adapters of one run.
#[derive(Debug)]
pub(crate) struct Publications {
    folder: PathBuf,
    shared: Option<Rc<Shared>>,
}

/// The folder of published adapters in a run folder.
const PUBLISHED: &str = "published";

impl Publications {
    /// Those of this run folder, made where they are not there. Workers find them by their full path, or at the URL where
    /// the run is shared.
    pub(crate) fn new(run_folder: &Path, shared: Option<Rc<Shared>>) -> Result<Self> {
        let folder = run_folder.join(PUBLISHED);
        let made = fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        made.map(|folder| Self { folder, shared }).map_err(|error| {
            Error::runtime(format!("cannot make the folder {} for the workers' policies: {error}", folder.display()))
        })
    }

    /// Writes a policy's adapter, and drops those of versions before `oldest`. Returns the path or the URL where it is.
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

    /// Puts the adapter at a path or a URL into a policy. `false` if nothing is there.
    pub(crate) fn restore(place: &str, policy: &mut Policy) -> Result<bool> {
        let found = match place.rsplit_once('/').filter(|_| Files::is_url(place)) {
            Some((folder, file)) => Files::open(folder)?.read(file)?,
            None => fs::read(place).ok(),
        };
        let Some(bytes) = found else { return Ok(false) };
        policy.adapter_mut().restore(&tensors::from_bytes(&bytes, place)?)?;
        Ok(true)
    }
}
