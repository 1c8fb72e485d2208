//! Answers in rows and columns, as text for people, JSON for programs and CSV for spreadsheets.

mod fit;

use schema::hex;
use serde_json::{Map, Number};
use std::fmt::{self, Write};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// One value of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: unknown, or not applicable.
    Null,
    /// A whole number.
    Integer(i64),
    /// A number.
    Real(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// An answer: named columns, and rows that all have one value per column.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// The name of each column; no two are alike.
    pub columns: Vec<String>,
    /// The rows, in the order of the answer.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// An empty table with these columns. A repeated name gets a number: `n`, `n_2`.
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut unique: Vec<String> = Vec::new();
        for name in columns.into_iter().map(Into::into) {
            let candidates = std::iter::once(name.clone()).chain((2..).map(|number| format!("{name}_{number}")));
            unique.extend(candidates.into_iter().find(|candidate| !unique.contains(candidate)));
        }
        Self { columns: unique, rows: Vec::new() }
    }

    /// Adds a row; it must have one value per column.
    pub fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "one value per column");
        self.rows.push(row);
    }

    /// A table for a terminal: aligned by what each character takes there, numbers to the right, long cells cut
    /// with `…`. Line breaks and other control characters are written as escapes. It fits in a hundred columns: what
    /// says the same in every row stands above, and too many columns become bands.
    pub fn to_text(&self) -> String {
        fit::text(self)
    }

    /// Each row as a list of `name  value` lines, with nothing cut: for one row with much to say.
    pub fn to_record_text(&self) -> String {
        let width = self.columns.iter().map(|name| name.width()).max().unwrap_or(0);
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            if number > 0 {
                text.push('\n');
            }
            for (name, value) in self.columns.iter().zip(row) {
                let padding = " ".repeat(width - name.width());
                let indented = plain(value, Breaks::Kept).replace('\n', &format!("\n{}", " ".repeat(width + 2)));
                let _ = writeln!(text, "{}", format!("{name}{padding}  {indented}").trim_end());
            }
        }
        text
    }

    /// An array with one object per row. Bytes are hexadecimal; an infinite number is null.
    pub fn to_json(&self) -> String {
        let object = |row: &Vec<Value>| -> Map<String, serde_json::Value> {
            self.columns.iter().cloned().zip(row.iter().map(serde_json::Value::from)).collect()
        };
        let rows: Vec<String> =
            self.rows.iter().map(|row| format!("  {}", serde_json::Value::Object(object(row)))).collect();
        if rows.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", rows.join(",\n")) }
    }

    /// Comma-separated values as RFC 4180 has them: a header, CRLF line ends, quotes where they are needed.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        csv_line(&mut text, self.columns.iter().map(String::as_str));
        for row in &self.rows {
            let fields: Vec<String> = row.iter().map(exact).collect();
            csv_line(&mut text, fields.iter().map(String::as_str));
        }
        text
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

/// Adds one line of CSV.
pub(crate) fn csv_line<'a>(text: &mut String, fields: impl Iterator<Item = &'a str>) {
    for (number, field) in fields.enumerate() {
        if number > 0 {
            text.push(',');
        }
        if field.contains(['"', ',', '\n', '\r']) {
            let _ = write!(text, "\"{}\"", field.replace('"', "\"\""));
        } else {
            text.push_str(field);
        }
    }
    text.push_str("\r\n");
}

impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(number) => Self::from(*number),
            Value::Real(number) => Number::from_f64(*number).map_or(Self::Null, Self::Number),
            Value::Text(text) => Self::from(text.as_str()),
            Value::Blob(bytes) => Self::from(hex(bytes)),
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Whether a line break stays one.
#[derive(Clone, Copy, PartialEq)]
enum Breaks {
    Kept,
    Escaped,
}

/// A value on one line of at most `widest` terminal columns.
fn cell(value: &Value, widest: usize) -> String {
    shorten(&plain(value, Breaks::Escaped), widest)
}

/// The name of a column, likewise.
fn escaped_name(table: &Table, column: usize) -> String {
    shorten(&escape(&table.columns[column], Breaks::Escaped), fit::WIDEST_CELL)
}

/// A value for people: numbers to five significant digits, nothing that would steer a terminal.
fn plain(value: &Value, breaks: Breaks) -> String {
    match value {
        Value::Real(number) => significant(*number),
        Value::Text(text) => escape(text, breaks),
        other => exact(other),
    }
}

/// A value with nothing lost; nothing at all for NULL.
fn exact(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::Blob(bytes) => hex(bytes),
    }
}

/// Five significant digits, without trailing zeros.
fn significant(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e15).contains(&magnitude) {
        return format!("{number:.4e}");
    }
    let before = if magnitude < 1.0 { magnitude.log10().floor().max(-4.0) as i32 } else { magnitude.log10() as i32 };
    let fixed = format!("{number:.*}", (4 - before).clamp(0, 8) as usize);
    if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').to_owned() } else { fixed }
}

fn escape(text: &str, breaks: Breaks) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' if breaks == Breaks::Kept => escaped.push('\n'),
            _ if character.is_control() => escaped.extend(character.escape_default()),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// At most `widest` terminal columns of a text.
fn shorten(text: &str, widest: usize) -> String {
    if text.width() <= widest {
        return text.to_owned();
    }
    let mut width = 0;
    let kept = text.chars().take_while(|character| {
        width += character.width().unwrap_or(0);
        width < widest
    });
    kept.chain(['…']).collect()
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
    fn text_is_aligned_by_terminal_width() {
        let expected = "\
run           reward     n
────────────  ──────  ────
tiny            0.25     8
数学\\n\"x\", y          1024
";
        assert_eq!(table().to_text(), expected);
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let expected = "[\n  {\"run\":\"tiny\",\"reward\":0.25,\"n\":8},\n  {\"run\":\"数学\\n\\\"x\\\", y\",\"reward\":null,\"n\":1024}\n]\n";
        assert_eq!(table().to_json(), expected);
        assert_eq!(Table::new(["a"]).to_json(), "[]\n");
    }

    #[test]
    fn csv_quotes_what_rfc_4180_says() {
        assert_eq!(table().to_csv(), "run,reward,n\r\ntiny,0.25,8\r\n\"数学\n\"\"x\"\", y\",,1024\r\n");
    }

    #[test]
    fn records_keep_every_line() {
        let mut record = Table::new(["id", "text"]);
        record.push(vec![7.into(), "first\nsecond\u{1b}[31m".into()]);
        assert_eq!(record.to_record_text(), "id    7\ntext  first\n      second\\u{1b}[31m\n");
    }

    #[test]
    fn long_cells_are_cut() {
        assert_eq!(shorten(&"a".repeat(48), 48), "a".repeat(48));
        assert_eq!(shorten(&"a".repeat(49), 48), format!("{}…", "a".repeat(47)));
        // Each of these takes two columns: 23 of them and the dots take 47.
        assert_eq!(shorten(&"数".repeat(40), 48), format!("{}…", "数".repeat(23)));
    }

    #[test]
    fn five_significant_digits() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (0.123_456_78, "0.12346"),
            (0.001_234_567, "0.0012346"),
            (123_456.7, "123457"),
            (100.0, "100"),
            (1e-7, "1.0000e-7"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, text) in cases {
            assert_eq!(significant(number), text);
        }
    }

    #[test]
    fn repeated_columns_get_numbers() {
        assert_eq!(Table::new(["n", "n", "m", "n"]).columns, ["n", "n_2", "m", "n_3"]);
    }
}
