//! Answers in rows and columns.

/// One value of an answer, in one row and column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: unknown, or not applicable.
    Null,
    /// A whole number.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// A string of characters.
    Text(String),
    /// A string of bytes.
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

    /// Adds a row, which must have one value per column.
    pub fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "one value per column");
        self.rows.push(row);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_columns_get_numbers() {
        assert_eq!(Table::new(["n", "n", "m", "n"]).columns, ["n", "n_2", "m", "n_3"]);
    }
}
