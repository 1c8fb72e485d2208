//! Verdicts as rows: the tables `rewards` and `comparisons`, and what both are called in answers.
//!
//! Up to schema version 3 a comparison was a row of `rewards` without weight, named `beats_3` for the sample at index 3
//! of its own group and `beats_opponent_3` for that of the opponent's. `part_view`, `sample_view`, exports and `show`
//! still list comparisons under these names, beside the parts of the reward.

use crate::engine::time::now;
use crate::engine::{Connection, Row, sql};
use crate::error::Doing;
use crate::rows::append::Insert;
use crate::rows::read::{fetch_in, get};
use crate::{Result, Scoring};
use schema::{Comparison, Grade, RewardPart, Rival, Verdict};
use serde::Serialize;
use std::collections::HashMap;

const ADD_REWARDS: Insert = Insert {
    into: "rewards (sample_id, scoring, place, name, version, weight, value, status, created_at)",
    columns: 9,
    returning: "",
};
const ADD_COMPARISONS: Insert = Insert {
    into: "comparisons (sample_id, scoring, place, judge, version, rival, rival_place, win, status, created_at)",
    columns: 10,
    returning: "",
};
const REWARDS: &str = "SELECT r.sample_id, r.name, r.version, r.weight, r.value, r.status
    FROM samples s JOIN rewards r ON r.sample_id = s.id AND r.scoring = 0 WHERE s.group_id IN ";
const COMPARISONS: &str = "SELECT r.sample_id, r.judge, r.version, r.rival, r.rival_place, r.win, r.status
    FROM samples s JOIN comparisons r ON r.sample_id = s.id AND r.scoring = 0 WHERE s.group_id IN ";
const ORDER: &str = " ORDER BY r.sample_id, r.place";

/// Greatest number of rows in a statement.
const ROWS: usize = 64;

/// Adds these samples' verdicts to a scoring.
pub(crate) async fn add(
    connection: &mut Connection,
    scoring: i64,
    verdicts: &[(i64, &Verdict)],
    doing: &'static str,
) -> Result<()> {
    let created_at = now();
    let rewards = numbered(verdicts, |verdict| &verdict.rewards);
    for chunk in rewards.chunks(ROWS) {
        let mut insert = sql::query(ADD_REWARDS.sql(chunk.len()));
        for (sample_id, place, part) in chunk {
            let (value, status) = columns(&part.grade);
            insert = insert
                .bind(sample_id)
                .bind(scoring)
                .bind(place)
                .bind(&part.name)
                .bind(&part.version)
                .bind(part.weight)
                .bind(value)
                .bind(status)
                .bind(created_at);
        }
        insert.execute(&mut *connection).await.doing(doing)?;
    }
    let comparisons = numbered(verdicts, |verdict| &verdict.comparisons);
    for chunk in comparisons.chunks(ROWS) {
        let mut insert = sql::query(ADD_COMPARISONS.sql(chunk.len()));
        for (sample_id, place, comparison) in chunk {
            let (rival, rival_place) = rival_columns(comparison.rival);
            let (win, status) = columns(&comparison.win);
            insert = insert
                .bind(sample_id)
                .bind(scoring)
                .bind(place)
                .bind(&comparison.judge)
                .bind(&comparison.version)
                .bind(rival)
                .bind(rival_place)
                .bind(win)
                .bind(status)
                .bind(created_at);
        }
        insert.execute(&mut *connection).await.doing(doing)?;
    }
    Ok(())
}

/// The entries of one list of every verdict, each with its sample's number and its index in the list.
fn numbered<'a, T>(verdicts: &[(i64, &'a Verdict)], list: fn(&'a Verdict) -> &'a Vec<T>) -> Vec<(i64, i64, &'a T)> {
    let entries = |(sample, verdict): &(i64, &'a Verdict)| {
        let sample = *sample;
        (0i64..).zip(list(verdict)).map(move |(index, entry)| (sample, index, entry))
    };
    verdicts.iter().flat_map(entries).collect()
}

/// The verdict on each sample of these groups, by the sample's number. A sample without one is not there.
pub(crate) async fn of_groups(
    connection: &mut Connection,
    group_ids: &[i64],
    scoring: Scoring,
) -> Result<HashMap<i64, Verdict>> {
    let mut verdicts: HashMap<i64, Verdict> = HashMap::new();
    for row in fetch_in(connection, &scoring.applied_to(REWARDS), group_ids, ORDER).await? {
        verdicts.entry(get(&row, "sample_id")?).or_default().rewards.push(reward_part(&row)?);
    }
    for row in fetch_in(connection, &scoring.applied_to(COMPARISONS), group_ids, ORDER).await? {
        verdicts.entry(get(&row, "sample_id")?).or_default().comparisons.push(comparison(&row)?);
    }
    Ok(verdicts)
}

fn reward_part(row: &Row) -> Result<RewardPart> {
    Ok(RewardPart {
        name: get(row, "name")?,
        version: get(row, "version")?,
        weight: get(row, "weight")?,
        grade: grade(get(row, "value")?, &get::<String>(row, "status")?),
    })
}

fn comparison(row: &Row) -> Result<Comparison> {
    let (rival, place): (String, i64) = (get(row, "rival")?, get(row, "rival_place")?);
    let rival = match rival.as_str() {
        OPPONENT => Rival::Opponent(place as usize),
        _ => Rival::Own(place as usize),
    };
    Ok(Comparison {
        judge: get(row, "judge")?,
        version: get(row, "version")?,
        rival,
        win: grade(get(row, "win")?, &get::<String>(row, "status")?),
    })
}

const JUDGED: &str = "judged";
const OWN: &str = "own";
const OPPONENT: &str = "opponent";

/// A grade as the columns `value` (or `win`) and `status`.
fn columns(grade: &Grade) -> (Option<f64>, String) {
    match grade {
        Grade::Value(value) => (Some(f64::from(*value)), JUDGED.into()),
        Grade::Missing(reason) => (None, format!("unjudged: {reason}")),
    }
}

/// The grade that the two columns hold.
fn grade(value: Option<f64>, status: &str) -> Grade {
    match value {
        Some(value) => Grade::Value(value as f32),
        None => Grade::missing(status.strip_prefix("unjudged: ").unwrap_or(status)),
    }
}

/// A rival as the columns `rival` and `rival_place`.
fn rival_columns(rival: Rival) -> (&'static str, i64) {
    match rival {
        Rival::Own(index) => (OWN, index as i64),
        Rival::Opponent(index) => (OPPONENT, index as i64),
    }
}

/// A part of a reward, or a comparison, as exports and `show` have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) weight: f64,
    pub(crate) value: Option<f32>,
    pub(crate) status: Status,
}

/// The state of a part's value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Judged,
    /// The reason why there is no value.
    Unjudged(String),
}

impl Part {
    fn new(name: String, version: &str, weight: f64, grade: &Grade) -> Self {
        let status = grade.reason().map_or(Status::Judged, |reason| Status::Unjudged(reason.to_owned()));
        Self { name, version: version.to_owned(), weight, value: grade.value(), status }
    }

    /// The parts of a verdict's reward, then its comparisons.
    pub(crate) fn of(verdict: &Verdict) -> Vec<Self> {
        let rewards =
            verdict.rewards.iter().map(|part| Self::new(part.name.clone(), &part.version, part.weight, &part.grade));
        let comparisons = verdict.comparisons.iter().map(|comparison| {
            let name = match comparison.rival {
                Rival::Own(index) => format!("beats_{index}"),
                Rival::Opponent(index) => format!("beats_opponent_{index}"),
            };
            Self::new(name, &comparison.version, 0.0, &comparison.win)
        });
        rewards.chain(comparisons).collect()
    }
}
