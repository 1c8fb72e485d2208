//! Reading groups back, bit for bit.

use crate::engine::{Access, Cell, Connection, Row, sql};
use crate::error::Doing;
use crate::rows::{blob, verdict};
use crate::{Error, GroupId, Result, RunId, SampleId, Scoring, Store};
use schema::{Finish, GradedGroup, Group, PolicyVersion, Sample, Verdict};
use serde::de::DeserializeOwned;
use std::collections::HashMap;

const DOING: &str = "reading samples";

const STEP_WAS_COLLECTED: &str =
    "SELECT pruned_at IS NOT NULL FROM steps WHERE run_id = $1 AND step = $2 AND collected_at IS NOT NULL";
const GROUPS_OF_STEP: &str = "SELECT id FROM groups WHERE run_id = $1 AND step = $2 ORDER BY place";
const GROUPS: &str = "SELECT g.id, g.run_id, g.step, g.settings, q.json, q.token_ids, p.version, p.hash
    FROM groups g JOIN prompts q ON q.id = g.prompt_id JOIN policies p ON p.id = g.policy_id WHERE g.id IN ";
const SAMPLES: &str = "SELECT group_id, id, length, finish, text, mask, token_ids, logprobs
    FROM samples WHERE group_id IN ";
const SAMPLES_ORDER: &str = " ORDER BY group_id, place";

/// Number of groups in a statement.
pub(crate) const GROUPS_AT_ONCE: usize = 64;

/// A group with its provenance: number, run and step.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredGroup {
    /// Its number in the store.
    pub id: GroupId,
    /// The run that sampled it.
    pub run: RunId,
    /// The step that sampled it.
    pub step: u64,
    /// The number of each sample, in their order.
    pub sample_ids: Vec<SampleId>,
    /// The group itself, with the policy that sampled it, and its grades.
    pub scored: GradedGroup,
}

impl Store {
    /// Returns the groups of a step as they were appended, in order and bit for bit; `None` if the step was never
    /// appended. A resumed run uses these instead of paying for the same samples again.
    ///
    /// # Errors
    /// [`Error::Pruned`] if the step's samples were removed, [`Error::Damaged`] if they are not as they were written,
    /// or if the store cannot be read.
    pub fn step_groups(&self, run: RunId, step: u64) -> Result<Option<Vec<StoredGroup>>> {
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let pruned: Option<bool> = sql::query_scalar(STEP_WAS_COLLECTED)
                .bind(run.0)
                .bind(step as i64)
                .fetch_optional(&mut snapshot)
                .await
                .doing(DOING)?;
            match pruned {
                None => return Ok(None),
                Some(true) => return Err(Error::Pruned { run, step }),
                Some(false) => {}
            }
            let ids: Vec<i64> = sql::query_scalar(GROUPS_OF_STEP)
                .bind(run.0)
                .bind(step as i64)
                .fetch_all(&mut snapshot)
                .await
                .doing(DOING)?;
            Ok(Some(groups(&mut snapshot, &ids, Scoring::Training).await?))
        })
    }

    /// Returns the groups with these numbers, in the order asked for, with the grades of this handle's scoring
    /// ([`judged_by`](Store::judged_by)).
    ///
    /// # Errors
    /// [`Error::Damaged`] if one of the groups is missing or not as it was written, or if the store cannot be read.
    pub fn groups(&self, ids: &[GroupId]) -> Result<Vec<StoredGroup>> {
        let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            groups(&mut snapshot, &ids, self.scoring).await
        })
    }
}

/// Returns the groups with these numbers, in the order asked for, with the verdicts of this scoring.
pub(crate) async fn groups(connection: &mut Connection, ids: &[i64], scoring: Scoring) -> Result<Vec<StoredGroup>> {
    let mut groups = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(GROUPS_AT_ONCE) {
        let rows = fetch_in(connection, GROUPS, chunk, "").await?;
        let mut verdicts = verdict::of_groups(connection, chunk, scoring).await?;
        let mut samples: HashMap<i64, Vec<(SampleId, Sample)>> = HashMap::new();
        for row in fetch_in(connection, SAMPLES, chunk, SAMPLES_ORDER).await? {
            samples.entry(get(&row, "group_id")?).or_default().push(sample(&row)?);
        }
        let rows: HashMap<i64, Row> = rows.into_iter().map(|row| Ok((get(&row, "id")?, row))).collect::<Result<_>>()?;
        for id in chunk {
            let row = rows.get(id).ok_or_else(|| damaged(format!("group {id} is missing")))?;
            // A group may be asked for twice, so its parts are copied.
            groups.push(group(row, samples.get(id).cloned().unwrap_or_default(), &mut verdicts)?);
        }
    }
    Ok(groups)
}

/// Every row whose key is one of `ids`, which are at most [`GROUPS_AT_ONCE`].
pub(crate) async fn fetch_in(connection: &mut Connection, select: &str, ids: &[i64], order: &str) -> Result<Vec<Row>> {
    // Always the same number of placeholders, so that the statement is prepared once.
    let mut query = sql::query(format!("{select}{}{order}", sql::places(1, GROUPS_AT_ONCE)));
    for place in 0..GROUPS_AT_ONCE {
        query = query.bind(ids.get(place).or(ids.last()));
    }
    query.fetch_all(connection).await.doing(DOING)
}

fn group(row: &Row, samples: Vec<(SampleId, Sample)>, verdicts: &mut HashMap<i64, Verdict>) -> Result<StoredGroup> {
    let id = GroupId(get(row, "id")?);
    let (sample_ids, samples): (Vec<SampleId>, Vec<Sample>) = samples.into_iter().unzip();
    let verdicts = sample_ids.iter().map(|id| verdicts.get(&id.0).cloned().unwrap_or_default()).collect();
    let group = Group {
        prompt: parse(row, "json")?,
        prompt_ids: blob::to_tokens(&get::<Vec<u8>>(row, "token_ids")?)
            .ok_or_else(|| damaged(format!("the prompt of group {id} has a torn token")))?,
        policy: PolicyVersion { version: get::<i64>(row, "version")? as u64, hash: get(row, "hash")? },
        settings: parse(row, "settings")?,
        samples,
    };
    Ok(StoredGroup {
        id,
        run: RunId(get(row, "run_id")?),
        step: get::<i64>(row, "step")? as u64,
        sample_ids,
        scored: GradedGroup::new(group, verdicts).map_err(|error| damaged(error.to_string()))?,
    })
}

fn sample(row: &Row) -> Result<(SampleId, Sample)> {
    let id = SampleId(get(row, "id")?);
    let length = get::<i64>(row, "length")? as usize;
    let finish: String = get(row, "finish")?;
    let mask: Option<Vec<u8>> = get(row, "mask")?;
    let sample = || {
        Some(Sample {
            ids: blob::to_tokens(&row.try_get::<Vec<u8>>("token_ids").ok()?)?,
            mask: blob::to_mask(mask.as_deref(), length)?,
            logprobs: blob::to_logprobs(&row.try_get::<Vec<u8>>("logprobs").ok()?)?,
            finish: Finish::parse(&finish)?,
            text: row.try_get("text").ok()?,
        })
    };
    let sample = sample().ok_or_else(|| damaged(format!("sample {id} cannot be decoded")))?;
    if sample.ids.len() != length || sample.logprobs.len() != length {
        return Err(damaged(format!("sample {id} should have {length} tokens")));
    }
    Ok((id, sample))
}

pub(crate) fn get<T: Cell>(row: &Row, column: &str) -> Result<T> {
    row.try_get(column).doing(DOING)
}

pub(super) fn parse<T: DeserializeOwned>(row: &Row, column: &str) -> Result<T> {
    let json: String = get(row, column)?;
    serde_json::from_str(&json).map_err(|error| damaged(format!("the column `{column}` holds {json}: {error}")))
}

fn damaged(what: String) -> Error {
    Error::Damaged { what }
}
