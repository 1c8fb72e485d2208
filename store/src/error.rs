//! The errors of a store, divided into faults of the input and failures while running.

use crate::id::RunId;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;
use std::path::PathBuf;
use thiserror::Error;

/// A failure of the store.
#[derive(Debug, Error)]
pub enum Error {
    /// The URL names no store that this program can open.
    #[error("`{url}` is not the address of a store: {reason}")]
    Url {
        /// The URL as it was given.
        url: String,
        /// The fault of the URL, and a URL to write instead.
        reason: String,
    },
    /// The file to read from is not there.
    #[error(
        "there is no store at {place}; is this the right folder, or the right --store (for example sqlite://proxrl.db)?"
    )]
    Missing {
        /// The file that was looked for.
        place: String,
    },
    /// The folder that the store should be created in is not there.
    #[error("the folder of the store {place} does not exist; create it, or name another place")]
    MissingFolder {
        /// The file that could not be created.
        place: String,
    },
    /// The file is something other than a store.
    #[error("{place} is not a proxrl store: {reason}; name another file")]
    NotAStore {
        /// The file.
        place: String,
        /// The reason why it is no store.
        reason: String,
    },
    /// The store was written by a newer program.
    #[error(
        "the store {place} has schema version {found}, but this program knows versions up to {known}; use a newer proxrl (nothing was changed)"
    )]
    NewerSchema {
        /// The file.
        place: String,
        /// The version it has.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// The store was written by an older program, and reading alone may not bring it up to date.
    #[error(
        "the store {place} has schema version {found}, and reading needs {known}; open it once for writing (any `proxrl train` does) to bring it up to date"
    )]
    OlderSchema {
        /// The file.
        place: String,
        /// The version it has.
        found: i64,
        /// The version that reading needs.
        known: i64,
    },
    /// The operating system does not let us open the file.
    #[error("cannot open the store {place}: {reason}; may this user read and write the file and its folder?")]
    CannotOpen {
        /// The file.
        place: String,
        /// The engine's message.
        reason: String,
    },
    /// The server does not let us in.
    #[error(
        "cannot connect to the store {place}: {reason}; is this the right server, may this user use the database, and is its password in PGPASSWORD or ~/.pgpass?"
    )]
    CannotConnect {
        /// The database's URL without the password.
        place: String,
        /// The server's message.
        reason: String,
    },
    /// The server is not there, or not ready.
    #[error("cannot connect to the store {place}: {reason}; is the server running, and can this machine reach it?")]
    Unreachable {
        /// The database's URL without the password.
        place: String,
        /// The message of the server or of the operating system.
        reason: String,
    },
    /// The connection to the server broke.
    #[error("the connection to the store's server was lost while {doing}: {reason}")]
    Disconnected {
        /// The operation that failed, as a participle: `reading samples`.
        doing: &'static str,
        /// The message of the server or of the operating system.
        reason: String,
    },
    /// The file that is open is not at its path any more.
    #[error("{place} was removed or replaced while this program had it open; {rescue}")]
    Removed {
        /// The path of the file.
        place: String,
        /// The content of the lost file, and the copy that was made of it.
        rescue: String,
    },
    /// No run has this name or number.
    #[error("the store holds no run `{wanted}`; {known}")]
    NoSuchRun {
        /// The name or number that was asked for.
        wanted: String,
        /// The runs of the store, in words: at most ten names, newest first.
        known: String,
    },
    /// No sample has this number.
    #[error("the store holds no sample {0}; `proxrl replay query \"SELECT MAX(id) FROM samples\"` shows the last one")]
    NoSuchSample(i64),
    /// No scoring has this number.
    #[error("the store holds no scoring {0}; `proxrl replay scorings` lists them, and 0 is what training saw")]
    NoSuchScoring(i64),
    /// No part of a reward has this name.
    #[error("no part of a reward is called `{wanted}`; {known}")]
    NoSuchPart {
        /// The name that was asked for.
        wanted: String,
        /// The parts of rewards in the store, in words.
        known: String,
    },
    /// The samples were removed by their user.
    #[error(
        "the samples of step {step} of run {run} were pruned; start a new run, or name a store that still has them"
    )]
    Pruned {
        /// The run.
        run: RunId,
        /// The step.
        step: u64,
    },
    /// A request or a setting that cannot be met, for the reason in the text.
    #[error("{0}")]
    Setting(String),
    /// A step's samples may be appended only once.
    #[error(
        "the samples of step {step} of run {run} are in the store already; read them back instead of appending them again"
    )]
    StepExists {
        /// The run.
        run: RunId,
        /// The step.
        step: u64,
    },
    /// Workers were asked for something else.
    #[error(
        "workers were asked for other samples of step {step} of run {run} before: resume the run with the config that it had, or start a new one"
    )]
    AskedOtherwise {
        /// The run.
        run: RunId,
        /// The step.
        step: u64,
    },
    /// Copying a store gave another one.
    #[error("the copy of `{table}` is not what it was copied from: {what}; nothing was kept of it")]
    Miscopied {
        /// The table.
        table: &'static str,
        /// The difference, in words.
        what: String,
    },
    /// The store to copy into holds something already.
    #[error("the store {place} holds runs already, and a copy needs an empty one; name another database")]
    NotEmpty {
        /// The store.
        place: String,
    },
    /// One policy version has one content.
    #[error(
        "policy version {version} of run {run} is in the store with the hash {stored}, but the samples were drawn by {given}; resume from the run's own checkpoint, or start a new run"
    )]
    PolicyChanged {
        /// The run.
        run: RunId,
        /// The policy's version.
        version: u64,
        /// The hash it has in the store.
        stored: String,
        /// The hash that was to be appended.
        given: String,
    },
    /// A sample cannot be stored as it is.
    #[error("sample {sample} of group {group} cannot be stored: {reason}")]
    Inconsistent {
        /// The group's index in the step.
        group: usize,
        /// The sample's index in the group.
        sample: usize,
        /// The inconsistency, in words.
        reason: String,
    },
    /// The statement would do something other than read.
    #[error("only reading is allowed here, and the statement {reason}; start it with SELECT or WITH")]
    NotReading {
        /// The reason as a predicate of the statement, such as `is empty`.
        reason: String,
    },
    /// The statement is not valid SQL for this store.
    #[error("the SQL is not valid: {reason}; docs/replay.md lists the tables and views")]
    BadSql {
        /// The engine's message.
        reason: String,
    },
    /// The file to export to has a name that says no known format.
    #[error("cannot tell the format of {}; name it .jsonl, .csv or .parquet", path.display())]
    UnknownFormat {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// Stored content differs from what was written, or is missing.
    #[error("the store is damaged: {what}; restore it from a copy; `proxrl replay verify` names what is wrong")]
    Damaged {
        /// The damage, in words.
        what: String,
    },
    /// Another process held the store for too long.
    #[error("the store stayed locked by another process for more than {seconds} s; wait until it is done, or stop it")]
    Locked {
        /// The time waited, in seconds.
        seconds: u64,
    },
    /// The engine failed in a way that has no variant of its own.
    #[error("the store failed while {doing}: {source}")]
    Engine {
        /// The operation that failed, as a participle: `reading samples`.
        doing: &'static str,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// Writing an exported file failed.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's message.
        reason: String,
    },
    /// The thread of the engine could not be started.
    #[error("cannot start the store: {0}")]
    Start(#[source] std::io::Error),
}

/// The result of asking the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns true if the user's input (a URL, a file, SQL, a name) is the cause, rather than a failure while running.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::StepExists { .. }
                | Self::PolicyChanged { .. }
                | Self::Inconsistent { .. }
                | Self::Locked { .. }
                | Self::Unreachable { .. }
                | Self::Disconnected { .. }
                | Self::Removed { .. }
                | Self::Miscopied { .. }
                | Self::Engine { .. }
                | Self::Start(_)
        )
    }
}

/// Time that a writer waits for another one before it gives up, in seconds.
pub(crate) const PATIENCE_S: u64 = 30;

/// Adds the operation that failed to an error of the engine.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| failed(doing, source))
    }
}

/// The store's error for one of the engine.
pub(crate) fn failed(doing: &'static str, source: sqlx::Error) -> Error {
    match (sqlite_code(&source), sqlstate(&source).as_deref()) {
        // SQLITE_BUSY; lock_not_available
        (Some(5), _) | (_, Some("55P03")) => Error::Locked { seconds: PATIENCE_S },
        // SQLITE_CORRUPT; data_corrupted, index_corrupted
        (Some(11), _) | (_, Some("XX001" | "XX002")) => Error::Damaged { what: source.to_string() },
        _ if is_lost(&source) => Error::Disconnected { doing, reason: message(&source) },
        _ => Error::Engine { doing, source },
    }
}

/// Returns the engine's message without sqlx's words around it.
pub(crate) fn message(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |database| database.message().to_owned())
}

/// Returns true if the connection to a server is gone: broken, or ended by the server.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        // Class 08: connection exceptions. Class 57P: shutdowns, a start, an idle connection that the server ended.
        error => sqlstate(error).is_some_and(|state| state.starts_with("08") || state.starts_with("57P")),
    }
}

/// Returns true if a server is not there, or has no room for another connection, whatever is asked of it.
pub(crate) fn is_unreachable(error: &sqlx::Error) -> bool {
    // Class 53: insufficient resources. Class 58: errors of the server's system.
    is_lost(error) || sqlstate(error).is_some_and(|state| state.starts_with("53") || state.starts_with("58"))
}

/// Returns true if a server takes no connection yet.
pub(crate) fn is_starting(error: &sqlx::Error) -> bool {
    sqlstate(error).as_deref() == Some("57P03")
}

/// `SQLite`'s primary result code: the low byte of the extended one.
pub(crate) fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let error = error.as_database_error()?.try_downcast_ref::<SqliteError>()?;
    let code: i32 = sqlx::error::DatabaseError::code(error)?.parse().ok()?;
    Some(code & 0xff)
}

/// `PostgreSQL`'s five characters.
pub(crate) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code().to_owned())
}
