//! Files that are whole or absent: synced writes, and writes under a temporary name.

use crate::{Error, Result};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes a file and syncs it to disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writes a file under a temporary name and renames it, so that a reader sees the old or the new one, never a part.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    write_synced(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|error| Error::runtime(format!("cannot write {}: {error}", path.display())))
}
