//! Sampling by other processes and machines: a queue of jobs under leases.
//!
//! A step's sampling is cut into jobs. A worker takes the oldest free one by one UPDATE, which leaves to others what
//! they are just taking (`FOR UPDATE SKIP LOCKED`, where there is more than one writer at a time), and has it until its
//! lease ends; while it samples it extends the lease. When a worker dies, its lease ends and the job is taken again.
//! The samples of a job are appended in the transaction that makes it done, and that is conditional: on the worker, on
//! the attempt, and on the job not being done yet. So a worker that was thought dead and comes back late is refused,
//! and each job has one result or none, whichever process dies at whatever moment. Leases are measured by the store's
//! clock, because those of several machines differ.
//!
//! Waiting connections are woken by NOTIFY on `PostgreSQL`, and look again on `SQLite`.

mod job;
mod publication;
mod waiting;
mod worker;

pub use job::{JobProgress, Lease, NewJob};
pub use publication::Publication;

use crate::Store;

impl Store {
    /// Spells out the engine's own words in a statement: `{now}` and `{skip_locked}`.
    pub(crate) fn spelled(&self, sql: &str) -> String {
        sql.replace("{now}", self.engine().now()).replace("{skip_locked}", self.engine().skip_locked())
    }
}
