//! Asking in SQL, with reading enforced three times over.
//!
//! The statement must be a single one that begins like a question, because `VACUUM INTO` and `ATTACH` would write
//! files without changing the store. The engine runs it where nothing can be written, `SQLite` with `query_only` and
//! `PostgreSQL` in a transaction that reads only, which catches the likes of `WITH … DELETE`. And
//! [`Store::open_read_only`] opens the store itself for reading alone.

use crate::engine::{Access, Connection, Engine, Row, sql, with_zeros};
use crate::error::{failed, message, sqlite_code, sqlstate};
use crate::table::{Table, Value};
use crate::{Error, Result, Store};
use sqlx::{Row as _, TypeInfo, ValueRef};

impl Store {
    /// Returns the answer to one SQL query. Anything that would write is refused.
    ///
    /// # Errors
    /// [`Error::NotReading`] if there is not exactly one statement or it would write, [`Error::BadSql`] if the engine
    /// refuses it, or if the store cannot be read.
    pub fn query(&self, sql: &str) -> Result<Table> {
        let sql = question(sql)?;
        self.with(async |connection| match connection.engine() {
            Engine::Sqlite => {
                let kept: i64 =
                    sql::query_scalar("PRAGMA query_only").fetch_one(&mut *connection).await.map_err(bad_sql)?;
                set_query_only(connection, 1).await?;
                let answer = ask(connection, sql).await;
                set_query_only(connection, kept).await?;
                answer
            }
            Engine::Postgres => {
                let mut snapshot = connection.begin(Access::Read).await.map_err(bad_sql)?;
                ask(&mut snapshot, sql).await
            }
        })
    }
}

/// Runs a statement that is known to be a question.
async fn ask(connection: &mut Connection, sql: &str) -> Result<Table> {
    let (columns, rows) = connection.ask(sql).await.map_err(bad_sql)?;
    let mut table = Table::new(columns);
    for row in rows {
        table.push((0..table.columns.len()).map(|column| value(&row, column)).collect::<Result<_>>()?);
    }
    Ok(table)
}

/// Classifies the engine's error about a statement that a person wrote.
pub(crate) fn bad_sql(error: sqlx::Error) -> Error {
    let state = sqlstate(&error);
    match (sqlite_code(&error), state.as_deref()) {
        // SQLITE_READONLY; read_only_sql_transaction
        (Some(8), _) | (_, Some("25006")) => Error::NotReading { reason: "would change the store".into() },
        // SQLITE_ERROR, SQLITE_MISMATCH, SQLITE_RANGE
        (Some(1 | 20 | 25), _) => Error::BadSql { reason: message(&error) },
        // Syntax and names; values such as a division by zero; features that are not there
        (_, Some(state)) if ["42", "22", "0A"].iter().any(|class| state.starts_with(class)) => {
            Error::BadSql { reason: message(&error) }
        }
        _ => failed("answering a question", error),
    }
}

/// Returns the statement without what follows it, if it is a single one that begins like a query.
///
/// # Errors
/// [`Error::NotReading`] if there is no statement, more than one, or one that begins with another word than SELECT,
/// WITH, VALUES or EXPLAIN.
pub(crate) fn question(sql: &str) -> Result<&str> {
    let (first, rest) = split_statement(sql);
    if !code(rest).is_empty() {
        return Err(Error::NotReading { reason: "is followed by another one".into() });
    }
    let word: String = code(first).chars().take_while(char::is_ascii_alphabetic).collect();
    if ["SELECT", "WITH", "VALUES", "EXPLAIN"].iter().any(|start| word.eq_ignore_ascii_case(start)) {
        return Ok(first);
    }
    let reason = if word.is_empty() { "is empty".into() } else { format!("starts with `{word}`") };
    Err(Error::NotReading { reason })
}

/// Splits at the first semicolon that is neither quoted nor in a comment.
fn split_statement(sql: &str) -> (&str, &str) {
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        if first == ';' {
            return (&sql[..sql.len() - rest.len()], &rest[1..]);
        }
        rest = &rest[token_len(rest, first)..];
    }
    (sql, "")
}

/// The length of what `text` begins with: a comment, something in quotes, or one character.
fn token_len(text: &str, first: char) -> usize {
    let through = |start: usize, end: &str| text[start..].find(end).map_or(text.len(), |at| start + at + end.len());
    match first {
        '-' if text.starts_with("--") => through(2, "\n"),
        '/' if text.starts_with("/*") => through(2, "*/"),
        // A doubled quote inside quotes reads as the end of one quotation and the start of the next.
        '\'' => through(1, "'"),
        '"' => through(1, "\""),
        '`' => through(1, "`"),
        '[' => through(1, "]"),
        _ => first.len_utf8(),
    }
}

/// The text from its first character that is neither space, nor comment, nor semicolon.
fn code(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches(|character: char| character.is_whitespace() || character == ';');
        if !(text.starts_with("--") || text.starts_with("/*")) {
            return text;
        }
        text = &text[token_len(text, text.chars().next().unwrap_or_default())..];
    }
}

async fn set_query_only(connection: &mut Connection, on: i64) -> Result<()> {
    let pragma = if on == 0 { "PRAGMA query_only = OFF" } else { "PRAGMA query_only = ON" };
    connection.script(pragma).await.map_err(bad_sql)
}

fn value(row: &Row, column: usize) -> Result<Value> {
    match row {
        Row::Sqlite(row) => sqlite_value(row, column),
        Row::Postgres(row) => postgres_value(row, column),
    }
    .map_err(bad_sql)
}

fn sqlite_value(row: &sqlx::sqlite::SqliteRow, column: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(column)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "INTEGER" => Value::Integer(row.try_get_unchecked(column)?),
        "REAL" => Value::Real(row.try_get_unchecked(column)?),
        // Bytes that were cast to text may be no valid text.
        "TEXT" => Value::Text(String::from_utf8_lossy(row.try_get_unchecked(column)?).into_owned()),
        _ => Value::Blob(row.try_get_unchecked(column)?),
    })
}

/// Every value comes as text, beside the name of its type. Truth is a number, as in `SQLite`.
fn postgres_value(row: &sqlx::postgres::PgRow, column: usize) -> Result<Value, sqlx::Error> {
    let raw = row.try_get_raw(column)?;
    if raw.is_null() {
        return Ok(Value::Null);
    }
    let text = raw.as_str().map_err(sqlx::Error::Decode)?;
    let number = || text.parse().ok().map(Value::Real);
    let value = match raw.type_info().name() {
        "BOOL" => Some(Value::Integer(i64::from(text == "t"))),
        "INT2" | "INT4" | "INT8" => text.parse().ok().map(Value::Integer),
        "FLOAT4" | "FLOAT8" => number(),
        // Sums of whole numbers are of this type too.
        "NUMERIC" => text.parse().ok().map(Value::Integer).or_else(number),
        "BYTEA" => text.strip_prefix("\\x").and_then(bytes).map(Value::Blob),
        _ => None,
    };
    Ok(value.unwrap_or_else(|| Value::Text(with_zeros(text.to_owned()))))
}

/// Bytes from their hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_pass_and_the_rest_does_not() {
        assert_eq!(question("SELECT 1;").unwrap(), "SELECT 1");
        let commented = "-- why; so\n /* ; */ with x AS (VALUES (1)) SELECT * FROM x";
        assert_eq!(question(&format!("{commented}; -- done")).unwrap(), commented);
        for quoted in
            ["SELECT ';'", "SELECT 'it''s;'", "SELECT \"a;b\" FROM [c;d]", "SELECT 1 /* ; */", "SELECT 1 -- ;"]
        {
            assert_eq!(question(quoted).unwrap(), quoted);
        }
        let refused = [
            ("", "is empty"),
            ("-- nothing", "is empty"),
            ("DELETE FROM samples", "starts with `DELETE`"),
            ("vacuum into 'x.db'", "starts with `vacuum`"),
            ("SELECT 1; DROP TABLE samples", "is followed by another one"),
            ("SELECT ';'; ATTACH 'x.db' AS x", "is followed by another one"),
        ];
        for (sql, reason) in refused {
            let error = question(sql).unwrap_err();
            assert!(error.to_string().contains(reason), "{sql}: {error}");
            assert!(error.is_input());
        }
    }
}
