//! Rewards that differ: groups that carry a signal, and rows that give one to a group that carries none.
//!
//! A group-relative method learns from differences within a group, so a group of equal rewards costs samples and
//! teaches nothing; late in a run most groups are like that. As *whole groups*, this rule draws only those with a
//! signal. As *rows*, it looks for old samples of the same prompt, in the same tokens, whose reward is another one: one
//! old failure beside eight successes is enough for a baseline. Rows drawn at another temperature are left out,
//! because their log-probabilities belong to another distribution.
//!
//! Whole groups are tried in a random order until enough of them carry a signal. Where almost none does, the search
//! ends after [`Stratified::TRIES_PER_GROUP`] tries for each group asked for, so that a draw stays quick. Rows are
//! chosen among the newest [`Stratified::CANDIDATES`] samples of the prompt in each run.

use super::source::{Past, Shelf, ids};
use super::uniform::{Shuffle, aged};
use super::{Fill, ReplaySampler, ReplayedGroup, ReplayedSample, Source};
use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::rows::append::FIND_PROMPT;
use crate::rows::read::fetch_in;
use crate::rows::{blob, read};
use crate::{Error, Result, StoredGroup};
use schema::{GradedGroup, Group, Seed};
use std::collections::HashMap;

const DOING: &str = "drawing samples of another reward";

/// The reward of the sample `s`: the weighted sum, or NULL if a part that has a weight could not be judged.
const REWARD: &str = "(SELECT CASE
        WHEN COUNT(*) FILTER (WHERE r.weight <> 0) = COUNT(r.value) FILTER (WHERE r.weight <> 0)
        THEN SUM(r.weight * r.value) FILTER (WHERE r.weight <> 0) END
    FROM rewards r WHERE r.sample_id = s.id AND r.scoring = 0)";
const SPREADS: &str = "SELECT group_id, MAX(reward) - MIN(reward) AS spread FROM rewarded GROUP BY group_id";
// A greedy sampler records its log-probabilities at temperature 1.
const CANDIDATES_OF: &str = "FROM groups g JOIN samples s ON s.group_id = g.id
    WHERE g.prompt_id = $1 AND g.run_id = $2 AND g.step >= $3 AND g.step < $4
        AND ABS(COALESCE(NULLIF(json_extract(g.settings, '$.temperature'), 0.0), 1.0) - $6) < 1e-9
    ORDER BY g.step DESC, s.id LIMIT $5";

/// Draws groups with a signal, and rows of another reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Stratified {
    /// Old rows that join a group without signal, at most.
    pub rows: usize,
    /// Rewards differ if they are further apart than this.
    pub min_difference: f64,
}

impl Default for Stratified {
    fn default() -> Self {
        Self { rows: 1, min_difference: 0.0 }
    }
}

impl Stratified {
    /// How many groups are tried for each that is asked for.
    pub const TRIES_PER_GROUP: usize = 32;
    /// How many samples of a prompt are looked at in each run, newest steps first.
    pub const CANDIDATES: usize = 256;

    /// Whether every judged reward of a group is the same, and which it is; `None` for a group that carries a signal
    /// or that nobody could judge.
    fn common_reward(&self, group: &GradedGroup) -> Option<f64> {
        let rewards = || group.rewards().into_iter().flatten().map(f64::from);
        let (low, high) = (rewards().fold(f64::INFINITY, f64::min), rewards().fold(f64::NEG_INFINITY, f64::max));
        (low <= high && high - low <= self.min_difference).then_some(f64::midpoint(low, high))
    }

    /// Which of these groups carry a signal, in their order.
    async fn with_signal(&self, connection: &mut Connection, source: &Source<'_>, ids: &[i64]) -> Result<Vec<i64>> {
        let reward = source.scoring.applied_to(REWARD);
        let rewarded = format!(
            "WITH rewarded AS MATERIALIZED (SELECT s.group_id, {reward} AS reward FROM samples s WHERE s.group_id IN "
        );
        let mut spreads: HashMap<i64, f64> = HashMap::new();
        for chunk in ids.chunks(read::GROUPS_AT_ONCE) {
            for row in fetch_in(connection, &rewarded, chunk, &format!(") {SPREADS}")).await? {
                let spread: Option<f64> = row.try_get("spread").doing(DOING)?;
                spreads.insert(row.try_get("group_id").doing(DOING)?, spread.unwrap_or(0.0));
            }
        }
        let differs = |id: &i64| spreads.get(id).is_some_and(|spread| *spread > self.min_difference);
        Ok(ids.iter().copied().filter(differs).collect())
    }

    /// Old samples of the group's prompt whose reward is not `reward`: number of sample and of group, chosen at random.
    async fn rows(
        &self,
        connection: &mut Connection,
        source: &Source<'_>,
        group: &Group,
        reward: f64,
        seed: &Seed,
    ) -> Result<Vec<(i64, i64)>> {
        let prompt: Option<i64> = sql::query_scalar(FIND_PROMPT)
            .bind(group.prompt.hash())
            .bind(blob::sha256(&blob::from_tokens(&group.prompt_ids)))
            .fetch_optional(&mut *connection)
            .await
            .doing(DOING)?;
        let sql = format!("SELECT s.id, s.group_id, {} AS reward {CANDIDATES_OF}", source.scoring.applied_to(REWARD));
        let mut other = Vec::new();
        for Past { run, steps } in source.pasts.iter().filter(|_| prompt.is_some()) {
            let rows: Vec<(i64, i64, Option<f64>)> = sql::query_as(sql.clone())
                .bind(prompt)
                .bind(run.0)
                .bind(steps.start as i64)
                .bind(steps.end as i64)
                .bind(Self::CANDIDATES as i64)
                .bind(group.settings.logprob_temperature())
                .fetch_all(&mut *connection)
                .await
                .doing(DOING)?;
            let differs = |old: f64| (old - reward).abs() > self.min_difference;
            other.extend(rows.into_iter().filter(|row| row.2.is_some_and(differs)).map(|row| (row.0, row.1)));
        }
        Ok(Shuffle::new(other.len() as u64, seed).take(self.rows).map(|place| other[place as usize]).collect())
    }
}

impl ReplaySampler for Stratified {
    fn draw_from(&self, source: &Source<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        let groups = source.store.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let shelf = Shelf::of(&mut snapshot, &source.pasts).await?;
            let mut ranks = Shuffle::new(shelf.len(), seed).take(count.saturating_mul(Self::TRIES_PER_GROUP));
            let mut chosen = Vec::with_capacity(count);
            while chosen.len() < count {
                let addresses: Vec<_> =
                    ranks.by_ref().take(read::GROUPS_AT_ONCE).map(|rank| shelf.address(rank)).collect();
                if addresses.is_empty() {
                    break;
                }
                let tried = ids(&mut snapshot, &addresses).await?;
                chosen.extend(self.with_signal(&mut snapshot, source, &tried).await?);
            }
            chosen.truncate(count);
            read::groups(&mut snapshot, &chosen, source.scoring).await
        })?;
        Ok(groups.into_iter().map(|stored| aged(source, stored)).collect())
    }

    fn fill(&self, source: &Source<'_>, groups: &[GradedGroup], seed: &Seed) -> Result<Vec<Fill>> {
        source.store.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let mut chosen = Vec::new();
            for (place, scored) in groups.iter().enumerate() {
                let Some(reward) = self.common_reward(scored) else { continue };
                let seed = seed.at(place as u64);
                let rows = self.rows(&mut snapshot, source, scored.group(), reward, &seed).await?;
                chosen.extend(rows.into_iter().map(|(sample, group)| (place, sample, group)));
            }
            // One of the read groups may serve several rows, and is read once.
            let mut ids: Vec<i64> = chosen.iter().map(|(_, _, group)| *group).collect();
            ids.sort_unstable();
            ids.dedup();
            let read = read::groups(&mut snapshot, &ids, source.scoring).await?;
            let stored: HashMap<i64, &StoredGroup> = read.iter().map(|stored| (stored.id.0, stored)).collect();
            let mut fills: Vec<Fill> = Vec::new();
            for (place, sample, group) in chosen {
                let row = row(source, stored[&group], sample)?;
                match fills.last_mut().filter(|fill| fill.group == place) {
                    Some(fill) => fill.rows.push(row),
                    None => fills.push(Fill { group: place, rows: vec![row] }),
                }
            }
            Ok(fills)
        })
    }
}

/// One sample of a stored group.
fn row(source: &Source<'_>, stored: &StoredGroup, sample: i64) -> Result<ReplayedSample> {
    let place = stored.sample_ids.iter().position(|id| id.0 == sample);
    let place = place.ok_or_else(|| Error::Damaged { what: format!("sample {sample} left its group") })?;
    let group = stored.scored.group();
    Ok(ReplayedSample {
        id: stored.sample_ids[place],
        run: stored.run,
        step: stored.step,
        policy: group.policy.clone(),
        settings: group.settings.clone(),
        age: source.age(stored.run, stored.step),
        sample: group.samples[place].clone(),
        verdict: stored.scored.verdicts()[place].clone(),
    })
}
