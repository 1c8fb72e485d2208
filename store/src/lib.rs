//! Every sample ever paid for, in one SQLite file that answers SQL.
//!
//! The store is at once the training source of replay, the place a killed run resumes from, and the record that
//! people ask questions of. It only ever grows: nothing here deletes a sample.
//!
//! | table | one row per |
//! |---|---|
//! | `runs` | run, with its resolved config |
//! | `policies` | policy version of a run, with the hash of its content |
//! | `prompts` | question and tokenization of it, whichever runs asked it |
//! | `groups` | group: prompt, policy, sampler settings |
//! | `samples` | completion: token ids, behaviour log-probabilities, text |
//! | `rewards` | part of a sample's reward |
//! | `steps` | training step, with its metrics |
//! | `checkpoints` | checkpoint |
//!
//! The views `sample_view`, `group_view` and `reward_view` put these together and make the blobs readable in plain
//! SQL, from any SQLite client; `migrations/sqlite/0001_spine.sql` says what each column means.
//!
//! # Durability
//!
//! A step's samples are appended in one transaction, so a reader or a killed run sees whole steps only. SQLite runs
//! with a write-ahead log and `synchronous = FULL`: when an append returns, its samples survive a power cut too. That
//! costs one `fsync` a step, milliseconds beside seconds of sampling. Readers in other processes never wait for the
//! writer.
//!
//! # Threads
//!
//! The store may be shared between threads; calls take turns. Calls block, and must not come from inside an
//! asynchronous runtime.

mod append;
mod blob;
mod error;
mod export;
mod query;
mod read;
mod replay;
mod report;
mod run;
mod sqlite;
mod table;
mod time;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use export::Selection;
pub use read::{GroupId, SampleId, StoredGroup};
pub use replay::{Recent, ReplaySampler, ReplayedGroup};
pub use run::{NewRun, Run, RunId, RunStatus};
pub use sqlite::Store;
pub use table::{Table, Value};
