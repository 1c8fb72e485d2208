//! One SQL text, two engines.
//!
//! Every statement of the store is written once, in what `SQLite` and `PostgreSQL` both understand: `$1` placeholders,
//! RETURNING, ON CONFLICT, and the types BIGINT, DOUBLE PRECISION, TEXT and bytes. This file carries such a statement
//! to the engine that the store is on, by that engine's own driver: values are bound by that driver as one of four
//! kinds, and columns are read as the driver has them, so `SQLite` is as fast as if it were alone. What the engines do
//! not share is in `dialect.rs`.
//!
//! Two kinds of value would not survive: `SQLite` keeps NaN as NULL, so NaN becomes NULL on both; and `PostgreSQL` has
//! no zero characters in texts, so a text goes there with each of them spelled as two others (`zeros.rs`).

use super::Outcome;
use super::connection::{Connection, Link};
use super::row::{Cell, FromRow, Row};
use super::zeros::without_zeros;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqlSafeStr, SqlStr};
use std::borrow::Cow;
use std::marker::PhantomData;

/// A statement with its values, each of whose rows becomes a `T`, in the way that `S` says.
pub(crate) struct Query<T, S> {
    sql: Cow<'static, str>,
    values: Vec<Bind>,
    row: PhantomData<fn() -> (T, S)>,
}

/// A statement whose rows are read column by column.
pub(crate) fn query(sql: impl Into<Cow<'static, str>>) -> Query<Row, Record> {
    query_as(sql)
}

/// A statement whose rows become records.
pub(crate) fn query_as<T: FromRow>(sql: impl Into<Cow<'static, str>>) -> Query<T, Record> {
    Query { sql: sql.into(), values: Vec::new(), row: PhantomData }
}

/// A statement whose rows have one column.
pub(crate) fn query_scalar<T: Cell>(sql: impl Into<Cow<'static, str>>) -> Query<T, Scalar> {
    Query { sql: sql.into(), values: Vec::new(), row: PhantomData }
}

/// Returns the placeholders of some rows: `($1, $2), ($3, $4)`.
pub(crate) fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (1..=columns).map(|column| format!("${}", row * columns + column)).collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<String>>().join(", ")
}

/// Marks a query whose rows become records, column by column.
pub(crate) struct Record;

/// Marks a query whose rows become the value of their only column.
pub(crate) struct Scalar;

/// A value made of a row in the way that `S` says: of all its columns ([`Record`]) or of its only one ([`Scalar`]).
pub(crate) trait Shape<S>: Sized {
    fn of(row: Row) -> Outcome<Self>;
}

impl<T: FromRow> Shape<Record> for T {
    fn of(row: Row) -> Outcome<Self> {
        Self::from_row(row)
    }
}

impl<T: Cell> Shape<Scalar> for T {
    fn of(row: Row) -> Outcome<Self> {
        row.try_get(0)
    }
}

/// Number of rows that a statement changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed(u64);

impl Changed {
    pub(crate) fn rows_affected(self) -> u64 {
        self.0
    }
}

impl<T: Shape<S>, S> Query<T, S> {
    /// Adds the value of the next placeholder.
    pub(crate) fn bind(mut self, value: impl Into<Bind>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(crate) async fn fetch_all(self, connection: &mut Connection) -> Outcome<Vec<T>> {
        connection.settle().await?;
        match &mut connection.link {
            Link::Sqlite(link) => {
                let rows = sqlx::query_with(text(self.sql), sqlite(self.values)?);
                rows.fetch_all(link).await?.into_iter().map(|row| T::of(Row::Sqlite(row))).collect()
            }
            Link::Postgres(link) => {
                let rows = sqlx::query_with(text(self.sql), postgres(self.values)?);
                rows.fetch_all(&mut **link).await?.into_iter().map(|row| T::of(Row::Postgres(row))).collect()
            }
        }
    }

    /// Returns the first row, after reading all of them: a statement outside of a transaction that writes and returns a
    /// row is committed behind its last one, and only who reads to the end hears that the commit failed.
    pub(crate) async fn fetch_optional(self, connection: &mut Connection) -> Outcome<Option<T>> {
        Ok(self.fetch_all(connection).await?.into_iter().next())
    }

    pub(crate) async fn fetch_one(self, connection: &mut Connection) -> Outcome<T> {
        self.fetch_optional(connection).await?.ok_or(sqlx::Error::RowNotFound)
    }

    pub(crate) async fn execute(self, connection: &mut Connection) -> Outcome<Changed> {
        connection.settle().await?;
        match &mut connection.link {
            Link::Sqlite(link) => {
                let query = sqlx::query_with(text(self.sql), sqlite(self.values)?);
                Ok(Changed(query.execute(link).await?.rows_affected()))
            }
            Link::Postgres(link) => {
                let query = sqlx::query_with(text(self.sql), postgres(self.values)?);
                Ok(Changed(query.execute(&mut **link).await?.rows_affected()))
            }
        }
    }
}

/// The value of a placeholder. NULL has a type too, because `PostgreSQL` asks for it.
#[derive(Debug, Clone)]
pub(crate) enum Bind {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
}

fn sqlite(values: Vec<Bind>) -> Outcome<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(values.len(), 0);
    for value in values {
        let added = match value {
            Bind::Integer(number) => Arguments::add(&mut arguments, number),
            Bind::Real(number) => Arguments::add(&mut arguments, number),
            Bind::Text(text) => Arguments::add(&mut arguments, text),
            Bind::Blob(bytes) => Arguments::add(&mut arguments, bytes),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn postgres(values: Vec<Bind>) -> Outcome<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        let added = match value {
            Bind::Integer(number) => Arguments::add(&mut arguments, number),
            Bind::Real(number) => Arguments::add(&mut arguments, number.filter(|number| !number.is_nan())),
            Bind::Text(text) => Arguments::add(&mut arguments, text.map(without_zeros)),
            Bind::Blob(bytes) => Arguments::add(&mut arguments, bytes),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// `From` for values as they are, by reference, and as an `Option` of either.
macro_rules! bind {
    ($($variant:ident: $own:ty = $($from:ty),+;)+) => {$($(
        impl From<$from> for Bind {
            fn from(value: $from) -> Self {
                Self::$variant(Some(<$own>::from(value.to_owned())))
            }
        }

        impl From<Option<$from>> for Bind {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map(|value| <$own>::from(value.to_owned())))
            }
        }
    )+)+};
}

bind! {
    Integer: i64 = i64, &i64;
    Real: f64 = f64;
    Text: String = &str, &String;
    Blob: Vec<u8> = &[u8];
}

impl From<String> for Bind {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Cow<'_, str>> for Bind {
    fn from(text: Cow<'_, str>) -> Self {
        Self::Text(Some(text.into_owned()))
    }
}

impl From<&Option<String>> for Bind {
    fn from(text: &Option<String>) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Vec<u8>> for Bind {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(Some(bytes))
    }
}

impl From<Option<Vec<u8>>> for Bind {
    fn from(bytes: Option<Vec<u8>>) -> Self {
        Self::Blob(bytes)
    }
}

/// A statement as the drivers take it; constants are not copied.
pub(super) fn text(sql: Cow<'static, str>) -> SqlStr {
    match sql {
        Cow::Borrowed(sql) => sql.into_sql_str(),
        Cow::Owned(sql) => AssertSqlSafe(sql).into_sql_str(),
    }
}
