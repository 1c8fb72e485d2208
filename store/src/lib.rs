//! Every sample ever paid for, in one SQLite file that answers SQL.
//!
//! The store is at once the training source of replay, the place a killed run resumes from, and the record that
//! people ask questions of. It only grows, until its user prunes it.
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
//! | `scorings` | later judgement of stored samples |
//!
//! The views `sample_view`, `group_view` and `reward_view` put these together and make the blobs readable in plain
//! SQL, from any SQLite client; `migrations/sqlite/` says what each column means, and `docs/replay.md` what to ask.
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
mod audit;
mod blob;
mod diff;
mod error;
mod export;
mod prune;
mod query;
mod ranking;
mod read;
pub mod replay;
mod report;
mod run;
mod scoring;
mod sqlite;
mod table;
mod time;
mod trend;
mod verify;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub use export::{Paired, Pairing, Selection};
pub use prune::{MARGIN, Prune, Pruned};
pub use ranking::{End, Ranking};
pub use read::{GroupId, SampleId, StoredGroup};
pub use replay::{Recent, ReplaySampler, ReplayedGroup};
pub use run::{NewRun, Run, RunId, RunKind, RunStatus};
pub use scoring::Scoring;
pub use sqlite::Store;
pub use table::{Table, Value};
pub use verify::Verification;
