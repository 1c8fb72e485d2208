//! The formats of an answer: a table for people, JSON for programs, CSV for spreadsheets.

use crate::terminal::table;
use anyhow::Result;
use clap::ValueEnum;
use schema::hex;
use serde_json::{Map, Number};
use store::{Table, Value};

/// A format of answers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns that fit a hundred characters, long cells cut.
    Table,
    /// An array of objects.
    Json,
    /// Comma-separated values.
    Csv,
}

impl Format {
    /// Returns an answer in this format.
    ///
    /// # Errors
    ///
    /// Fails if a row cannot be written as CSV.
    pub(super) fn render(self, table: &Table) -> Result<String> {
        match self {
            Self::Table => Ok(table::text(table)),
            Self::Json => Ok(json(table)),
            Self::Csv => csv(table),
        }
    }

    /// Returns an answer in this format; as a table, each row is listed from top to bottom.
    ///
    /// # Errors
    ///
    /// Fails if a row cannot be written as CSV.
    pub(super) fn render_record(self, table: &Table) -> Result<String> {
        match self {
            Self::Table => Ok(table::record(table)),
            other => other.render(table),
        }
    }
}

/// An array with one object per row, each on its line. Bytes are hexadecimal; an infinite number is null.
fn json(table: &Table) -> String {
    let object = |row: &Vec<Value>| -> Map<String, serde_json::Value> {
        table.columns.iter().cloned().zip(row.iter().map(json_value)).collect()
    };
    let rows: Vec<String> =
        table.rows.iter().map(|row| format!("  {}", serde_json::Value::Object(object(row)))).collect();
    if rows.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", rows.join(",\n")) }
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Integer(number) => (*number).into(),
        Value::Real(number) => Number::from_f64(*number).map_or(serde_json::Value::Null, serde_json::Value::Number),
        Value::Text(text) => text.as_str().into(),
        Value::Blob(bytes) => hex(bytes).into(),
    }
}

/// A header and one line per row, as RFC 4180 has them. Nothing is lost of a value; NULL is empty.
fn csv(table: &Table) -> Result<String> {
    let mut text = csv_record(&table.columns)?;
    for row in &table.rows {
        let fields: Vec<String> = row
            .iter()
            .map(|value| match value {
                Value::Null => String::new(),
                Value::Integer(number) => number.to_string(),
                Value::Real(number) => number.to_string(),
                Value::Text(text) => text.clone(),
                Value::Blob(bytes) => hex(bytes),
            })
            .collect();
        // A record of a single empty field is a blank line; the writer would put quotes there.
        if fields == [""] {
            text.push_str("\r\n");
        } else {
            text.push_str(&csv_record(&fields)?);
        }
    }
    Ok(text)
}

fn csv_record(fields: &[String]) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(fields)?;
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["run", "reward", "n"]);
        table.push(vec!["tiny".into(), 0.25.into(), 8.into()]);
        table.push(vec!["数学\n\"x\", y".into(), Value::Null, 1024.into()]);
        table
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let expected = "[\n  {\"run\":\"tiny\",\"reward\":0.25,\"n\":8},\n  {\"run\":\"数学\\n\\\"x\\\", y\",\"reward\":null,\"n\":1024}\n]\n";
        assert_eq!(json(&table()), expected);
        assert_eq!(json(&Table::new(["a"])), "[]\n");
    }

    #[test]
    fn csv_quotes_what_rfc_4180_says() {
        assert_eq!(csv(&table()).unwrap(), "run,reward,n\r\ntiny,0.25,8\r\n\"数学\n\"\"x\"\", y\",,1024\r\n");
    }

    #[test]
    fn a_csv_row_of_one_empty_field_is_a_blank_line() {
        let mut table = Table::new(["reward"]);
        table.push(vec![Value::Null]);
        table.push(vec![1.into()]);
        assert_eq!(csv(&table).unwrap(), "reward\r\n\r\n1\r\n");
    }

    #[test]
    fn values_are_whole_in_json_and_csv() {
        let mut table = Table::new(["a", "b", "c"]);
        table.push(vec![Value::Blob(vec![0, 255]), f64::INFINITY.into(), 0.1.into()]);
        table.push(vec!["\r".into(), " x ".into(), 1e-300.into()]);
        assert_eq!(csv(&table).unwrap(), format!("a,b,c\r\n00ff,inf,0.1\r\n\"\r\", x ,0.{}1\r\n", "0".repeat(299)));
        assert_eq!(
            json(&table),
            "[\n  {\"a\":\"00ff\",\"b\":null,\"c\":0.1},\n  {\"a\":\"\\r\",\"b\":\" x \",\"c\":1e-300}\n]\n"
        );
    }
}
