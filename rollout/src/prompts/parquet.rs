//! Rows of a Parquet file, nested columns included.
//!
//! Pages are uncompressed or compressed by Snappy, as in data sets on the Hugging Face hub. Binary
//! columns become base64 text, dates and times ISO text.

use super::table::{self, Rows};
use super::{RowKind, Sources};
use crate::{Error, Result};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use schema::Seed;
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Opens the file of the settings for rows of this kind.
///
/// # Errors
///
/// An input error if the file cannot be read as Parquet, or the rows do not fit the settings.
pub(super) fn open(config: &table::Config, kind: RowKind, _: &Seed) -> Result<Sources> {
    config.open(kind, read)
}

/// The files of the settings.
pub(super) fn files(config: &table::Config) -> Vec<&Path> {
    config.files()
}

/// Reads every row of the file.
fn read(path: &Path) -> Result<Rows> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| Error::input(format!("cannot read prompts from {shown}: {error}")))?;
    let broken = |error| Error::input(format!("{shown} is no Parquet file that can be read here: {error}"));
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let rows = reader.get_row_iter(None).map_err(broken)?.enumerate().map(|(index, row)| {
        match row.map_err(broken)?.to_json_value() {
            Value::Object(row) => Ok((index + 1, row)),
            other => Err(Error::runtime(format!("{shown}: row {} is {other}", index + 1))),
        }
    });
    Ok(Rows { unit: "row", rows: rows.collect::<Result<_>>()? })
}
