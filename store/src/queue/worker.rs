//! Workers, and the time of the last heartbeat of each.

use crate::engine::sql;
use crate::error::Doing;
use crate::{Result, Store};
use std::time::Duration;

const SEE_WORKER: &str = "INSERT INTO workers (name, model_hash, jobs, started_at, seen_at)
    VALUES ($1, $2, $3, {now}, {now})
    ON CONFLICT (name) DO UPDATE SET model_hash = excluded.model_hash, jobs = excluded.jobs, seen_at = excluded.seen_at";
const FORGET_WORKER: &str = "DELETE FROM workers WHERE name = $1";
const ALIVE: &str = "SELECT COUNT(*) FROM workers WHERE model_hash = $1 AND seen_at > {now} - $2";

impl Store {
    /// Records a worker's heartbeat, and the number of jobs that it has done.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn see_worker(&self, name: &str, model_hash: &str, jobs: u64) -> Result<()> {
        let sql = self.spelled(SEE_WORKER);
        self.with(async |connection| {
            let seen = sql::query(sql.clone()).bind(name).bind(model_hash).bind(jobs as i64).execute(connection).await;
            seen.doing("noting that a worker is alive").map(drop)
        })
    }

    /// Removes a worker that has left.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn forget_worker(&self, name: &str) -> Result<()> {
        self.with(async |connection| {
            sql::query(FORGET_WORKER).bind(name).execute(connection).await.doing("noting that a worker left").map(drop)
        })
    }

    /// Returns the number of workers of this base model whose last heartbeat is no older than `within`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn workers_alive(&self, model_hash: &str, within: Duration) -> Result<u64> {
        let sql = self.spelled(ALIVE);
        self.with(async |connection| {
            let alive: i64 = sql::query_scalar(sql.clone())
                .bind(model_hash)
                .bind(within.as_micros() as i64)
                .fetch_one(connection)
                .await
                .doing("counting workers")?;
            Ok(alive as u64)
        })
    }
}
