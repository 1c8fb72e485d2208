//! What can go wrong with a store, and whose doing it is.

use crate::RunId;
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
        /// What is wrong with it, and what to write instead.
        reason: String,
    },
    /// The file to read from is not there.
    #[error("there is no store at {}; is this the right folder, or the right --store (for example sqlite://proxrl.db)?", path.display())]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The folder that the store should be created in is not there.
    #[error("the folder of the store {} does not exist; create it, or name another place", path.display())]
    MissingFolder {
        /// The file that could not be created.
        path: PathBuf,
    },
    /// The file is something other than a store.
    #[error("{} is not a proxrl store: {reason}; name another file", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The store was written by a newer program.
    #[error("the store {} has schema version {found}, but this program knows versions up to {known}; use a newer proxrl (nothing was changed)", path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// The store was written by an older program, and reading alone may not bring it up to date.
    #[error("the store {} has schema version {found}, and reading needs {known}; open it once for writing (any `proxrl train` does) to bring it up to date", path.display())]
    OlderSchema {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: i64,
        /// The version that reading needs.
        known: i64,
    },
    /// The operating system does not let us open the file.
    #[error("cannot open the store {}: {reason}; may this user read and write the file and its folder?", path.display())]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// No run has this name or number.
    #[error("the store holds no run `{wanted}`; {known}")]
    NoSuchRun {
        /// What was asked for.
        wanted: String,
        /// Which runs there are.
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
        /// What was asked for.
        wanted: String,
        /// Which parts there are.
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
    /// A setting makes no sense.
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
        /// The group's place in the step.
        group: usize,
        /// The sample's place in the group.
        sample: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The statement would do something other than read.
    #[error("only reading is allowed here, and the statement {reason}; start it with SELECT or WITH")]
    NotReading {
        /// What the statement would do.
        reason: String,
    },
    /// The statement is not valid SQL for this store.
    #[error("the SQL is not valid: {reason}; `SELECT name, sql FROM sqlite_schema` shows the tables and views")]
    BadSql {
        /// What the engine said.
        reason: String,
    },
    /// The file to export to has a name that says no known format.
    #[error("cannot tell the format of {}; name it .jsonl, .csv or .parquet", path.display())]
    UnknownFormat {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// What was read is not what was written.
    #[error("the store is damaged: {what}; restore it from a copy, or check it with `PRAGMA integrity_check`")]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// Another process held the store for too long.
    #[error("the store stayed locked by another process for more than {seconds} s; wait until it is done, or stop it")]
    Locked {
        /// How long we waited.
        seconds: u64,
    },
    /// The engine failed.
    #[error("the store failed while {doing}: {source}")]
    Engine {
        /// What we were doing.
        doing: &'static str,
        /// What the engine said.
        source: sqlx::Error,
    },
    /// Writing an exported file failed.
    #[error("cannot write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The thread of the engine could not be started.
    #[error("cannot start the store: {0}")]
    Start(#[source] std::io::Error),
}

/// The result of asking the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether what the user gave (a URL, a file, SQL, a name) is the cause, rather than a failure while running.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::StepExists { .. }
                | Self::PolicyChanged { .. }
                | Self::Inconsistent { .. }
                | Self::Locked { .. }
                | Self::Engine { .. }
                | Self::Start(_)
        )
    }
}

/// How long a writer waits for another before it gives up, in seconds.
pub(crate) const PATIENCE_S: u64 = 30;

/// Says what we were doing when the engine failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| match primary_code(&source) {
            // SQLITE_BUSY
            Some(5) => Error::Locked { seconds: PATIENCE_S },
            // SQLITE_CORRUPT
            Some(11) => Error::Damaged { what: source.to_string() },
            _ => Error::Engine { doing, source },
        })
    }
}

/// The engine's primary result code: the low byte of the extended one.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}
