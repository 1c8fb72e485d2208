//! Rows from a text file with one JSON object per line.

use super::table::Rows;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads the file. Empty lines are skipped; anything else that is no JSON object is an error with its line number.
pub(super) fn read(path: &Path) -> Result<Rows> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::input(format!("cannot read prompts from {}: {error}", path.display())))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(place, line)| {
        let row: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            let (path, line) = (path.display(), place + 1);
            Error::input(format!("{path}: line {line} is no JSON object, and one per line is expected: {error}"))
        })?;
        Ok((place + 1, row))
    });
    Ok(Rows { unit: "line", rows: rows.collect::<Result<_>>()? })
}
