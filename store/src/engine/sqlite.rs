//! A store in one `SQLite` file: which files may be one, and how it is opened.

use crate::engine::{Connection, Migrations, Mode};
use crate::error::{PATIENCE_S, message, sqlite_code};
use crate::{Error, Result};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) const MIGRATIONS: Migrations = &[
    (1, include_str!("../../migrations/sqlite/0001_spine.sql")),
    (2, include_str!("../../migrations/sqlite/0002_keeping.sql")),
    (3, include_str!("../../migrations/sqlite/0003_jobs.sql")),
    (4, include_str!("../../migrations/sqlite/0004_comparisons.sql")),
];

/// Counts the tables, and those among them that hold the schema's version.
pub(crate) const TABLES: &str =
    "SELECT COUNT(*), COUNT(CASE WHEN name = 'schema_version' THEN 1 END) FROM sqlite_schema";

/// The smallest page of a `SQLite` file, in bytes.
const SMALLEST: u64 = 512;

/// The file that a URL names.
///
/// # Errors
/// [`Error::Url`] if the URL has another scheme, names no file, or asks for a store in memory.
pub(crate) fn path_of(url: &str) -> Result<PathBuf> {
    let refuse = |reason: &str| Err(Error::Url { url: url.to_owned(), reason: reason.to_owned() });
    let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) else {
        return refuse(
            "it must start with sqlite:// or postgres://, for example sqlite://proxrl.db or postgres://host/database",
        );
    };
    if path.contains(":memory:") {
        return refuse("a store in memory would lose its samples; name a file, for example sqlite://proxrl.db");
    }
    if path.is_empty() || path.ends_with('/') {
        return refuse("it names no file; write for example sqlite://proxrl.db");
    }
    Ok(PathBuf::from(path))
}

/// Refuses a path where no store can be, before `SQLite` can touch it.
///
/// # Errors
/// [`Error::Missing`] if `mode` creates nothing and there is no file; [`Error::MissingFolder`] if its folder is not
/// there; [`Error::NotAStore`] if it is a folder, or too small for a store.
pub(crate) fn check(path: &Path, mode: Mode) -> Result<()> {
    let place = || path.display().to_string();
    if mode != Mode::Create && !path.exists() {
        return Err(Error::Missing { place: place() });
    }
    if let Some(folder) = path.parent()
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        return Err(Error::MissingFolder { place: place() });
    }
    let not_a_store = |reason: &str| Err(Error::NotAStore { place: place(), reason: reason.to_owned() });
    if path.is_dir() {
        return not_a_store("it is a folder");
    }
    // An empty file is an empty store, and to `SQLite` any file is empty that is smaller than a page. The head of a
    // larger one is left to it to read: closing a file drops every lock that this process has on it, those of another
    // handle's connection too.
    match path.metadata() {
        Ok(file) if (1..SMALLEST).contains(&file.len()) => not_a_store("it is not an SQLite file"),
        _ => Ok(()),
    }
}

pub(crate) async fn connect(path: &Path, mode: Mode) -> Result<Connection> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(PATIENCE_S))
        // Statements are not logged: at debug level they would drown a run's own log.
        .disable_statement_logging();
    let options = match mode {
        Mode::Read => options.read_only(true).pragma("query_only", "ON"),
        Mode::Create | Mode::Write => options.create_if_missing(true),
    };
    match options.connect().await {
        Ok(connection) => Ok(connection.into()),
        Err(error) => Err(cannot_open(&path.display().to_string(), error)),
    }
}

pub(crate) fn cannot_open(place: &str, error: sqlx::Error) -> Error {
    let place = place.to_owned();
    match sqlite_code(&error) {
        // SQLITE_NOTADB
        Some(26) => Error::NotAStore { place, reason: "it is not an SQLite file".into() },
        // SQLITE_PERM, SQLITE_READONLY, SQLITE_CANTOPEN
        Some(3 | 8 | 14) => Error::CannotOpen { place, reason: message(&error) },
        _ => Error::Engine { doing: "opening the file", source: error },
    }
}

/// Makes a new file one whose free pages can be given back piece by piece. Only an empty file can be told so.
///
/// # Errors
/// If the file cannot be written.
pub(crate) async fn set_shrinkable(connection: &mut Connection, place: &str) -> Result<()> {
    connection.script("PRAGMA auto_vacuum = INCREMENTAL").await.map_err(|error| cannot_open(place, error))
}

/// A write-ahead log, so that readers never wait; and a sync at every commit, so that no power cut takes a sample.
pub(crate) async fn set_durable(connection: &mut Connection, place: &str) -> Result<()> {
    const DURABLE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
    connection.script(DURABLE).await.map_err(|error| cannot_open(place, error))
}
