//! Rows of a text file with one JSON object per line.
//!
//! A whole number that does not fit into 64 bits, such as a factorial, is read as a string of its digits. Other numbers
//! become the nearest double.

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

/// The files of the settings.
pub(super) fn files(config: &table::Config) -> Vec<&Path> {
    config.files()
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
        row(line).map(|row| (index + 1, row)).map_err(|error| {
            let (path, line) = (path.display(), index + 1);
            Error::input(format!("{path}: line {line} is no JSON object, and one per line is expected: {error}"))
        })
    });
    Ok(Rows { unit: "line", rows: rows.collect::<Result<_>>()? })
}

fn row(line: &str) -> serde_json::Result<Map<String, Value>> {
    let row = serde_json::from_str(line)?;
    match with_large_numbers_quoted(line) {
        None => Ok(row),
        Some(line) => serde_json::from_str(&line),
    }
}

/// Puts quotes around the whole numbers of a JSON text that do not fit into 64 bits; `None` if there are none.
fn with_large_numbers_quoted(json: &str) -> Option<String> {
    let part_of_number = |letter: char| letter.is_ascii_digit() || "+-.eE".contains(letter);
    let is_large = |number: &str| {
        let whole = number.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        whole && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
    };
    let (mut quoted, mut rest, mut found) = (String::new(), json, false);
    while let Some(place) = rest.find(|letter: char| letter == '"' || letter == '-' || letter.is_ascii_digit()) {
        let (before, here) = rest.split_at(place);
        let length = if here.starts_with('"') { string(here) } else { here.find(|letter| !part_of_number(letter)) };
        let (token, after) = here.split_at(length.unwrap_or(here.len()));
        let large = !token.starts_with('"') && is_large(token);
        let quote = if large { "\"" } else { "" };
        quoted.extend([before, quote, token, quote]);
        found |= large;
        rest = after;
    }
    quoted.push_str(rest);
    found.then_some(quoted)
}

/// Length in bytes of the JSON string at the beginning of a text, with its quotes.
fn string(text: &str) -> Option<usize> {
    let mut escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    });
    end.map(|end| end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_beyond_64_bits_keep_their_digits() {
        let read = |line: &str| Value::Object(row(line).unwrap());
        let large = "123456789012345678901234567890";
        assert_eq!(
            read(&format!("{{\"answer\": {large}, \"list\": [-{large},{large}]}}")),
            json!({
                "answer": large, "list": [format!("-{large}"), large]
            })
        );
        assert_eq!(read("{\"a\":18446744073709551616}"), json!({"a": "18446744073709551616"}));
        assert_eq!(read("{\"a\": -9223372036854775809}"), json!({"a": "-9223372036854775809"}));
        // What fits stays a number, and texts stay as they are.
        let same = r#"{"a": 18446744073709551615, "b": -9223372036854775808, "c": 1e40, "d": 0.1, "e\\\"": "\\\"12345678901234567890123\\"}"#;
        assert_eq!(read(same), serde_json::from_str::<Value>(same).unwrap());
        assert_eq!(with_large_numbers_quoted(same), None);
    }
}
