//! Asking in SQL, with reading enforced three times over.
//!
//! The statement must be a single one that begins like a question, because `VACUUM INTO` and `ATTACH` would write
//! files without changing the store. The engine runs it with `query_only`, which catches the likes of
//! `WITH … DELETE`. And [`Store::open_read_only`] opens the file itself for reading alone.

use crate::error::primary_code;
use crate::sqlite::message;
use crate::table::{Table, Value};
use crate::{Error, Result, Store};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Column, Executor, Row, SqlSafeStr, SqliteConnection, Statement, TypeInfo, ValueRef};

impl Store {
    /// The answer to one SQL question. Anything that would write is refused.
    pub fn query(&self, sql: &str) -> Result<Table> {
        let sql = question(sql)?;
        self.with(async |connection| {
            let kept: i64 =
                sqlx::query_scalar("PRAGMA query_only").fetch_one(&mut *connection).await.map_err(bad_sql)?;
            set_query_only(connection, 1).await?;
            let answer = ask(connection, sql).await;
            set_query_only(connection, kept).await?;
            answer
        })
    }
}

/// Runs a statement that is known to be a question.
pub(crate) async fn ask(connection: &mut SqliteConnection, sql: &str) -> Result<Table> {
    let text = || AssertSqlSafe(sql.to_owned()).into_sql_str();
    // Prepared first, because an answer without rows has columns all the same.
    let statement = connection.prepare(text()).await.map_err(bad_sql)?;
    let mut table = Table::new(statement.columns().iter().map(Column::name));
    drop(statement);
    for row in sqlx::query(text()).fetch_all(connection).await.map_err(bad_sql)? {
        table.push((0..table.columns.len()).map(|column| value(&row, column)).collect::<Result<_>>()?);
    }
    Ok(table)
}

/// What the engine says of a statement that a person wrote.
pub(crate) fn bad_sql(error: sqlx::Error) -> Error {
    match primary_code(&error) {
        // SQLITE_READONLY
        Some(8) => Error::NotReading { reason: "would change the store".into() },
        // SQLITE_ERROR, SQLITE_MISMATCH, SQLITE_RANGE
        Some(1 | 20 | 25) => Error::BadSql { reason: message(&error) },
        _ => Error::Engine { doing: "answering a question", source: error },
    }
}

/// The statement, if it is a single one that begins like a question.
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

/// What comes before and after the first semicolon that is neither quoted nor in a comment.
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

async fn set_query_only(connection: &mut SqliteConnection, on: i64) -> Result<()> {
    let pragma = if on == 0 { "PRAGMA query_only = OFF" } else { "PRAGMA query_only = ON" };
    sqlx::raw_sql(pragma).execute(connection).await.map_err(bad_sql)?;
    Ok(())
}

fn value(row: &SqliteRow, column: usize) -> Result<Value> {
    let decode = || {
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
    };
    decode().map_err(bad_sql)
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
