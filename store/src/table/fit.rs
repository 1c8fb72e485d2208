//! Tables that a person can read in a window of a hundred columns, however many the answer has.
//!
//! What does not fit gives way in this order: a column that says the same in every row becomes a line above the table;
//! long texts are cut shorter; and what is left is set in bands below each other, each of which begins with the first
//! column.

use super::{Table, Value, cell, escaped_name};
use std::fmt::Write;
use unicode_width::UnicodeWidthStr;

/// The terminal columns that a table may take.
const WINDOW: usize = 100;
/// The widest a cell gets, in terminal columns.
pub(super) const WIDEST_CELL: usize = 48;
/// The narrowest that a long text is cut to.
const NARROWEST_CUT: usize = 16;
/// What stands between two columns.
const GAP: usize = 2;

/// The table as text of at most [`WINDOW`] columns where that is possible.
pub(super) fn text(table: &Table) -> String {
    let every: Vec<usize> = (0..table.columns.len()).collect();
    if Grid::of(table, &every, WIDEST_CELL).width() <= WINDOW {
        return Grid::of(table, &every, WIDEST_CELL).text();
    }
    let (alike, varying): (Vec<usize>, Vec<usize>) = every.iter().partition(|column| is_alike(table, **column));
    // One row, or rows that are all alike, are a table all the same.
    let (above, columns) = if varying.is_empty() { (Vec::new(), every) } else { (alike, varying) };
    let mut text = said_once(table, &above);
    let cuts = (NARROWEST_CUT..=WIDEST_CELL).rev().step_by(4);
    let fitting = cuts.map(|cut| Grid::of(table, &columns, cut)).find(|grid| grid.width() <= WINDOW);
    if let Some(grid) = fitting {
        text.push_str(&grid.text());
    } else {
        let bands = bands(&Grid::of(table, &columns, NARROWEST_CUT).widths, &columns);
        let bands: Vec<String> = bands.iter().map(|band| Grid::of(table, band, NARROWEST_CUT).text()).collect();
        text.push_str(&bands.join("\n"));
    }
    text
}

/// Whether a column says the same in every one of several rows.
fn is_alike(table: &Table, column: usize) -> bool {
    table.rows.len() > 1 && table.rows.iter().all(|row| row[column] == table.rows[0][column])
}

/// What is the same in every row: `name value` pairs, as many on a line as fit, and an empty line.
fn said_once(table: &Table, columns: &[usize]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for column in columns {
        let value = cell(&table.rows[0][*column], WIDEST_CELL);
        let pair = format!("{} {}", escaped_name(table, *column), if value.is_empty() { "–" } else { &value });
        match lines.last_mut().filter(|line| line.width() + pair.width() + 3 <= WINDOW) {
            Some(line) => line.extend([" · ", &pair]),
            None => lines.push(pair),
        }
    }
    lines.into_iter().map(|line| line + "\n").chain((!columns.is_empty()).then(|| "\n".to_owned())).collect()
}

/// Columns in bands that fit, each beginning with the first one.
fn bands(widths: &[usize], columns: &[usize]) -> Vec<Vec<usize>> {
    let mut bands: Vec<Vec<usize>> = Vec::new();
    let mut taken = WINDOW;
    for (column, width) in columns.iter().zip(widths).skip(1) {
        if let Some(band) = bands.last_mut().filter(|_| taken + GAP + width <= WINDOW) {
            band.push(*column);
        } else {
            bands.push(vec![columns[0], *column]);
            taken = widths[0];
        }
        taken += GAP + width;
    }
    bands
}

/// Some columns of a table as they are written.
struct Grid {
    lines: Vec<Vec<String>>,
    widths: Vec<usize>,
    numeric: Vec<bool>,
}

impl Grid {
    fn of(table: &Table, columns: &[usize], widest: usize) -> Self {
        let mut lines = vec![columns.iter().map(|column| escaped_name(table, *column)).collect::<Vec<String>>()];
        lines.extend(table.rows.iter().map(|row| columns.iter().map(|column| cell(&row[*column], widest)).collect()));
        let width = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
        Self {
            widths: (0..columns.len()).map(width).collect(),
            numeric: columns.iter().map(|column| is_numeric(table, *column)).collect(),
            lines,
        }
    }

    fn width(&self) -> usize {
        self.widths.iter().sum::<usize>() + GAP * self.widths.len().saturating_sub(1)
    }

    fn text(mut self) -> String {
        self.lines.insert(1, self.widths.iter().map(|width| "─".repeat(*width)).collect());
        let mut text = String::new();
        for line in &self.lines {
            let mut cells = String::new();
            for ((cell, width), numeric) in line.iter().zip(&self.widths).zip(&self.numeric) {
                let padding = " ".repeat(width - cell.width());
                let (left, right) = if *numeric { (padding.as_str(), "") } else { ("", padding.as_str()) };
                let _ = write!(cells, "{left}{cell}{right}{}", " ".repeat(GAP));
            }
            text.push_str(cells.trim_end());
            text.push('\n');
        }
        text
    }
}

fn is_numeric(table: &Table, column: usize) -> bool {
    let mut values = table.rows.iter().map(|row| &row[column]).filter(|value| **value != Value::Null).peekable();
    values.peek().is_some() && values.all(|value| matches!(value, Value::Integer(_) | Value::Real(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of a name and numbered columns; column 1 is the same in both.
    fn table(columns: usize) -> Table {
        let names = (1..columns).map(|number| format!("a_long_name_{number}"));
        let mut table = Table::new(std::iter::once("key".to_owned()).chain(names));
        for row in 0..2 {
            let numbers = (1..columns as i64).map(|number| Value::Integer(if number == 1 { 7 } else { number + row }));
            table.push(std::iter::once(Value::from(["x", "y"][row as usize])).chain(numbers).collect());
        }
        table
    }

    fn widest_line(text: &str) -> usize {
        text.lines().map(UnicodeWidthStr::width).max().unwrap_or(0)
    }

    #[test]
    fn a_column_that_says_the_same_goes_above() {
        // 3 + 6 x (13 + 2) = 93 columns fit; a seventh name would make 108, so the first, always 7, gives way.
        assert!(text(&table(7)).starts_with("key  a_long_name_1"));
        let text = text(&table(8));
        assert!(text.starts_with("a_long_name_1 7\n\nkey  a_long_name_2"), "{text}");
        assert!(widest_line(&text) <= WINDOW, "{text}");
    }

    #[test]
    fn too_many_columns_become_bands() {
        let text = text(&table(20));
        assert!(widest_line(&text) <= WINDOW, "{text}");
        let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("key")).collect();
        assert_eq!(heads.len(), 3, "{text}");
        let names = heads.iter().flat_map(|line| line.split_whitespace()).filter(|name| *name != "key");
        assert_eq!(names.collect::<Vec<_>>(), table(20).columns[2..]);
    }

    #[test]
    fn long_texts_are_cut_shorter_before_that() {
        let mut table = Table::new(["a", "b", "c"]);
        table.push(vec![
            "x".repeat(80).as_str().into(),
            "y".repeat(80).as_str().into(),
            "z".repeat(80).as_str().into(),
        ]);
        table.push(vec![Value::Null, Value::Null, Value::Null]);
        let text = text(&table);
        // 3 x 32 + 2 x 2 = 100.
        assert_eq!(widest_line(&text), 100);
        assert!(text.contains(&format!("{}…", "x".repeat(31))), "{text}");
    }
}
