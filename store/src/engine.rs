//! The database engines below the store: connections, statements and timestamps that read alike on each.

mod connection;
mod dialect;
pub(crate) mod postgres;
mod row;
pub(crate) mod sql;
pub(crate) mod sqlite;
pub(crate) mod time;
mod watch;
mod zeros;

pub(crate) use connection::{Access, Connection};
pub(crate) use dialect::Engine;
pub(crate) use row::{Cell, FromRow, Row};
pub(crate) use sql::Bind;
pub(crate) use watch::Watch;
pub(crate) use zeros::with_zeros;

use crate::Result;
use std::path::PathBuf;

/// The result of asking a driver.
pub(crate) type Outcome<T> = Result<T, sqlx::Error>;

/// Schema versions and the SQL that makes each, in order. A published one never changes: add another.
pub(crate) type Migrations = &'static [(i64, &'static str)];

/// The location of a store.
#[derive(Debug, Clone)]
pub(crate) enum DatabaseUrl {
    /// A path to a `SQLite` file.
    File(PathBuf),
    /// A database on a `PostgreSQL` server.
    Server(Box<postgres::Server>),
}

impl DatabaseUrl {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        if postgres::is_url(url) {
            return Ok(Self::Server(Box::new(postgres::Server::parse(url)?)));
        }
        sqlite::path_of(url).map(Self::File)
    }

    pub(crate) fn engine(&self) -> Engine {
        match self {
            Self::File(_) => Engine::Sqlite,
            Self::Server(_) => Engine::Postgres,
        }
    }

    /// Returns the path of the file, or the URL without the password.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Server(server) => server.place().to_owned(),
        }
    }
}

/// The purpose that a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reading and writing; a missing store is created.
    Create,
    /// Reading and writing; a missing store is an error.
    Write,
    /// Reading alone.
    Read,
}

/// An event that another connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// A job can be taken.
    Jobs,
    /// A job is done.
    Results,
}

impl News {
    /// The name of its NOTIFY channel.
    pub(crate) fn channel(self) -> &'static str {
        match self {
            Self::Jobs => "proxrl_jobs",
            Self::Results => "proxrl_results",
        }
    }
}
