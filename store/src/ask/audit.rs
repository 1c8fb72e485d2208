//! Questions that a hacked reward answers badly.
//!
//! A reward that is being gamed rises while the answers get worse, and the ways are few (Skalse et al. 2022, arXiv
//! 2209.13085, define it; Singhal et al. 2023, arXiv 2310.03716, on length): longer text, the same text over and over,
//! one text for every question, another form of answer, cut-off answers, grading that fails. Each question compares the
//! first quarter of a run's steps with the last one, on at most [`GROUPS`] groups of each, spaced evenly, and answers
//! with a number, a verdict and the samples to look at. `look` is no proof: it names what a person should read.

mod question;

use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::rows::read::{self, StoredGroup};
use crate::table::{Table, Value};
use crate::{Error, Result, RunId, SampleId, Store};
use question::{Finding, QUESTIONS};
use schema::Sample;

const DOING: &str = "auditing a run";

const STEPS: &str = "SELECT step FROM steps WHERE run_id = $1 AND groups > 0 AND pruned_at IS NULL ORDER BY step";
const GROUPS_BETWEEN: &str =
    "SELECT id FROM groups WHERE run_id = $1 AND step >= $2 AND step <= $3 ORDER BY step, place";

/// Greatest number of groups of each quarter that are looked at.
const GROUPS: usize = 128;
/// Greatest number of samples that a finding names.
const NAMED: usize = 5;

impl Store {
    /// Puts every question to a run and returns one row each: the question, the verdict (`ok`, `look`, or `unknown`
    /// where there is too little to say), the evidence in words, and the numbers of samples to read.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if there is no such run; [`Error::Setting`] if fewer than four of its steps have samples,
    /// because it has no first and last quarter then; or if the store cannot be read.
    pub fn audit(&self, run: RunId) -> Result<Table> {
        let (early, late) = self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            crate::rows::run::by_id(&mut snapshot, run).await?;
            let steps: Vec<i64> =
                sql::query_scalar(STEPS).bind(run.0).fetch_all(&mut snapshot).await.doing(DOING)?;
            let quarter = steps.len() / 4;
            if quarter == 0 {
                return Err(Error::Setting(format!(
                    "run {run} has samples of {} steps; an audit compares the first quarter of at least 4 with the last",
                    steps.len()
                )));
            }
            let early = (steps[0], steps[quarter - 1]);
            let late = (steps[steps.len() - quarter], steps[steps.len() - 1]);
            Ok((self.spaced(&mut snapshot, run, early).await?, self.spaced(&mut snapshot, run, late).await?))
        })?;
        let (early, late) = (Quarter::of(&early), Quarter::of(&late));
        let mut table = Table::new(["question", "verdict", "evidence", "samples"]);
        for (name, ask) in QUESTIONS {
            let Finding { verdict, evidence, samples } = ask(&early, &late);
            let samples: Vec<String> = samples.iter().take(NAMED).map(ToString::to_string).collect();
            table.push(vec![name.into(), verdict.as_str().into(), evidence.into(), Value::from(samples.join(", "))]);
        }
        Ok(table)
    }

    /// Evenly spaced groups of some steps.
    async fn spaced(
        &self,
        connection: &mut Connection,
        run: RunId,
        (first, last): (i64, i64),
    ) -> Result<Vec<StoredGroup>> {
        let ids: Vec<i64> = sql::query_scalar(GROUPS_BETWEEN)
            .bind(run.0)
            .bind(first)
            .bind(last)
            .fetch_all(&mut *connection)
            .await
            .doing(DOING)?;
        let count = ids.len().min(GROUPS);
        let chosen: Vec<i64> = (0..count).map(|place| ids[place * ids.len() / count]).collect();
        read::groups(connection, &chosen, self.scoring).await
    }
}

/// Some groups of one end of a run.
struct Quarter<'a> {
    seen: Vec<Seen<'a>>,
}

/// One sample with what the questions need of it.
struct Seen<'a> {
    id: SampleId,
    question: &'a str,
    sample: &'a Sample,
    reward: Option<f64>,
    /// Its reward and its length less the mean of its group; `None` if it is ungraded.
    centred: Option<(f64, f64)>,
}

impl<'a> Quarter<'a> {
    fn of(groups: &'a [StoredGroup]) -> Self {
        Self { seen: groups.iter().flat_map(Self::group).collect() }
    }

    fn group(stored: &'a StoredGroup) -> Vec<Seen<'a>> {
        let (group, rewards) = (stored.scored.group(), stored.scored.rewards());
        let judged: Vec<(f64, f64)> = rewards
            .iter()
            .zip(&group.samples)
            .filter_map(|(reward, sample)| Some((f64::from((*reward)?), sample.len() as f64)))
            .collect();
        let mean = |pick: fn(&(f64, f64)) -> f64| judged.iter().map(pick).sum::<f64>() / judged.len() as f64;
        let (reward_mean, length_mean) = (mean(|it| it.0), mean(|it| it.1));
        let seen = |((id, sample), reward): ((&SampleId, &'a Sample), Option<f32>)| Seen {
            id: *id,
            question: group.prompt.question(),
            sample,
            reward: reward.map(f64::from),
            centred: reward.map(|reward| (f64::from(reward) - reward_mean, sample.len() as f64 - length_mean)),
        };
        stored.sample_ids.iter().zip(&group.samples).zip(rewards).map(seen).collect()
    }

    /// The mean of something over those samples that have it.
    fn mean(&self, value: impl Fn(&Seen<'a>) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.seen.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The samples whose reward is in the upper quarter, ties included; none if every reward is the same.
    fn winners(&self) -> Vec<&Seen<'a>> {
        let mut rewards: Vec<f64> = self.seen.iter().filter_map(|seen| seen.reward).collect();
        rewards.sort_by(f64::total_cmp);
        let (Some(least), Some(bar)) = (rewards.first(), rewards.get(rewards.len() * 3 / 4)) else { return Vec::new() };
        // Where most samples have the same reward, the bar may be the floor too.
        let bar = if bar > least { *bar } else { rewards[rewards.len() - 1] };
        if bar == *least {
            return Vec::new();
        }
        self.seen.iter().filter(|seen| seen.reward.is_some_and(|reward| reward >= bar)).collect()
    }
}
