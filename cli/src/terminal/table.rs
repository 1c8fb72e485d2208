//! Tables for a terminal that is a hundred columns wide, laid out by `comfy-table`.
//!
//! A table that does not fit gives way in this order: a column with one value in every row becomes part of a line above
//! the table; long texts are cut shorter; the rest is set in bands below each other, each beginning with the first column.

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, ContentLineStyle, LineStyle, Row, TableStyle, Width,
};
use schema::hex;
use std::fmt::Write;
use store::{Table, Value};
use unicode_width::UnicodeWidthStr;

/// The terminal columns that a table may take.
const WINDOW: usize = 100;
/// The widest column of text, in terminal columns.
const WIDEST: usize = 48;
/// The narrowest that a long text is cut to.
const NARROWEST: usize = 16;
/// Terminal columns between two columns: the padding of the left one, and the style's separator.
const GAP: usize = 2;

/// A heading, a line below it, and rows.
const STYLE: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none().junction(' '))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .content_lines(ContentLineStyle::none().junction(' '));

/// One column: its name and its cells, each on one line.
pub(crate) struct Column {
    name: String,
    cells: Vec<String>,
    numeric: bool,
    constant: bool,
}

impl Column {
    /// A column of finished cells; a numeric one is aligned to the right and never cut.
    pub(crate) fn new(name: &str, cells: Vec<String>, numeric: bool) -> Self {
        Self { name: name.to_owned(), cells, numeric, constant: false }
    }

    fn of(table: &Table, index: usize) -> Self {
        let values = || table.rows.iter().map(|row| &row[index]);
        let mut known = values().filter(|value| **value != Value::Null).peekable();
        Self {
            name: escaped(&table.columns[index], LineBreaks::Escaped),
            // More than this is never shown, and to lay it out would cost time.
            cells: values().map(|value| plain(value, LineBreaks::Escaped).chars().take(2 * WIDEST).collect()).collect(),
            numeric: known.peek().is_some() && known.all(|value| matches!(value, Value::Integer(_) | Value::Real(_))),
            constant: table.rows.len() > 1 && values().all(|value| *value == table.rows[0][index]),
        }
    }

    /// The preferred width, in terminal columns.
    fn width(&self) -> usize {
        let widest = self.cells.iter().map(|cell| cell.width()).max().unwrap_or(0);
        self.name.width().max(if self.numeric { widest } else { widest.min(WIDEST) })
    }

    /// The least width, in terminal columns.
    fn least(&self) -> usize {
        if self.numeric { self.width() } else { self.width().min(NARROWEST.max(self.name.width())) }
    }
}

/// Returns a table with a heading, numbers to the right and long texts cut with `…`. Line breaks and other control
/// characters are written as escapes.
pub(crate) fn text(table: &Table) -> String {
    let columns: Vec<Column> = (0..table.columns.len()).map(|index| Column::of(table, index)).collect();
    let every: Vec<&Column> = columns.iter().collect();
    if total(&every, Column::width) <= WINDOW {
        return grid(&every);
    }
    let (mut constant, mut varying): (Vec<&Column>, Vec<&Column>) = every.iter().partition(|column| column.constant);
    if varying.is_empty() {
        std::mem::swap(&mut constant, &mut varying);
    }
    let bands: Vec<String> = bands(&varying).iter().map(|band| grid(band)).collect();
    constants(&constant) + &bands.join("\n")
}

/// Returns each row as a list of `name  value` lines, with nothing cut: for one row with many or long cells.
pub(crate) fn record(table: &Table) -> String {
    let width = table.columns.iter().map(|name| name.width()).max().unwrap_or(0);
    let line = |(name, value): (&String, &Value)| {
        let padding = " ".repeat(width - name.width());
        let value = plain(value, LineBreaks::Kept).replace('\n', &format!("\n{}", " ".repeat(width + GAP)));
        format!("{name}{padding}  {value}").trim_end().to_owned() + "\n"
    };
    let rows: Vec<String> = table.rows.iter().map(|row| table.columns.iter().zip(row).map(line).collect()).collect();
    rows.join("\n")
}

/// Returns the columns side by side, as wide as they fit into [`WINDOW`].
pub(crate) fn grid(columns: &[&Column]) -> String {
    let mut grid = comfy_table::Table::new();
    grid.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_width(WINDOW as u16);
    grid.set_header(columns.iter().map(|column| &column.name));
    for index in 0..columns.first().map_or(0, |column| column.cells.len()) {
        let mut row = Row::from(columns.iter().map(|column| &column.cells[index]));
        row.max_height(1);
        grid.add_row(row);
    }
    for (index, (column, layout)) in columns.iter().zip(grid.column_iter_mut()).enumerate() {
        // The last column needs no gap behind it.
        let padding = u16::from(index + 1 < columns.len());
        let width = |width: usize| Width::Fixed(width as u16 + padding);
        layout.set_padding((0, padding));
        if column.numeric {
            layout.set_cell_alignment(CellAlignment::Right);
            layout.set_constraint(ColumnConstraint::ContentWidth);
        } else {
            let (lower, upper) = (width(column.least()), width(column.width()));
            layout.set_constraint(ColumnConstraint::Boundaries { lower, upper });
        }
    }
    grid.trim_fmt() + "\n"
}

/// Returns two columns without a heading, indented, with nothing cut.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "  {name:width$}  {value}");
        text
    })
}

/// The columns with one value in every row: `name value` pairs, as many on a line as fit, and an empty line.
fn constants(columns: &[&Column]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for column in columns {
        let value = if column.cells[0].is_empty() { "–" } else { &column.cells[0] };
        let mut pair: String = format!("{} {value}", column.name).chars().take(WIDEST).collect();
        if pair.chars().count() == WIDEST {
            pair.pop();
            pair.push('…');
        }
        match lines.last_mut().filter(|line| line.width() + pair.width() + 3 <= WINDOW) {
            Some(line) => line.extend([" · ", &pair]),
            None => lines.push(pair),
        }
    }
    lines.into_iter().map(|line| line + "\n").chain((!columns.is_empty()).then(|| "\n".to_owned())).collect()
}

/// Bands of columns that fit, each beginning with the first column.
fn bands<'a>(columns: &[&'a Column]) -> Vec<Vec<&'a Column>> {
    let Some((first, rest)) = columns.split_first() else { return Vec::new() };
    let mut bands = vec![vec![*first]];
    for column in rest {
        let band = bands
            .last_mut()
            .filter(|band| band.len() == 1 || total(band, Column::least) + GAP + column.least() <= WINDOW);
        match band {
            Some(band) => band.push(column),
            None => bands.push(vec![first, column]),
        }
    }
    bands
}

fn total(columns: &[&Column], width: impl Fn(&Column) -> usize) -> usize {
    columns.iter().map(|column| width(column)).sum::<usize>() + GAP * columns.len().saturating_sub(1)
}

/// The treatment of line breaks in a text.
#[derive(Clone, Copy, PartialEq)]
enum LineBreaks {
    Kept,
    Escaped,
}

/// A value for people: numbers to five significant digits, nothing that would steer a terminal.
fn plain(value: &Value, breaks: LineBreaks) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => significant(*number),
        Value::Text(text) => escaped(text, breaks),
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

fn escaped(text: &str, breaks: LineBreaks) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' if breaks == LineBreaks::Kept => escaped.push('\n'),
            _ if character.is_control() => escaped.extend(character.escape_default()),
            _ => escaped.push(character),
        }
    }
    escaped
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
    fn text_is_aligned_by_terminal_width() {
        let mut table = Table::new(["run", "reward", "n"]);
        table.push(vec!["tiny".into(), 0.25.into(), 8.into()]);
        table.push(vec!["数学\n\"x\", y".into(), Value::Null, 1024.into()]);
        let expected = "\
run           reward     n
──────────────────────────
tiny            0.25     8
数学\\n\"x\", y          1024
";
        assert_eq!(text(&table), expected);
        assert_eq!(text(&Table::new(["a", "b"])), "a  b\n────\n");
    }

    #[test]
    fn a_constant_column_goes_above_a_table_that_does_not_fit() {
        // 3 + 6 x (13 + 2) = 93 columns fit; a seventh name would make 108, so the first, always 7, gives way.
        assert!(text(&table(7)).starts_with("key  a_long_name_1"), "{}", text(&table(7)));
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
        table.push(["x", "y", "z"].map(|letter| letter.repeat(80).as_str().into()).to_vec());
        table.push(vec![Value::Null, Value::Null, Value::Null]);
        let text = text(&table);
        // 3 x 32 + 2 x 2 = 100.
        assert_eq!(widest_line(&text), 100, "{text}");
        assert!(text.contains(&format!("{}…", "x".repeat(31))), "{text}");
    }

    #[test]
    fn a_long_text_takes_48_columns() {
        let cut = |content: &str| {
            let mut table = Table::new(["a"]);
            table.push(vec![content.into()]);
            text(&table).lines().last().unwrap().to_owned()
        };
        assert_eq!(cut(&"a".repeat(48)), "a".repeat(48));
        assert_eq!(cut(&"a".repeat(49)), format!("{}…", "a".repeat(47)));
        // Each of these takes two columns: 23 of them and the dots take 47.
        assert_eq!(cut(&"数".repeat(40)), format!("{}…", "数".repeat(23)));
    }

    #[test]
    fn numbers_are_never_cut() {
        let mut table = Table::new(["text", "number"]);
        table.push(vec!["x".repeat(300).as_str().into(), i64::MAX.into()]);
        assert!(text(&table).contains(" 9223372036854775807"));
    }

    #[test]
    fn records_keep_every_line() {
        let mut table = Table::new(["id", "text"]);
        table.push(vec![7.into(), "first\nsecond\u{1b}[31m".into()]);
        assert_eq!(record(&table), "id    7\ntext  first\n      second\\u{1b}[31m\n");
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
}
