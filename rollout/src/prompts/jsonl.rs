//! Rows of a text file with one JSON object per line.

use super::table::{self, Rows};
use super::{RowKind, Sources};
use crate::{Error, Result};
use schema::Seed;
use serde_json::{Map, Value};
use std::path::Path;

/// Opens the file of the settings for rows of this kind.
///
/// # Errors
///
/// An input error if the file cannot be read, a line is no JSON object, or the rows do not fit the settings.
pub(super) fn open(config: &table::Config, kind: RowKind, _: &Seed) -> Result<Sources> {
    config.open(kind, read)
}

/// Reads the file, skipping empty lines.
///
/// # Errors
///
/// An input error if the file cannot be read as UTF-8 text; or, with the number of the line, if any other line is no
/// JSON object.
fn read(path: &Path) -> Result<Rows> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::input(format!("cannot read prompts from {}: {error}", path.display())))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(index, line)| {
        let row: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            let (path, line) = (path.display(), index + 1);
            Error::input(format!("{path}: line {line} is no JSON object, and one per line is expected: {error}"))
        })?;
        Ok((index + 1, row))
    });
    Ok(Rows { unit: "line", rows: rows.collect::<Result<_>>()? })
}
