//! Memory-mapped files and JSON files, with errors that name the file.

use crate::{Error, Result};
use memmap2::Mmap;
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Maps a file into memory.
///
/// # Errors
/// If the file cannot be opened or mapped, or is empty.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::file(path, format!("cannot be opened ({error})")))?;
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        return Err(Error::file(path, "is empty; was its download cut off?"));
    }
    // SAFETY: the mapping is read-only. As with every mapped file, another process that shortens it while we read
    // would end ours; model files are written once and then only read.
    unsafe { Mmap::map(&file) }.map_err(|error| Error::file(path, format!("cannot be mapped ({error})")))
}

/// Reads a JSON file.
///
/// # Errors
/// If the file cannot be read, or is not valid JSON; the error names it.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, format!("cannot be read ({error})")))?;
    serde_json::from_str(&text).map_err(|error| Error::file(path, format!("is not valid JSON: {error}")))
}
