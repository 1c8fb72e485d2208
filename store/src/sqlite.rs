//! Opening a store, and the one connection behind it.
//!
//! The trainer is synchronous and sqlx is not, so a [`Store`] owns a small runtime and blocks on it. One connection is
//! enough: SQLite has one writer anyway, and readers in other processes have their own.

use crate::error::{Doing, PATIENCE_S, primary_code};
use crate::time::now;
use crate::{Error, Result, Scoring};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Takes the write lock at once, so that a transaction never fails half-way because another writer came first.
pub(crate) const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";
/// Reads one state of the store, whatever is appended meanwhile.
pub(crate) const BEGIN_READ: &str = "BEGIN";

/// Schema version `n` is made by the first `n` of these. A published one never changes: add another.
const MIGRATIONS: [&str; 2] =
    [include_str!("../migrations/sqlite/0001_spine.sql"), include_str!("../migrations/sqlite/0002_keeping.sql")];

const CREATE_SCHEMA_VERSION: &str = "CREATE TABLE IF NOT EXISTS schema_version (
    version BIGINT PRIMARY KEY, program_version TEXT NOT NULL, applied_at BIGINT NOT NULL)";
const ADD_SCHEMA_VERSION: &str =
    "INSERT INTO schema_version (version, program_version, applied_at) VALUES ($1, $2, $3)";
const SCHEMA_VERSION: &str = "SELECT COALESCE(MAX(version), 0) FROM schema_version";
const TABLES: &str = "SELECT COUNT(*), COUNT(CASE WHEN name = 'schema_version' THEN 1 END) FROM sqlite_schema";

/// An open store: every sample ever paid for, and everything needed to ask about it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    runtime: Runtime,
    /// Present until the store is dropped.
    connection: Mutex<Option<SqliteConnection>>,
    /// Which judgement this handle's questions mean.
    pub(crate) scoring: Scoring,
}

impl Store {
    /// Opens a store for writing, after creating it or bringing its schema up to date where needed. `url` is
    /// `sqlite://` and a path, relative (`sqlite://proxrl.db`) or absolute (`sqlite:///data/proxrl.db`).
    pub fn open(url: &str) -> Result<Self> {
        let path = path_of(url)?;
        if let Some(folder) = path.parent()
            && !folder.as_os_str().is_empty()
            && !folder.is_dir()
        {
            return Err(Error::MissingFolder { path });
        }
        refuse_other_files(&path)?;
        // The schema is looked at before anything that would change the file, its journal mode included.
        let options = options(&path).create_if_missing(true);
        let store = Self::connect(path, &options)?;
        let found = store.with(async |connection| schema_version(connection, &store.path).await)?;
        store.refuse_newer(found)?;
        store.with(async |connection| set_durable(connection, &store.path).await)?;
        if found < latest() {
            store.with(async |connection| migrate(connection, &store.path).await)?;
        }
        Ok(store)
    }

    /// Opens a store for writing, but makes none where there is none.
    pub fn open_existing(url: &str) -> Result<Self> {
        let path = path_of(url)?;
        if path.exists() { Self::open(url) } else { Err(Error::Missing { path }) }
    }

    /// Opens a store for reading alone. Creates no file, and refuses every write.
    pub fn open_read_only(url: &str) -> Result<Self> {
        let path = path_of(url)?;
        if !path.exists() {
            return Err(Error::Missing { path });
        }
        refuse_other_files(&path)?;
        let options = options(&path).read_only(true).pragma("query_only", "ON");
        let store = Self::connect(path, &options)?;
        let found = store.with(async |connection| schema_version(connection, &store.path).await)?;
        store.refuse_newer(found)?;
        if found < latest() {
            return Err(Error::OlderSchema { path: store.path.clone(), found, known: latest() });
        }
        Ok(store)
    }

    /// The file of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something on the connection and waits for it. Calls take turns.
    pub(crate) fn with<T>(&self, work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T>) -> Result<T> {
        // A panic elsewhere leaves no half-made state: an open transaction is rolled back when it is dropped.
        let mut guard = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = guard.as_mut().expect("the connection is taken by drop alone");
        self.runtime.block_on(work(connection))
    }

    fn connect(path: PathBuf, options: &SqliteConnectOptions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Start)?;
        let connection = match runtime.block_on(options.connect()) {
            Ok(connection) => connection,
            Err(error) => return Err(cannot_open(path, error)),
        };
        tracing::debug!(path = %path.display(), "opened the store");
        Ok(Self { path, runtime, connection: Mutex::new(Some(connection)), scoring: Scoring::default() })
    }

    fn refuse_newer(&self, found: i64) -> Result<()> {
        if found > latest() {
            return Err(Error::NewerSchema { path: self.path.clone(), found, known: latest() });
        }
        Ok(())
    }
}

impl Drop for Store {
    /// Closes the file before the store is gone, so that whoever opens it next finds no lock.
    fn drop(&mut self) {
        let connection = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection
            && let Err(error) = self.runtime.block_on(connection.close())
        {
            tracing::warn!(path = %self.path.display(), %error, "could not close the store cleanly");
        }
    }
}

/// The file that a URL names.
fn path_of(url: &str) -> Result<PathBuf> {
    let refuse = |reason: &str| Err(Error::Url { url: url.to_owned(), reason: reason.to_owned() });
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return refuse("PostgreSQL is not supported yet; use a file, for example sqlite://proxrl.db");
    }
    let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) else {
        return refuse("it must start with sqlite://, for example sqlite://proxrl.db");
    };
    if path.contains(":memory:") {
        return refuse("a store in memory would lose its samples; name a file, for example sqlite://proxrl.db");
    }
    if path.is_empty() || path.ends_with('/') {
        return refuse("it names no file; write for example sqlite://proxrl.db");
    }
    Ok(PathBuf::from(path))
}

/// Refuses a file that SQLite did not write, before SQLite can touch it. An empty file is an empty store.
fn refuse_other_files(path: &Path) -> Result<()> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let not_a_store = |reason: &str| Error::NotAStore { path: path.to_owned(), reason: reason.to_owned() };
    let cannot_open = |error: std::io::Error| Error::CannotOpen { path: path.to_owned(), reason: error.to_string() };
    if path.is_dir() {
        return Err(not_a_store("it is a folder"));
    }
    let mut head = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(16).read_to_end(&mut head).map_err(cannot_open)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot_open(error)),
    };
    if head.is_empty() || head == MAGIC { Ok(()) } else { Err(not_a_store("it is not an SQLite file")) }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(PATIENCE_S))
        // Statements are logged by nobody: at debug level they would drown a run's own log.
        .disable_statement_logging()
}

fn cannot_open(path: PathBuf, error: sqlx::Error) -> Error {
    match primary_code(&error) {
        // SQLITE_NOTADB
        Some(26) => Error::NotAStore { path, reason: "it is not an SQLite file".into() },
        // SQLITE_PERM, SQLITE_READONLY, SQLITE_CANTOPEN
        Some(3 | 8 | 14) => Error::CannotOpen { path, reason: message(&error) },
        _ => Error::Engine { doing: "opening the file", source: error },
    }
}

/// What the engine said, without sqlx's words around it.
pub(crate) fn message(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |database| database.message().to_owned())
}

fn latest() -> i64 {
    MIGRATIONS.len() as i64
}

/// The version of the schema that the file has; 0 if it holds nothing yet.
async fn schema_version(connection: &mut SqliteConnection, path: &Path) -> Result<i64> {
    let (tables, ours): (i64, i64) = match sqlx::query_as(TABLES).fetch_one(&mut *connection).await {
        Ok(counts) => counts,
        Err(error) => return Err(cannot_open(path.to_owned(), error)),
    };
    if tables > 0 && ours == 0 {
        let reason = "it is a database of another program".to_owned();
        return Err(Error::NotAStore { path: path.to_owned(), reason });
    }
    if tables == 0 {
        return Ok(0);
    }
    sqlx::query_scalar(SCHEMA_VERSION).fetch_one(connection).await.doing("reading the schema's version")
}

/// A write-ahead log, so that readers never wait; and a sync at every commit, so that no power cut takes a sample.
async fn set_durable(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    const DURABLE: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL";
    match sqlx::raw_sql(DURABLE).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) => Err(cannot_open(path.to_owned(), error)),
    }
}

/// Applies every migration that the file lacks, or none.
async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<()> {
    const DOING: &str = "bringing the schema up to date";
    let mut transaction = connection.begin_with(BEGIN_WRITE).await.doing(DOING)?;
    // Another process may have come first while we waited for the lock.
    let found = schema_version(&mut transaction, path).await?;
    sqlx::query(CREATE_SCHEMA_VERSION).execute(&mut *transaction).await.doing(DOING)?;
    for (version, migration) in (1i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        sqlx::raw_sql(migration).execute(&mut *transaction).await.doing(DOING)?;
        sqlx::query(ADD_SCHEMA_VERSION)
            .bind(version)
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(now())
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        tracing::info!(path = %path.display(), version, "brought the store's schema up to date");
    }
    transaction.commit().await.doing(DOING)
}
