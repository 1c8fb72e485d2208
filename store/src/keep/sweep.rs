//! Prompts and policies that no group has any more, which are removed together with the groups.
//!
//! [`Unused`] names the candidates, and removing them looks again: another writer may have asked one of the prompts
//! meanwhile. On a server it may be about to, so a row that another transaction holds is left for the next pruning.

use crate::Result;
use crate::engine::{Connection, Engine, sql};
use crate::error::Doing;

const DOING: &str = "sweeping prompts and policies";

/// Rows in a statement.
const ROWS: usize = 64;

/// A table whose rows are there for groups alone.
struct Swept {
    of_step: &'static str,
    anywhere: &'static str,
    hold: &'static str,
    remove: &'static str,
}

const SWEPT: [Swept; 2] = [
    Swept {
        of_step: "SELECT DISTINCT prompt_id FROM groups WHERE run_id = $1 AND step = $2 ORDER BY prompt_id",
        anywhere: "SELECT id FROM prompts q WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.prompt_id = q.id) ORDER BY id",
        hold: "SELECT id FROM prompts WHERE id IN ",
        remove: "DELETE FROM prompts WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.prompt_id = prompts.id) AND id IN ",
    },
    Swept {
        of_step: "SELECT DISTINCT policy_id FROM groups WHERE run_id = $1 AND step = $2 ORDER BY policy_id",
        anywhere: "SELECT id FROM policies p WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.policy_id = p.id) ORDER BY id",
        hold: "SELECT id FROM policies WHERE id IN ",
        remove: "DELETE FROM policies WHERE NOT EXISTS (SELECT 1 FROM groups g WHERE g.policy_id = policies.id) AND id IN ",
    },
];

/// Rows that may be unused, by their numbers, in pieces that fit in a short transaction.
pub(super) struct Unused([Vec<i64>; 2]);

impl Unused {
    /// The rows that the groups of a step have, before these go.
    pub(super) async fn of_step(connection: &mut Connection, run: i64, step: i64) -> Result<Self> {
        let mut found = Self([Vec::new(), Vec::new()]);
        for (ids, swept) in found.0.iter_mut().zip(SWEPT) {
            *ids = sql::query_scalar(swept.of_step).bind(run).bind(step).fetch_all(connection).await.doing(DOING)?;
        }
        Ok(found)
    }

    /// The rows that no group has now.
    pub(super) async fn anywhere(connection: &mut Connection) -> Result<Self> {
        let mut found = Self([Vec::new(), Vec::new()]);
        for (ids, swept) in found.0.iter_mut().zip(SWEPT) {
            *ids = sql::query_scalar(swept.anywhere).fetch_all(connection).await.doing(DOING)?;
        }
        Ok(found)
    }

    /// Splits the rows into pieces.
    pub(super) fn pieces(self) -> Vec<Self> {
        let [prompts, policies] = self.0;
        let of_prompts = prompts.chunks(ROWS).map(|ids| Self([ids.to_vec(), Vec::new()]));
        let of_policies = policies.chunks(ROWS).map(|ids| Self([Vec::new(), ids.to_vec()]));
        of_prompts.chain(of_policies).collect()
    }

    /// Removes those that no group has, inside a transaction, and returns their number.
    pub(super) async fn remove(&self, transaction: &mut Connection) -> Result<u64> {
        let mut removed = 0;
        for (ids, swept) in self.0.iter().zip(SWEPT) {
            for ids in ids.chunks(ROWS) {
                removed += remove(transaction, &swept, ids).await?;
            }
        }
        Ok(removed)
    }
}

async fn remove(transaction: &mut Connection, swept: &Swept, ids: &[i64]) -> Result<u64> {
    let held: Vec<i64>;
    let ids = match transaction.engine() {
        Engine::Sqlite => ids,
        // A group that was committed while we waited for its prompt would not be seen by the same statement.
        Engine::Postgres => {
            let hold = format!("{}{} FOR UPDATE SKIP LOCKED", swept.hold, sql::places(1, ids.len()));
            let query = ids.iter().fold(sql::query_scalar(hold), super::super::engine::sql::Query::bind);
            held = query.fetch_all(transaction).await.doing(DOING)?;
            &held
        }
    };
    if ids.is_empty() {
        return Ok(0);
    }
    let remove = format!("{}{}", swept.remove, sql::places(1, ids.len()));
    let query = ids.iter().fold(sql::query(remove), super::super::engine::sql::Query::bind);
    Ok(query.execute(transaction).await.doing(DOING)?.rows_affected())
}
