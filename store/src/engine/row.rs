//! Rows as either driver gives them, and the records that they become.

use super::Outcome;
use super::zeros::with_zeros;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Postgres, Row as _, Sqlite};

/// A row of either engine.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// Returns the value of a column, by its name or index.
    pub(crate) fn try_get<T: Cell>(
        &self,
        column: impl sqlx::ColumnIndex<SqliteRow> + sqlx::ColumnIndex<PgRow>,
    ) -> Outcome<T> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column).map(T::restored),
        }
    }
}

/// A type of value that a column of either engine may hold.
pub(crate) trait Cell: OfSqlite + OfPostgres {
    /// The value as it was before it went into `PostgreSQL`.
    #[must_use]
    fn restored(self) -> Self {
        self
    }
}

/// A type that `SQLite`'s driver can decode.
pub(crate) trait OfSqlite: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> {}
impl<T: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>> OfSqlite for T {}

/// A type that `PostgreSQL`'s driver can decode.
pub(crate) trait OfPostgres: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> {}
impl<T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>> OfPostgres for T {}

impl Cell for i64 {}
impl Cell for f64 {}
impl Cell for bool {}
impl Cell for Vec<u8> {}

impl Cell for String {
    fn restored(self) -> Self {
        with_zeros(self)
    }
}

impl<T: Cell> Cell for Option<T>
where
    Self: OfSqlite + OfPostgres,
{
    fn restored(self) -> Self {
        self.map(T::restored)
    }
}

/// A record that a row becomes.
pub(crate) trait FromRow: Sized {
    fn from_row(row: Row) -> Outcome<Self>;
}

impl FromRow for Row {
    fn from_row(row: Row) -> Outcome<Self> {
        Ok(row)
    }
}

macro_rules! tuples {
    ($($($name:ident $place:tt),+;)+) => {$(
        impl<$($name: Cell),+> FromRow for ($($name,)+) {
            fn from_row(row: Row) -> Outcome<Self> {
                Ok(($(row.try_get::<$name>($place)?,)+))
            }
        }
    )+};
}

tuples! {
    A 0, B 1;
    A 0, B 1, C 2;
    A 0, B 1, C 2, D 3;
    A 0, B 1, C 2, D 3, E 4;
    A 0, B 1, C 2, D 3, E 4, F 5;
    A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
}
