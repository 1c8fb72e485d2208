//! One connection to either engine, and its transactions.

use super::Outcome;
use super::dialect::Engine;
use super::row::Row;
use super::sql::text;
use sqlx::{AssertSqlSafe, PgConnection, SqlSafeStr, SqlStr, SqliteConnection};
use std::borrow::Cow;
use std::ops::{Deref, DerefMut};

/// The rights of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    /// Creates objects that only this connection sees: temporary views.
    Scratch,
}

/// One connection to either engine.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) link: Link,
    transaction: State,
    repeated: bool,
}

#[derive(Debug)]
pub(super) enum Link {
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
        Self { link: Link::Sqlite(link), transaction: State::None, repeated: false }
    }
}

impl From<PgConnection> for Connection {
    fn from(link: PgConnection) -> Self {
        Self { link: Link::Postgres(Box::new(link)), transaction: State::None, repeated: false }
    }
}

impl Connection {
    pub(crate) fn engine(&self) -> Engine {
        match self.link {
            Link::Sqlite(_) => Engine::Sqlite,
            Link::Postgres(_) => Engine::Postgres,
        }
    }

    /// Returns true if what is done now was tried before on a connection that was lost, and may have been committed.
    pub(crate) fn is_repeated(&self) -> bool {
        self.repeated
    }

    pub(crate) fn set_repeated(&mut self, repeated: bool) {
        self.repeated = repeated;
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

    /// Returns the columns and rows of a statement that a person wrote, as the drivers have them.
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
