//! The policy versions that workers may sample from.

use crate::engine::time::now;
use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::{Result, RunId, Store};
use schema::{Group, PolicyVersion};
use std::collections::BTreeSet;

const FORGET_PUBLICATIONS: &str = "DELETE FROM publications WHERE run_id = $1 AND (version >= $2 OR version < $3)";
// The number is that of no step: later versions count steps, and those of other policies begin at 2^32.
const SUPERSEDE: &str =
    "UPDATE policies SET version = 8589934592 + id WHERE run_id = $1 AND version = $2 AND hash <> $3";
const PUBLISH: &str =
    "INSERT INTO publications (run_id, version, hash, adapter, created_at) VALUES ($1, $2, $3, $4, $5)";
const PUBLICATION: &str = "SELECT version, hash, adapter FROM publications WHERE run_id = $1 AND version < $2
    ORDER BY version DESC LIMIT 1";
const SUPERSEDED: &str = "SELECT COUNT(*) FROM publications WHERE run_id = $1 AND version = $2 AND hash <> $3";

/// A policy version that workers may sample from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// The version, and the hash of its content.
    pub policy: PolicyVersion,
    /// The location of its adapter.
    pub adapter: String,
}

impl Store {
    /// Lets workers sample from a policy whose adapter is at `adapter`. Newer versions, which a resumed run makes anew,
    /// are forgotten, and so are those below `oldest`. Where a resumed run on a GPU, or one that was rolled back, makes
    /// a version otherwise than before, the samples of the earlier one keep its hash under another number.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn publish(&self, run: RunId, policy: &PolicyVersion, adapter: &str, oldest: u64) -> Result<()> {
        const DOING: &str = "publishing a policy";
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            sql::query(FORGET_PUBLICATIONS)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(oldest as i64)
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            sql::query(SUPERSEDE)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(&policy.hash)
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            sql::query(PUBLISH)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(&policy.hash)
                .bind(adapter)
                .bind(now())
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            transaction.commit().await.doing(DOING)
        })
    }

    /// Returns the newest policy of a run that its steps before `step` made; `None` if none is published.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn publication(&self, run: RunId, step: u64) -> Result<Option<Publication>> {
        self.with(async |connection| {
            let row: Option<(i64, String, String)> = sql::query_as(PUBLICATION)
                .bind(run.0)
                .bind(step as i64)
                .fetch_optional(connection)
                .await
                .doing("looking for the newest policy")?;
            Ok(row.map(|(version, hash, adapter)| Publication {
                policy: PolicyVersion { version: version as u64, hash },
                adapter,
            }))
        })
    }
}

/// Returns true if the run has published another policy under the version that sampled some of these groups.
pub(super) async fn is_superseded(connection: &mut Connection, run: RunId, groups: &[Group]) -> Result<bool> {
    let policies: BTreeSet<(u64, &str)> =
        groups.iter().map(|group| (group.policy.version, &group.policy.hash[..])).collect();
    for (version, hash) in policies {
        let others: i64 = sql::query_scalar(SUPERSEDED)
            .bind(run.0)
            .bind(version as i64)
            .bind(hash)
            .fetch_one(&mut *connection)
            .await
            .doing("looking for a policy")?;
        if others > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
