//! Appending a step's samples: all of them or none, and never twice.

use crate::error::Doing;
use crate::run::RunKind;
use crate::scoring::FIRST_SCORING;
use crate::sqlite::BEGIN_WRITE;
use crate::time::now;
use crate::{Error, Result, RunId, Store, blob, run};
use schema::{Part, PartStatus, PolicyVersion, Sample, ScoredGroup, Verdict};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use std::collections::HashMap;

const DOING: &str = "appending a step's samples";

// The row of the step is also the lock on it: a second append changes no row.
const COLLECT_STEP: &str = "INSERT INTO steps (run_id, step, groups, samples, tokens, collected_at)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (run_id, step) DO UPDATE SET groups = excluded.groups, samples = excluded.samples,
        tokens = excluded.tokens, collected_at = excluded.collected_at
    WHERE steps.collected_at IS NULL";
const POLICY: &str = "INSERT INTO policies (run_id, version, hash, adapter, created_at, origin)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (run_id, version) DO UPDATE SET adapter = COALESCE(excluded.adapter, policies.adapter)
    RETURNING id, hash";
pub(crate) const FIND_PROMPT: &str = "SELECT id FROM prompts WHERE hash = $1 AND token_hash = $2";
const ADD_PROMPT: &str = "INSERT INTO prompts (hash, token_hash, question, answer, json, length, token_ids)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (hash, token_hash) DO UPDATE SET hash = excluded.hash
    RETURNING id";
const ADD_GROUPS: Insert = Insert {
    into: "groups (run_id, step, place, prompt_id, policy_id, settings)",
    columns: 6,
    returning: "RETURNING place, id",
};
const ADD_SAMPLES: Insert = Insert {
    into: "samples (group_id, place, length, finish, logprob_sum, text, mask, token_ids, logprobs, hash)",
    columns: 10,
    returning: "RETURNING group_id, place, id",
};
const ADD_REWARDS: Insert = Insert {
    into: "rewards (sample_id, scoring, place, name, version, weight, value, status, created_at)",
    columns: 9,
    returning: "",
};

/// Rows a statement. One statement for many rows halves the time of an append; more rows gain nothing.
const ROWS: usize = 64;

impl Store {
    /// Appends the samples of one step in one transaction: when this returns they are on the disk, and after an error
    /// or a crash none of them is. Appending a step a second time is an error that changes nothing.
    ///
    /// `adapter` says where the weights of the newest policy among the groups are kept, if they are.
    pub fn append_step(&self, run: RunId, step: u64, groups: &[ScoredGroup], adapter: Option<&str>) -> Result<()> {
        check(groups)?;
        self.with(async |connection| {
            let mut transaction = connection.begin_with(BEGIN_WRITE).await.doing(DOING)?;
            let kind = run::by_id(&mut transaction, run).await?.kind;
            collect_step(&mut transaction, run, step, groups).await?;
            let policies = add_policies(&mut transaction, run, kind, groups, adapter).await?;
            let group_ids = add_groups(&mut transaction, run, step, groups, &policies).await?;
            let sample_ids = add_samples(&mut transaction, groups, &group_ids).await?;
            add_rewards(&mut transaction, groups, &group_ids, &sample_ids).await?;
            transaction.commit().await.doing(DOING)
        })
    }
}

/// Refuses what could not be read back as it was.
fn check(groups: &[ScoredGroup]) -> Result<()> {
    for (group, scored) in groups.iter().enumerate() {
        for (sample, (drawn, verdict)) in scored.group().samples.iter().zip(scored.verdicts()).enumerate() {
            if let Some(reason) = flaw(drawn, verdict) {
                return Err(Error::Inconsistent { group, sample, reason });
            }
        }
    }
    Ok(())
}

fn flaw(sample: &Sample, verdict: &Verdict) -> Option<String> {
    let (ids, mask, logprobs) = (sample.ids.len(), sample.mask.len(), sample.logprobs.len());
    if mask != ids || logprobs != ids {
        return Some(format!("it has {ids} tokens, {mask} entries in its mask and {logprobs} log-probabilities"));
    }
    let part = verdict
        .parts
        .iter()
        .find(|part| !part.weight.is_finite() || part.value.is_some_and(|value| !value.is_finite()))?;
    let (name, value, weight) = (&part.name, part.value, part.weight);
    Some(format!(
        "its reward `{name}` is {value:?} with weight {weight}; a reward that cannot be judged must be none, not NaN"
    ))
}

async fn collect_step(connection: &mut SqliteConnection, run: RunId, step: u64, groups: &[ScoredGroup]) -> Result<()> {
    let samples = || groups.iter().flat_map(|scored| &scored.group().samples);
    let done = sqlx::query(COLLECT_STEP)
        .bind(run.0)
        .bind(step as i64)
        .bind(groups.len() as i64)
        .bind(samples().count() as i64)
        .bind(samples().map(Sample::len).sum::<usize>() as i64)
        .bind(now())
        .execute(connection)
        .await
        .doing(DOING)?;
    if done.rows_affected() == 0 { Err(Error::StepExists { run, step }) } else { Ok(()) }
}

/// The row of each policy version.
async fn add_policies(
    connection: &mut SqliteConnection,
    run: RunId,
    kind: RunKind,
    groups: &[ScoredGroup],
    adapter: Option<&str>,
) -> Result<HashMap<u64, i64>> {
    let mut ids = HashMap::new();
    let newest = groups.iter().map(|scored| scored.group().policy.version).max();
    for scored in groups {
        let policy = &scored.group().policy;
        // Every group's hash is compared, but most name a version that we have just seen.
        if ids.contains_key(policy) {
            continue;
        }
        let PolicyVersion { version, hash } = policy;
        let (id, stored): (i64, String) = sqlx::query_as(POLICY)
            .bind(run.0)
            .bind(*version as i64)
            .bind(hash)
            .bind(adapter.filter(|_| Some(*version) == newest))
            .bind(now())
            .bind(kind.origin())
            .fetch_one(&mut *connection)
            .await
            .doing(DOING)?;
        if stored != *hash {
            return Err(Error::PolicyChanged { run, version: *version, stored, given: hash.clone() });
        }
        ids.insert(policy, id);
    }
    Ok(ids.into_iter().map(|(policy, id)| (policy.version, id)).collect())
}

/// The row of a group's prompt, which may be older than the run.
async fn prompt_id(connection: &mut SqliteConnection, scored: &ScoredGroup) -> Result<i64> {
    let group = scored.group();
    let token_ids = blob::from_tokens(&group.prompt_ids);
    let (hash, token_hash) = (group.prompt.hash(), blob::sha256(&token_ids));
    let found: Option<i64> = sqlx::query_scalar(FIND_PROMPT)
        .bind(&hash)
        .bind(&token_hash)
        .fetch_optional(&mut *connection)
        .await
        .doing(DOING)?;
    if let Some(id) = found {
        return Ok(id);
    }
    sqlx::query_scalar(ADD_PROMPT)
        .bind(hash)
        .bind(token_hash)
        .bind(group.prompt.question())
        .bind(&group.prompt.answer)
        .bind(json(&group.prompt))
        .bind(group.prompt_ids.len() as i64)
        .bind(token_ids)
        .fetch_one(connection)
        .await
        .doing(DOING)
}

/// The row of each group, in their order.
async fn add_groups(
    connection: &mut SqliteConnection,
    run: RunId,
    step: u64,
    groups: &[ScoredGroup],
    policies: &HashMap<u64, i64>,
) -> Result<Vec<i64>> {
    let mut ids = vec![0; groups.len()];
    let places: Vec<usize> = (0..groups.len()).collect();
    for chunk in places.chunks(ROWS) {
        let mut rows = Vec::with_capacity(chunk.len());
        for place in chunk {
            rows.push((*place, prompt_id(connection, &groups[*place]).await?));
        }
        let sql = ADD_GROUPS.sql(rows.len());
        let mut insert = sqlx::query_as(AssertSqlSafe(sql));
        for (place, prompt) in rows {
            let group = groups[place].group();
            insert = insert
                .bind(run.0)
                .bind(step as i64)
                .bind(place as i64)
                .bind(prompt)
                .bind(policies[&group.policy.version])
                .bind(json(&group.settings));
        }
        let added: Vec<(i64, i64)> = insert.fetch_all(&mut *connection).await.doing(DOING)?;
        for (place, id) in added {
            ids[place as usize] = id;
        }
    }
    Ok(ids)
}

/// The row of each sample, by its group's row and its place in the group.
async fn add_samples(
    connection: &mut SqliteConnection,
    groups: &[ScoredGroup],
    group_ids: &[i64],
) -> Result<HashMap<(i64, usize), i64>> {
    let samples: Vec<(i64, usize, &Sample)> = groups
        .iter()
        .zip(group_ids)
        .flat_map(|(scored, id)| scored.group().samples.iter().enumerate().map(|(place, sample)| (*id, place, sample)))
        .collect();
    let mut ids = HashMap::with_capacity(samples.len());
    for chunk in samples.chunks(ROWS) {
        let mut insert = sqlx::query_as(AssertSqlSafe(ADD_SAMPLES.sql(chunk.len())));
        for (group_id, place, sample) in chunk {
            let (mask, ids) = (blob::from_mask(&sample.mask), blob::from_tokens(&sample.ids));
            let logprobs = blob::from_logprobs(&sample.logprobs);
            let hash = blob::sample_hash(sample.finish.as_str(), &sample.text, mask.as_deref(), &ids, &logprobs);
            // SQLite keeps NaN as NULL.
            insert = insert
                .bind(group_id)
                .bind(*place as i64)
                .bind(sample.len() as i64)
                .bind(sample.finish.as_str())
                .bind(sample.logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>())
                .bind(&sample.text)
                .bind(mask)
                .bind(ids)
                .bind(logprobs)
                .bind(hash);
        }
        let added: Vec<(i64, i64, i64)> = insert.fetch_all(&mut *connection).await.doing(DOING)?;
        ids.extend(added.into_iter().map(|(group_id, place, id)| ((group_id, place as usize), id)));
    }
    Ok(ids)
}

async fn add_rewards(
    connection: &mut SqliteConnection,
    groups: &[ScoredGroup],
    group_ids: &[i64],
    sample_ids: &HashMap<(i64, usize), i64>,
) -> Result<()> {
    let verdicts = groups.iter().zip(group_ids).flat_map(|(scored, id)| {
        scored.verdicts().iter().enumerate().map(|(place, verdict)| (sample_ids[&(*id, place)], verdict))
    });
    add_parts(connection, &part_rows(FIRST_SCORING, verdicts), DOING).await
}

/// A row of `rewards`, but for its moment.
pub(crate) struct PartRow<'a> {
    sample_id: i64,
    scoring: i64,
    place: i64,
    part: &'a Part,
}

/// The rows that these samples' verdicts make in a scoring.
pub(crate) fn part_rows<'a>(scoring: i64, verdicts: impl Iterator<Item = (i64, &'a Verdict)>) -> Vec<PartRow<'a>> {
    let row = |sample_id, place, part| PartRow { sample_id, scoring, place, part };
    verdicts
        .flat_map(|(sample_id, verdict)| {
            (0i64..).zip(&verdict.parts).map(move |(place, part)| row(sample_id, place, part))
        })
        .collect()
}

/// Adds rows of `rewards`.
pub(crate) async fn add_parts(
    connection: &mut SqliteConnection,
    rows: &[PartRow<'_>],
    doing: &'static str,
) -> Result<()> {
    let created_at = now();
    for chunk in rows.chunks(ROWS) {
        let mut insert = sqlx::query(AssertSqlSafe(ADD_REWARDS.sql(chunk.len())));
        for PartRow { sample_id, scoring, place, part } in chunk {
            insert = insert
                .bind(sample_id)
                .bind(scoring)
                .bind(place)
                .bind(&part.name)
                .bind(&part.version)
                .bind(part.weight)
                .bind(part.value.map(f64::from))
                .bind(status(&part.status))
                .bind(created_at);
        }
        insert.execute(&mut *connection).await.doing(doing)?;
    }
    Ok(())
}

/// The column `rewards.status`.
fn status(status: &PartStatus) -> String {
    match status {
        PartStatus::Judged => "judged".into(),
        PartStatus::Unjudged(reason) => format!("unjudged: {reason}"),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a record of strings and numbers is JSON")
}

/// An INSERT of any number of rows.
struct Insert {
    into: &'static str,
    columns: usize,
    returning: &'static str,
}

impl Insert {
    /// `INSERT INTO … VALUES ($1, $2), ($3, $4) RETURNING …`
    fn sql(&self, rows: usize) -> String {
        let row = |row: usize| {
            let places: Vec<String> =
                (1..=self.columns).map(|column| format!("${}", row * self.columns + column)).collect();
            format!("({})", places.join(", "))
        };
        let values: Vec<String> = (0..rows).map(row).collect();
        format!("INSERT INTO {} VALUES {} {}", self.into, values.join(", "), self.returning)
    }
}
