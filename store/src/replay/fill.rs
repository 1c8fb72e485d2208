//! Single rows: old samples of the same prompt and another reward, which join a fresh group without signal.
//!
//! A group of equal rewards costs samples and teaches nothing. One old failure beside eight successes is enough for a
//! baseline. Rows must have the same prompt in the same tokens, and must have been sampled at the same temperature,
//! because log-probabilities at another one belong to another distribution. They are chosen at random among the newest
//! 256 samples of the prompt in each run.

use super::source::StepsOfRun;
use super::stratified::at_least_zero;
use super::uniform::Shuffle;
use super::{REWARD, ReplaySource};
use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::rows::append::FIND_PROMPT;
use crate::rows::{blob, read};
use crate::{Error, Result, RunId, SampleId, StoredGroup};
use schema::{GradedGroup, Group, PolicyVersion, Sample, SamplerSettings, Seed, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const DOING: &str = "looking for samples of another reward";

// A greedy sampler records its log-probabilities at temperature 1.
const CANDIDATES_OF: &str = "FROM groups g JOIN samples s ON s.group_id = g.id
    WHERE g.prompt_id = $1 AND g.run_id = $2 AND g.step >= $3 AND g.step < $4
        AND ABS(COALESCE(NULLIF(json_extract(g.settings, '$.temperature'), 0.0), 1.0) - $6) < 1e-9
    ORDER BY g.step DESC, s.id LIMIT $5";

/// Samples of a prompt that are considered in each run, newest steps first.
const CANDIDATES: usize = 256;

/// `fill = { … }`: the rows that join a fresh group without signal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FillRule {
    /// The greatest number of old rows that join a group.
    pub rows: usize,
    /// Rewards that are no further apart than this count as equal.
    pub min_difference: f64,
}

impl Default for FillRule {
    fn default() -> Self {
        Self { rows: 1, min_difference: 0.0 }
    }
}

/// An old sample that is trained on beside the samples of a fresh group.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayedSample {
    /// Its number in the store.
    pub id: SampleId,
    /// The run that sampled it.
    pub run: RunId,
    /// The step that sampled it.
    pub step: u64,
    /// The policy whose log-probabilities stand beside its tokens.
    pub policy: PolicyVersion,
    /// The settings that it was sampled with.
    pub settings: SamplerSettings,
    /// Its age in steps, as in [`ReplayedGroup`](super::ReplayedGroup).
    pub age: u64,
    /// The sample.
    pub sample: Sample,
    /// Its grades.
    pub verdict: Verdict,
}

/// The old rows that give one group a signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Fill {
    /// The index of the group among those that were given.
    pub group: usize,
    /// Old samples of the same prompt whose reward differs from the group's; at least one.
    pub rows: Vec<ReplayedSample>,
}

impl Fill {
    /// Returns the group with the old rows after its own samples. The joined group bears the fresh group's policy; the
    /// ratios of the rows need only the log-probabilities beside their tokens.
    ///
    /// # Panics
    /// Never: each row brings its grades.
    #[must_use]
    pub fn mixed(&self, fresh: &GradedGroup) -> GradedGroup {
        let old = || self.rows.iter();
        let samples = fresh.group().samples.iter().chain(old().map(|row| &row.sample)).cloned().collect();
        let verdicts = fresh.verdicts().iter().chain(old().map(|row| &row.verdict)).cloned().collect();
        let group = Group { samples, ..fresh.group().clone() };
        GradedGroup::new(group, verdicts).expect("each row brings its verdict")
    }
}

impl FillRule {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] if `rows` is 0 or `min_difference` is negative or not finite.
    pub fn check(&self) -> Result<()> {
        if self.rows == 0 {
            return Err(Error::Setting("replay.fill.rows must be at least 1, but is 0".into()));
        }
        at_least_zero("replay.fill.min_difference", self.min_difference)
    }

    /// Chooses rows for those of `groups` that carry no signal. The choice depends on the seed and on the store's
    /// content alone.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn fill(&self, source: &ReplaySource<'_>, groups: &[GradedGroup], seed: &Seed) -> Result<Vec<Fill>> {
        source.store.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let mut chosen = Vec::new();
            for (index, scored) in groups.iter().enumerate() {
                let Some(reward) = self.common_reward(scored) else { continue };
                let seed = seed.at(index as u64);
                let rows = self.rows(&mut snapshot, source, scored.group(), reward, &seed).await?;
                chosen.extend(rows.into_iter().map(|(sample, group)| (index, sample, group)));
            }
            // One of the read groups may serve several rows, and is read once.
            let mut ids: Vec<i64> = chosen.iter().map(|(_, _, group)| *group).collect();
            ids.sort_unstable();
            ids.dedup();
            let read = read::groups(&mut snapshot, &ids, source.scoring).await?;
            let stored: HashMap<i64, &StoredGroup> = read.iter().map(|stored| (stored.id.0, stored)).collect();
            let mut fills: Vec<Fill> = Vec::new();
            for (index, sample, group) in chosen {
                let row = row(source, stored[&group], sample)?;
                match fills.last_mut().filter(|fill| fill.group == index) {
                    Some(fill) => fill.rows.push(row),
                    None => fills.push(Fill { group: index, rows: vec![row] }),
                }
            }
            Ok(fills)
        })
    }

    /// Returns the reward that every graded sample of a group has; `None` if rewards differ or no sample is graded.
    fn common_reward(&self, group: &GradedGroup) -> Option<f64> {
        let rewards = || group.rewards().into_iter().flatten().map(f64::from);
        let (low, high) = (rewards().fold(f64::INFINITY, f64::min), rewards().fold(f64::NEG_INFINITY, f64::max));
        (low <= high && high - low <= self.min_difference).then_some(f64::midpoint(low, high))
    }

    /// Chooses old samples of the group's prompt whose reward is not `reward`; returns the numbers of sample and group.
    async fn rows(
        &self,
        connection: &mut Connection,
        source: &ReplaySource<'_>,
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
        for StepsOfRun { run, steps } in source.pasts.iter().filter(|_| prompt.is_some()) {
            let rows: Vec<(i64, i64, Option<f64>)> = sql::query_as(sql.clone())
                .bind(prompt)
                .bind(run.0)
                .bind(steps.start as i64)
                .bind(steps.end as i64)
                .bind(CANDIDATES as i64)
                .bind(group.settings.logprob_temperature())
                .fetch_all(&mut *connection)
                .await
                .doing(DOING)?;
            let differs = |old: f64| (old - reward).abs() > self.min_difference;
            other.extend(rows.into_iter().filter(|row| row.2.is_some_and(differs)).map(|row| (row.0, row.1)));
        }
        Ok(Shuffle::new(other.len() as u64, seed).take(self.rows).map(|index| other[index as usize]).collect())
    }
}

/// Takes one sample out of a stored group.
fn row(source: &ReplaySource<'_>, stored: &StoredGroup, sample: i64) -> Result<ReplayedSample> {
    let index = stored.sample_ids.iter().position(|id| id.0 == sample);
    let index = index.ok_or_else(|| Error::Damaged { what: format!("sample {sample} left its group") })?;
    let group = stored.scored.group();
    Ok(ReplayedSample {
        id: stored.sample_ids[index],
        run: stored.run,
        step: stored.step,
        policy: group.policy.clone(),
        settings: group.settings.clone(),
        age: source.age(stored.run, stored.step),
        sample: group.samples[index].clone(),
        verdict: stored.scored.verdicts()[index].clone(),
    })
}
