//! One SQL text, two engines.
//!
//! Every statement of the store is written once, in what `SQLite` and `PostgreSQL` both understand: `$1` placeholders,
//! RETURNING, ON CONFLICT, and the types BIGINT, DOUBLE PRECISION, TEXT and bytes. This file carries such a statement to
//! whichever engine the store is on, by that engine's own driver: values are bound by that driver as one of four kinds, and
//! columns are read as the driver has them, so `SQLite` is as fast as if it were alone. What the engines do
//! not share is in [`Engine`].
//!
//! Two kinds of value would not survive: `SQLite` keeps NaN as NULL, so NaN becomes NULL on both; and `PostgreSQL` has
//! no zero characters in texts, which a byte-level tokenizer may well draw, so a text goes there with each of them
//! spelled as two others.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, PgConnection, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite, SqliteConnection};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

type Outcome<T> = Result<T, sqlx::Error>;

/// What a store is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// One file, one machine.
    Sqlite,
    /// A server, many machines.
    Postgres,
}

impl Engine {
    /// Begins a transaction. A writer on `SQLite` takes the write lock at once, so that it never fails half-way because
    /// another came first; a reader sees one state of the store, whatever is appended meanwhile.
    pub(crate) fn begin(self, access: Access) -> &'static str {
        match (self, access) {
            // By what the connection may do.
            (Self::Sqlite, Access::Read | Access::Scratch) | (Self::Postgres, Access::Write) => "BEGIN",
            (Self::Sqlite, Access::Write) => "BEGIN IMMEDIATE",
            (Self::Postgres, Access::Read) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            // A handle that only reads has views of its own all the same.
            (Self::Postgres, Access::Scratch) => "BEGIN READ WRITE",
        }
    }

    /// Behind a SELECT of rows `j` inside an UPDATE: takes the row, or leaves it to whoever is taking it.
    pub(crate) fn skip_locked(self) -> &'static str {
        match self {
            // There is one writer at a time.
            Self::Sqlite => "",
            Self::Postgres => "FOR UPDATE OF j SKIP LOCKED",
        }
    }

    /// This moment by the store's own clock, in microseconds since 1970: clocks of several machines differ.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS BIGINT)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
        }
    }

    /// The size of the store in bytes.
    pub(crate) fn size(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)"
            }
            Self::Postgres => {
                "SELECT CAST(COALESCE(SUM(pg_total_relation_size(c.oid)), 0) AS BIGINT) FROM pg_class c
                WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
            }
        }
    }

    /// Gives the room of removed rows back to the file system. A file shrinks when the write-ahead log is folded in.
    pub(crate) fn shrink(self) -> &'static str {
        match self {
            Self::Sqlite => "VACUUM; PRAGMA wal_checkpoint(TRUNCATE);",
            Self::Postgres => "VACUUM (FULL, ANALYZE) prompts, policies, groups, samples, rewards",
        }
    }

    /// Names every broken page, where the engine can tell.
    pub(crate) fn integrity(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => Some("SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'"),
            // The server checks pages as it reads them, where its administrator switched checksums on.
            Self::Postgres => None,
        }
    }
}

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Makes what only this connection sees.
    Scratch,
}

/// One connection to either engine.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    transaction: State,
}

#[derive(Debug)]
enum Link {
    Sqlite(SqliteConnection),
    Postgres(Box<PgConnection>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    None,
    Open,
    /// It was dropped, and is rolled back before anything else happens.
    Abandoned,
}

impl From<SqliteConnection> for Connection {
    fn from(link: SqliteConnection) -> Self {
        Self { link: Link::Sqlite(link), transaction: State::None }
    }
}

impl From<PgConnection> for Connection {
    fn from(link: PgConnection) -> Self {
        Self { link: Link::Postgres(Box::new(link)), transaction: State::None }
    }
}

impl Connection {
    pub(crate) fn engine(&self) -> Engine {
        match self.link {
            Link::Sqlite(_) => Engine::Sqlite,
            Link::Postgres(_) => Engine::Postgres,
        }
    }

    /// Begins a transaction, which is rolled back unless it is committed.
    pub(crate) async fn begin(&mut self, access: Access) -> Outcome<Transaction<'_>> {
        let begin = self.engine().begin(access);
        self.script(begin).await?;
        self.transaction = State::Open;
        Ok(Transaction(self))
    }

    /// Runs statements that take no values and whose answers do not matter.
    pub(crate) async fn script(&mut self, sql: impl Into<Cow<'static, str>>) -> Outcome<()> {
        self.settle().await?;
        self.send(text(sql.into())).await
    }

    /// Rolls an abandoned transaction back.
    pub(crate) async fn settle(&mut self) -> Outcome<()> {
        if self.transaction != State::Abandoned {
            return Ok(());
        }
        self.transaction = State::None;
        self.send("ROLLBACK".into_sql_str()).await
    }

    async fn send(&mut self, sql: SqlStr) -> Outcome<()> {
        let sql = sqlx::raw_sql(sql);
        match &mut self.link {
            Link::Sqlite(link) => sql.execute(link).await.map(drop),
            Link::Postgres(link) => sql.execute(&mut **link).await.map(drop),
        }
    }

    pub(crate) async fn close(self) -> Outcome<()> {
        use sqlx::Connection as _;
        match self.link {
            Link::Sqlite(link) => link.close().await,
            Link::Postgres(link) => link.close().await,
        }
    }

    /// The columns and rows of a statement that a person wrote, as the drivers have them.
    pub(crate) async fn ask(&mut self, sql: &str) -> Outcome<(Vec<String>, Vec<Row>)> {
        use sqlx::{Column as _, Executor as _, Statement as _};
        self.settle().await?;
        let asked = || AssertSqlSafe(sql.to_owned()).into_sql_str();
        // Prepared first, because an answer without rows has columns all the same, and only one statement can be
        // prepared.
        match &mut self.link {
            Link::Sqlite(link) => {
                let names = link.prepare(asked()).await?.columns().iter().map(|it| it.name().to_owned()).collect();
                let rows = sqlx::query(asked()).fetch_all(link).await?;
                Ok((names, rows.into_iter().map(Row::Sqlite).collect()))
            }
            Link::Postgres(link) => {
                let names = link.prepare(asked()).await?.columns().iter().map(|it| it.name().to_owned()).collect();
                // By the simple protocol every value comes as text, whatever its type.
                let rows = sqlx::raw_sql(asked()).fetch_all(&mut **link).await?;
                Ok((names, rows.into_iter().map(Row::Postgres).collect()))
            }
        }
    }
}

/// A statement as the drivers take it; constants are not copied.
fn text(sql: Cow<'static, str>) -> SqlStr {
    match sql {
        Cow::Borrowed(sql) => sql.into_sql_str(),
        Cow::Owned(sql) => AssertSqlSafe(sql).into_sql_str(),
    }
}

/// A transaction, which is a connection until it is committed.
#[derive(Debug)]
pub(crate) struct Transaction<'a>(&'a mut Connection);

impl Transaction<'_> {
    pub(crate) async fn commit(self) -> Outcome<()> {
        self.0.script("COMMIT").await?;
        self.0.transaction = State::None;
        Ok(())
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.0.transaction == State::Open {
            self.0.transaction = State::Abandoned;
        }
    }
}

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

/// The placeholders of some rows: `($1, $2), ($3, $4)`.
pub(crate) fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places: Vec<String> = (1..=columns).map(|column| format!("${}", row * columns + column)).collect();
        format!("({})", places.join(", "))
    };
    (0..rows).map(row).collect::<Vec<String>>().join(", ")
}

/// A row is a record.
pub(crate) struct Record;

/// A row is its only column.
pub(crate) struct Scalar;

/// What a row becomes in the way that `S` says.
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

/// How many rows a statement changed.
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

    pub(crate) async fn fetch_optional(self, connection: &mut Connection) -> Outcome<Option<T>> {
        connection.settle().await?;
        let row = match &mut connection.link {
            Link::Sqlite(link) => {
                let row = sqlx::query_with(text(self.sql), sqlite(self.values)?);
                row.fetch_optional(link).await?.map(Row::Sqlite)
            }
            Link::Postgres(link) => {
                let row = sqlx::query_with(text(self.sql), postgres(self.values)?);
                row.fetch_optional(&mut **link).await?.map(Row::Postgres)
            }
        };
        row.map(T::of).transpose()
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

/// Stands before the `0` of a zero character, or the `1` of itself. It is no character of any script.
const MARK: char = '\u{10fffe}';

/// A text in which no character is zero.
fn without_zeros(text: String) -> String {
    if !text.contains(['\0', MARK]) {
        return text;
    }
    text.replace(MARK, &format!("{MARK}1")).replace('\0', &format!("{MARK}0"))
}

/// The reverse of [`without_zeros`].
pub(crate) fn with_zeros(text: String) -> String {
    if !text.contains(MARK) {
        return text;
    }
    text.replace(&format!("{MARK}0"), "\0").replace(&format!("{MARK}1"), &MARK.to_string())
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

/// A row of either engine.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// The value of a column, by its name or place.
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

/// What a column may hold.
pub(crate) trait Cell: OfSqlite + OfPostgres {
    /// The value as it was before it went into `PostgreSQL`.
    #[must_use]
    fn restored(self) -> Self {
        self
    }
}

/// What `SQLite`'s driver can read.
pub(crate) trait OfSqlite: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> {}
impl<T: for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>> OfSqlite for T {}

/// What `PostgreSQL`'s driver can read.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_characters_survive() {
        for text in ["", "plain", "a\0b", "\0\0", "\u{10fffe}0", "\u{10fffe}", "\0\u{10fffe}1\u{10fffe}0\0"] {
            let there = without_zeros(text.to_owned());
            assert!(!there.contains('\0'));
            assert_eq!(with_zeros(there), text);
        }
    }
}
