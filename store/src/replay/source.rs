//! The source of a replay rule: steps of one or more runs of one store, under one scoring.
//!
//! A group's address is (run, step, index in the step). The table `steps` has the number of groups of each step, so the
//! n-th group of a source is found by arithmetic and one look-up in an index, and nothing is ever sorted or scanned for
//! a draw.

use crate::engine::{Connection, sql};
use crate::error::Doing;
use crate::rows::scoring::check;
use crate::{Error, Result, RunId, Scoring, Store};
use std::collections::HashMap;
use std::ops::Range;

const DOING: &str = "drawing old groups";

const STEPS: &str = "SELECT step, groups FROM steps
    WHERE run_id = $1 AND step >= $2 AND step < $3 AND groups > 0 AND pruned_at IS NULL ORDER BY step";
const END: &str = "SELECT COALESCE(MAX(step) + 1, 0) FROM steps WHERE run_id = $1";
const GROUPS_AT: &str = "SELECT run_id, step, place, id FROM groups WHERE (run_id, step, place) IN (VALUES ";

/// Number of addresses in a statement.
const ADDRESSES: usize = 64;

/// Steps of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepsOfRun {
    /// The run that sampled.
    pub run: RunId,
    /// Its steps. Ages count back from the end.
    pub steps: Range<u64>,
}

/// The stored groups that a replay rule may choose from.
#[derive(Debug, Clone)]
pub struct ReplaySource<'a> {
    pub(super) store: &'a Store,
    pub(super) pasts: Vec<StepsOfRun>,
    pub(super) scoring: Scoring,
}

impl<'a> ReplaySource<'a> {
    /// The groups that a run stored before step `now`.
    pub fn of(store: &'a Store, run: RunId, now: u64) -> Self {
        Self { store, pasts: vec![StepsOfRun { run, steps: 0..now }], scoring: Scoring::Training }
    }

    /// Everything that other runs of the store hold, for a run that starts from what they paid for. Their rows count
    /// their age from the end of their own run.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if one of the runs does not exist, or if the store cannot be read.
    pub fn runs(store: &'a Store, runs: &[RunId]) -> Result<Self> {
        let past = async |connection: &mut Connection, run: RunId| {
            crate::rows::run::by_id(connection, run).await?;
            let end: i64 = sql::query_scalar(END).bind(run.0).fetch_one(connection).await.doing(DOING)?;
            Ok(StepsOfRun { run, steps: 0..end as u64 })
        };
        let mut pasts = Vec::with_capacity(runs.len());
        for run in runs {
            pasts.push(store.with(async |connection| past(connection, *run).await)?);
        }
        Ok(Self { store, pasts, scoring: Scoring::Training })
    }

    /// This source and another run's past besides. A run that is here already is not counted twice.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        let new = other.pasts.iter().filter(|past| self.pasts.iter().all(|known| known.run != past.run));
        self.pasts.extend(new.cloned().collect::<Vec<_>>());
        self
    }

    /// The same rows under another scoring.
    ///
    /// # Errors
    /// [`Error::NoSuchScoring`] if there is no such scoring, or if the store cannot be read.
    pub fn scored(self, scoring: Scoring) -> Result<Self> {
        self.store.with(async |connection| check(connection, scoring).await)?;
        Ok(Self { scoring, ..self })
    }

    /// Returns the part of it that is at most `max_age` steps old.
    #[must_use]
    pub fn within(&self, max_age: u64) -> Self {
        let narrowed = |StepsOfRun { run, steps }: &StepsOfRun| {
            let oldest = steps.end.saturating_sub(max_age);
            StepsOfRun { run: *run, steps: steps.start.max(oldest)..steps.end }
        };
        Self { store: self.store, pasts: self.pasts.iter().map(narrowed).collect(), scoring: self.scoring }
    }

    /// Returns the steps that it reaches, run by run.
    pub fn pasts(&self) -> &[StepsOfRun] {
        &self.pasts
    }

    /// Age in steps of a row of this run and step; 0 for a run that is not in the source.
    pub(super) fn age(&self, run: RunId, step: u64) -> u64 {
        let past = self.pasts.iter().find(|past| past.run == run);
        past.map_or(0, |past| past.steps.end.saturating_sub(step))
    }
}

/// A group's address: its run, its step, and its index in the step.
pub(super) type GroupAddress = (RunId, u64, u64);

/// Every group of a source, by rank: run after run, step after step.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Run and step of each step with groups.
    steps: Vec<(RunId, u64)>,
    /// The rank behind the last group of each.
    ends: Vec<u64>,
}

impl Shelf {
    pub(super) async fn of(connection: &mut Connection, pasts: &[StepsOfRun]) -> Result<Self> {
        let mut counts = Vec::new();
        for StepsOfRun { run, steps } in pasts {
            let rows: Vec<(i64, i64)> = sql::query_as(STEPS)
                .bind(run.0)
                .bind(steps.start as i64)
                .bind(steps.end as i64)
                .fetch_all(&mut *connection)
                .await
                .doing(DOING)?;
            counts.extend(rows.into_iter().map(|(step, groups)| (*run, step as u64, groups as u64)));
        }
        Ok(Self::new(&counts))
    }

    /// Builds the shelf from the number of groups of each step.
    fn new(counts: &[(RunId, u64, u64)]) -> Self {
        let ends = counts.iter().scan(0, |end, (_, _, groups)| {
            *end += groups;
            Some(*end)
        });
        Self { ends: ends.collect(), steps: counts.iter().map(|(run, step, _)| (*run, *step)).collect() }
    }

    /// Number of groups.
    pub(super) fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns the address of the group of this rank, which is below [`len`](Self::len).
    pub(super) fn address(&self, rank: u64) -> GroupAddress {
        let step = self.ends.partition_point(|end| *end <= rank);
        let start = if step == 0 { 0 } else { self.ends[step - 1] };
        let (run, number) = self.steps[step];
        (run, number, rank - start)
    }
}

/// Returns the number of each addressed group, in the order of the addresses. A step that lacks one is damage.
pub(super) async fn ids(connection: &mut Connection, addresses: &[GroupAddress]) -> Result<Vec<i64>> {
    let mut ids: HashMap<GroupAddress, i64> = HashMap::with_capacity(addresses.len());
    let sql = format!("{GROUPS_AT}{})", sql::places(ADDRESSES, 3));
    for chunk in addresses.chunks(ADDRESSES) {
        let mut query = sql::query_as(sql.clone());
        // Always the same number of placeholders, so that the statement is prepared once.
        for row in 0..ADDRESSES {
            let (run, step, place) = chunk.get(row).unwrap_or(&chunk[0]);
            query = query.bind(run.0).bind(*step as i64).bind(*place as i64);
        }
        let rows: Vec<(i64, i64, i64, i64)> = query.fetch_all(&mut *connection).await.doing(DOING)?;
        ids.extend(rows.into_iter().map(|(run, step, place, id)| ((RunId(run), step as u64, place as u64), id)));
    }
    let id = |address: &GroupAddress| {
        ids.get(address).copied().ok_or_else(|| Error::Damaged {
            what: format!("step {} of run {} lacks its group {}", address.1, address.0, address.2),
        })
    };
    addresses.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_become_runs_steps_and_places() {
        // Ranks 0 and 1 are the groups of step 4, rank 2 is that of step 6, and rank 3 is another run's.
        let shelf = Shelf::new(&[(RunId(1), 4, 2), (RunId(1), 6, 1), (RunId(2), 0, 1)]);
        let all: Vec<GroupAddress> = (0..shelf.len()).map(|rank| shelf.address(rank)).collect();
        assert_eq!(all, [(RunId(1), 4, 0), (RunId(1), 4, 1), (RunId(1), 6, 0), (RunId(2), 0, 0)]);
        assert_eq!(Shelf::new(&[]).len(), 0);
    }
}
