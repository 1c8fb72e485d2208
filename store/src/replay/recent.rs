//! The last few steps, each of their groups equally likely.
//!
//! The window of ReMix (Liang et al. 2025): old enough to be worth re-using, young enough for its importance ratios to
//! stay near one. Groups are drawn uniformly without replacement by the first `count` places of a Fisher-Yates
//! shuffle, of which only the moved places are remembered.

use super::{ReplaySampler, ReplayedGroup};
use crate::error::Doing;
use crate::sqlite::BEGIN_READ;
use crate::{Error, Result, RunId, Store, read};
use schema::Seed;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use std::collections::HashMap;

const DOING: &str = "drawing old groups";

const STEPS: &str = "SELECT step, groups FROM steps
    WHERE run_id = $1 AND step >= $2 AND step < $3 AND groups > 0 ORDER BY step";
const GROUPS_AT: &str = "SELECT step, place, id FROM groups WHERE run_id = $1 AND (step, place) IN (VALUES ";

/// Addresses a statement.
const ADDRESSES: usize = 64;

/// Draws uniformly, without replacement, from the groups of the last `steps` steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// How many steps back the window reaches, the current step not counted. 1 is the step before this one.
    pub steps: u64,
}

impl ReplaySampler for Recent {
    fn draw(&self, store: &Store, run: RunId, now: u64, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        store.with(async |connection| {
            let mut snapshot = connection.begin_with(BEGIN_READ).await.doing(DOING)?;
            let window: Vec<(i64, i64)> = sqlx::query_as(STEPS)
                .bind(run.0)
                .bind(now.saturating_sub(self.steps) as i64)
                .bind(now as i64)
                .fetch_all(&mut *snapshot)
                .await
                .doing(DOING)?;
            let ids = ids(&mut snapshot, run, &addresses(&window, count, seed)).await?;
            let groups = read::groups(&mut snapshot, &ids).await?;
            Ok(groups.into_iter().map(|stored| ReplayedGroup { age: now - stored.step, stored }).collect())
        })
    }
}

/// The step and the place of each drawn group, given how many groups each step of the window has.
fn addresses(window: &[(i64, i64)], count: usize, seed: &Seed) -> Vec<(i64, i64)> {
    let ends: Vec<u64> = window
        .iter()
        .scan(0, |end, (_, groups)| {
            *end += *groups as u64;
            Some(*end)
        })
        .collect();
    let total = ends.last().copied().unwrap_or(0);
    let address = |rank: u64| {
        let step = ends.partition_point(|end| *end <= rank);
        let start = if step == 0 { 0 } else { ends[step - 1] };
        (window[step].0, (rank - start) as i64)
    };
    distinct(total, count as u64, seed).into_iter().map(address).collect()
}

/// `min(count, total)` different numbers below `total`, every set and order of them equally likely.
fn distinct(total: u64, count: u64, seed: &Seed) -> Vec<u64> {
    let mut moved: HashMap<u64, u64> = HashMap::new();
    (0..count.min(total))
        .map(|place| {
            let other = place + seed.below(place, total - place);
            let here = moved.get(&place).copied().unwrap_or(place);
            moved.insert(other, here).unwrap_or(other)
        })
        .collect()
}

/// The number of each addressed group, in their order.
async fn ids(connection: &mut SqliteConnection, run: RunId, addresses: &[(i64, i64)]) -> Result<Vec<i64>> {
    let mut ids: HashMap<(i64, i64), i64> = HashMap::with_capacity(addresses.len());
    for chunk in addresses.chunks(ADDRESSES) {
        let places: Vec<String> = (1..=ADDRESSES).map(|row| format!("(${}, ${})", 2 * row, 2 * row + 1)).collect();
        let mut query = sqlx::query_as(AssertSqlSafe(format!("{GROUPS_AT}{})", places.join(", ")))).bind(run.0);
        for row in 0..ADDRESSES {
            let (step, place) = chunk.get(row).unwrap_or(&chunk[0]);
            query = query.bind(step).bind(place);
        }
        let rows: Vec<(i64, i64, i64)> = query.fetch_all(&mut *connection).await.doing(DOING)?;
        ids.extend(rows.into_iter().map(|(step, place, id)| ((step, place), id)));
    }
    let id = |address: &(i64, i64)| {
        ids.get(address).copied().ok_or_else(|| Error::Damaged {
            what: format!("step {} of run {run} lacks its group {}", address.0, address.1),
        })
    };
    addresses.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_numbers_and_each_equally_likely() {
        let mut seen = [0; 5];
        for trial in 0..2_000 {
            let mut drawn = distinct(5, 2, &Seed::new(1).at(trial));
            for number in &drawn {
                seen[*number as usize] += 1;
            }
            drawn.dedup();
            assert_eq!(drawn.len(), 2);
        }
        // Each of five is drawn with probability 2/5: 800 of 2000 times, with a standard deviation of 22.
        assert!(seen.iter().all(|count| (700..900).contains(count)), "{seen:?}");
    }

    #[test]
    fn drawing_everything_gives_a_permutation() {
        let mut all = distinct(50, 99, &Seed::new(2));
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert!(distinct(0, 3, &Seed::new(2)).is_empty());
    }

    #[test]
    fn ranks_become_steps_and_places() {
        // Ranks 0 and 1 are the groups of step 4, rank 2 is that of step 6.
        let mut drawn = addresses(&[(4, 2), (6, 1)], 3, &Seed::new(3));
        drawn.sort_unstable();
        assert_eq!(drawn, [(4, 0), (4, 1), (6, 0)]);
    }
}
