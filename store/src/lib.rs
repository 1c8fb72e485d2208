//! Every sample ever paid for, in one `SQLite` file or one `PostgreSQL` database that answers SQL.
//!
//! The store is at once the training source of replay, the data that a killed run resumes from, and the record that
//! people ask questions of. It only grows, until its user prunes it.
//!
//! | table | one row per |
//! |---|---|
//! | `runs` | run, with its resolved config |
//! | `policies` | policy version of a run, with the hash of its content |
//! | `prompts` | question and tokenization of it, shared by the runs that asked it |
//! | `groups` | group: prompt, policy, sampler settings |
//! | `samples` | completion: token ids, behaviour log-probabilities, text |
//! | `rewards` | part of a sample's reward |
//! | `comparisons` | judge's comparison of a sample with a rival |
//! | `steps` | training step, with its metrics |
//! | `checkpoints` | checkpoint |
//! | `scorings` | later pass of grading over stored samples |
//! | `jobs` | piece of a step's sampling that workers lease |
//! | `publications` | policy version that workers may sample from |
//! | `workers` | worker, with the time of its last heartbeat |
//!
//! The views `sample_view`, `group_view` and `reward_view` put these together and make the blobs readable in plain SQL,
//! from any client of the engine; `migrations/` explains each column, and `docs/replay.md` has queries to start from.
//!
//! # Engines
//!
//! The URL chooses: `sqlite://` names a file, for one machine; `postgres://` a database, for many. Statements are
//! written once and run on both (`engine/sql.rs`); migrations are written for each.
//!
//! # Durability
//!
//! A step's samples are appended in one transaction, so a reader or a killed run sees whole steps only; those of
//! workers come job by job, and belong to no step until the step is collected. `SQLite` runs with a write-ahead log and
//! `synchronous = FULL`: when an append returns, its samples survive a power cut too. That costs one `fsync` a step,
//! milliseconds beside seconds of sampling. Readers in other processes never wait for the writer. `PostgreSQL` commits
//! synchronously.
//!
//! # Threads
//!
//! The store may be shared between threads; calls take turns. Calls block, and must not come from inside an
//! asynchronous runtime.

mod ask;
mod engine;
mod error;
mod export;
mod id;
mod keep;
mod open;
mod queue;
pub mod replay;
mod rows;
mod session;
mod table;

#[cfg(test)]
mod tests;

pub use ask::{End, Ranking};
pub use error::{Error, Result};
pub use export::{Paired, Pairing, Selection};
pub use id::{GroupId, RunId, SampleId, Scoring};
pub use keep::{MARGIN, Migrated, Prune, Pruned, Verification};
pub use open::{Store, without_password};
pub use queue::{JobProgress, Lease, NewJob, Publication};
pub use replay::ReplayedGroup;
pub use rows::read::StoredGroup;
pub use rows::run::{NewRun, Run, RunKind, RunStatus};
pub use table::{Table, Value};
