//! Appending a step's samples: all of them or none, and never twice.

use crate::engine::time::now;
use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::id::FIRST_SCORING;
use crate::rows::run::RunKind;
use crate::rows::{blob, run, verdict};
use crate::{Error, Result, RunId, Store};
use schema::{Grade, GradedGroup, Group, Sample, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
const STORED: &str = "SELECT g.place, g.id, s.id, s.place, s.hash
    FROM groups g LEFT JOIN samples s ON s.group_id = g.id
    WHERE g.run_id = $1 AND g.step = $2 ORDER BY g.place, s.place";
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

/// Greatest number of rows in a statement. One statement for many rows halves the time of an append; more rows gain
/// nothing.
const ROWS: usize = 64;

impl Store {
    /// Appends the samples of one step in one transaction: when this returns they are on the disk, and after an error
    /// or a crash none of them is. Appending a step a second time is an error that changes nothing. Groups that workers
    /// appended for this step ([`finish_job`](Store::finish_job)) stay, and get their rewards.
    ///
    /// `adapter` is the location of the weights of the newest policy among the groups; `None` if they are not kept.
    ///
    /// # Errors
    /// [`Error::StepExists`] if the step was appended before; [`Error::Inconsistent`] if a sample's lists differ in
    /// length or a grade or its weight is not finite; [`Error::NoSuchRun`] if there is no such run;
    /// [`Error::PolicyChanged`] if a policy's version is in the store with another hash; [`Error::AskedOtherwise`] if
    /// workers appended other samples for the step; or if the store cannot be written.
    pub fn append_step(&self, run: RunId, step: u64, groups: &[GradedGroup], adapter: Option<&str>) -> Result<()> {
        check(groups)?;
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            let kind = run::by_id(&mut transaction, run).await?.kind;
            let all: Vec<(usize, &Group)> = groups.iter().map(GradedGroup::group).enumerate().collect();
            match collect_step(&mut transaction, run, step, groups).await {
                // The first try was committed, and its answer was lost with the connection.
                Err(Error::StepExists { .. })
                    if transaction.is_repeated() && is_stored(&mut transaction, run, step, &all).await? =>
                {
                    return Ok(());
                }
                collected => collected?,
            }
            let policies = add_policies(&mut transaction, run, kind, &all, adapter).await?;
            let drawn = drawn_by_workers(&mut transaction, run, step, &all).await?;
            let new: Vec<(usize, &Group)> =
                all.into_iter().filter(|(place, _)| !drawn.groups.contains_key(place)).collect();
            let new_ids = add_groups(&mut transaction, run, step, &new, &policies).await?;
            let mut sample_ids = add_samples(&mut transaction, &new, &new_ids).await?;
            sample_ids.extend(drawn.samples);
            let mut group_ids = drawn.groups;
            group_ids.extend(new.iter().map(|(place, _)| *place).zip(new_ids));
            add_verdicts(&mut transaction, groups, &group_ids, &sample_ids).await?;
            transaction.commit().await.doing(DOING)
        })
    }
}

/// Refuses samples and grades that could not be read back as they were.
fn check(groups: &[GradedGroup]) -> Result<()> {
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
    let is_flawed = |grade: &Grade| grade.value().is_some_and(|value| !value.is_finite());
    if let Some(part) = verdict.rewards.iter().find(|part| !part.weight.is_finite() || is_flawed(&part.grade)) {
        let (name, value, weight) = (&part.name, part.grade.value(), part.weight);
        return Some(format!(
            "its reward `{name}` is {value:?} with weight {weight}; a reward that cannot be judged must be none, not NaN"
        ));
    }
    let comparison = verdict.comparisons.iter().find(|comparison| is_flawed(&comparison.win))?;
    let (judge, rival, win) = (&comparison.judge, comparison.rival, comparison.win.value());
    Some(format!("its comparison with {rival:?} by the judge `{judge}` is {win:?}, which is no probability"))
}

async fn collect_step(connection: &mut Connection, run: RunId, step: u64, groups: &[GradedGroup]) -> Result<()> {
    let samples = || groups.iter().flat_map(|scored| &scored.group().samples);
    let done = sql::query(COLLECT_STEP)
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

/// Adds the policy versions of these groups, and returns their rows by version. Each group stands beside its index.
///
/// Several writers may add the same rows at the same time. They do it in the same order, so that none of them waits for
/// another that waits for it.
///
/// # Errors
/// [`Error::PolicyChanged`] if a version is in the store with another hash, or if the store cannot be written.
pub(crate) async fn add_policies(
    connection: &mut Connection,
    run: RunId,
    kind: RunKind,
    groups: &[(usize, &Group)],
    adapter: Option<&str>,
) -> Result<HashMap<u64, i64>> {
    // Every group's hash is compared, but most name a version that another one named.
    let policies: BTreeSet<(u64, &str)> =
        groups.iter().map(|(_, group)| (group.policy.version, &group.policy.hash[..])).collect();
    let newest = policies.last().map(|(version, _)| *version);
    let mut ids = HashMap::new();
    for (version, hash) in policies {
        let (id, stored): (i64, String) = sql::query_as(POLICY)
            .bind(run.0)
            .bind(version as i64)
            .bind(hash)
            .bind(adapter.filter(|_| Some(version) == newest))
            .bind(now())
            .bind(kind.origin())
            .fetch_one(&mut *connection)
            .await
            .doing(DOING)?;
        if stored != hash {
            return Err(Error::PolicyChanged { run, version, stored, given: hash.to_owned() });
        }
        ids.insert(version, id);
    }
    Ok(ids)
}

/// A prompt's hash, and that of its tokens.
type PromptKey = (String, String);

/// The rows of the groups' prompts, which may be older than the run.
async fn prompt_ids(connection: &mut Connection, groups: &[(usize, &Group)]) -> Result<Vec<i64>> {
    let keys: Vec<PromptKey> = groups
        .iter()
        .map(|(_, group)| (group.prompt.hash(), blob::sha256(&blob::from_tokens(&group.prompt_ids))))
        .collect();
    let distinct: BTreeMap<&PromptKey, &Group> = keys.iter().zip(groups.iter().map(|(_, group)| *group)).collect();
    let mut ids = HashMap::with_capacity(distinct.len());
    for (key, group) in distinct {
        ids.insert(key, prompt_id(connection, key, group).await?);
    }
    Ok(keys.iter().map(|key| ids[key]).collect())
}

async fn prompt_id(connection: &mut Connection, (hash, token_hash): &PromptKey, group: &Group) -> Result<i64> {
    // A pruning beside us may be about to remove it.
    let found: Option<i64> = sql::query_scalar(format!("{FIND_PROMPT} {}", connection.engine().keep()))
        .bind(hash)
        .bind(token_hash)
        .fetch_optional(&mut *connection)
        .await
        .doing(DOING)?;
    if let Some(id) = found {
        return Ok(id);
    }
    sql::query_scalar(ADD_PROMPT)
        .bind(hash)
        .bind(token_hash)
        .bind(group.prompt.question())
        .bind(&group.prompt.answer)
        .bind(json(&group.prompt))
        .bind(group.prompt_ids.len() as i64)
        .bind(blob::from_tokens(&group.prompt_ids))
        .fetch_one(connection)
        .await
        .doing(DOING)
}

/// The rows that workers have appended for a step already.
struct Drawn {
    /// Rows of groups, by index in the step.
    groups: HashMap<usize, i64>,
    /// Rows of samples, by their group's row and their index in it.
    samples: HashMap<(i64, usize), i64>,
}

/// Finds the rows that workers have appended for a step, which must be among those that are appended now.
async fn drawn_by_workers(
    connection: &mut Connection,
    run: RunId,
    step: u64,
    groups: &[(usize, &Group)],
) -> Result<Drawn> {
    type Row = (i64, i64, Option<i64>, Option<i64>, Option<String>);
    let rows: Vec<Row> =
        sql::query_as(STORED).bind(run.0).bind(step as i64).fetch_all(connection).await.doing(DOING)?;
    let mut drawn = Drawn { groups: HashMap::new(), samples: HashMap::new() };
    for rows in rows.chunk_by(|one, next| one.1 == next.1) {
        let (place, id) = (rows[0].0 as usize, rows[0].1);
        let stored = || {
            rows.iter().filter_map(|(_, _, sample, place, hash)| Some(((*sample)?, (*place)? as usize, hash.clone())))
        };
        let Some((_, group)) = groups.get(place) else { return Err(Error::AskedOtherwise { run, step }) };
        let hashes = group.samples.iter().map(|sample| Some(Columns::of(sample).hash(sample)));
        if !stored().map(|(.., hash)| hash).eq(hashes) {
            return Err(Error::AskedOtherwise { run, step });
        }
        drawn.samples.extend(stored().map(|(sample, place, _)| ((id, place), sample)));
        drawn.groups.insert(place, id);
    }
    Ok(drawn)
}

/// Adds the groups, each beside its index in the step, and returns their rows in the same order.
///
/// # Errors
/// If the store cannot be written, or holds a group at the same index of the step.
pub(crate) async fn add_groups(
    connection: &mut Connection,
    run: RunId,
    step: u64,
    groups: &[(usize, &Group)],
    policies: &HashMap<u64, i64>,
) -> Result<Vec<i64>> {
    let prompts = prompt_ids(connection, groups).await?;
    let mut ids = HashMap::with_capacity(groups.len());
    let rows: Vec<(&(usize, &Group), i64)> = groups.iter().zip(prompts).collect();
    for chunk in rows.chunks(ROWS) {
        let mut insert = sql::query_as(ADD_GROUPS.sql(chunk.len()));
        for ((place, group), prompt) in chunk {
            insert = insert
                .bind(run.0)
                .bind(step as i64)
                .bind(*place as i64)
                .bind(prompt)
                .bind(policies[&group.policy.version])
                .bind(json(&group.settings));
        }
        let added: Vec<(i64, i64)> = insert.fetch_all(&mut *connection).await.doing(DOING)?;
        ids.extend(added);
    }
    Ok(groups.iter().map(|(place, _)| ids[&(*place as i64)]).collect())
}

/// Returns true if these are the groups that the store has for a step.
async fn is_stored(connection: &mut Connection, run: RunId, step: u64, groups: &[(usize, &Group)]) -> Result<bool> {
    match drawn_by_workers(connection, run, step, groups).await {
        Ok(stored) => Ok(stored.groups.len() == groups.len()),
        Err(Error::AskedOtherwise { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The lists of a sample as bytes, in the order and form of their columns.
struct Columns {
    mask: Option<Vec<u8>>,
    ids: Vec<u8>,
    logprobs: Vec<u8>,
}

impl Columns {
    fn of(sample: &Sample) -> Self {
        Self {
            mask: blob::from_mask(&sample.mask),
            ids: blob::from_tokens(&sample.ids),
            logprobs: blob::from_logprobs(&sample.logprobs),
        }
    }

    fn hash(&self, sample: &Sample) -> String {
        blob::sample_hash(sample.finish.as_str(), &sample.text, self.mask.as_deref(), &self.ids, &self.logprobs)
    }
}

/// Adds the samples, and returns the row of each by its group's row and its index in the group.
///
/// # Errors
/// If the store cannot be written.
pub(crate) async fn add_samples(
    connection: &mut Connection,
    groups: &[(usize, &Group)],
    group_ids: &[i64],
) -> Result<HashMap<(i64, usize), i64>> {
    let samples: Vec<(i64, usize, &Sample)> = groups
        .iter()
        .zip(group_ids)
        .flat_map(|((_, group), id)| group.samples.iter().enumerate().map(|(place, sample)| (*id, place, sample)))
        .collect();
    let mut ids = HashMap::with_capacity(samples.len());
    for chunk in samples.chunks(ROWS) {
        let mut insert = sql::query_as(ADD_SAMPLES.sql(chunk.len()));
        for (group_id, place, sample) in chunk {
            let columns = Columns::of(sample);
            let hash = columns.hash(sample);
            insert = insert
                .bind(group_id)
                .bind(*place as i64)
                .bind(sample.len() as i64)
                .bind(sample.finish.as_str())
                .bind(sample.logprobs.iter().map(|logprob| f64::from(*logprob)).sum::<f64>())
                .bind(&sample.text)
                .bind(columns.mask)
                .bind(columns.ids)
                .bind(columns.logprobs)
                .bind(hash);
        }
        let added: Vec<(i64, i64, i64)> = insert.fetch_all(&mut *connection).await.doing(DOING)?;
        ids.extend(added.into_iter().map(|(group_id, place, id)| ((group_id, place as usize), id)));
    }
    Ok(ids)
}

async fn add_verdicts(
    connection: &mut Connection,
    groups: &[GradedGroup],
    group_ids: &HashMap<usize, i64>,
    sample_ids: &HashMap<(i64, usize), i64>,
) -> Result<()> {
    let verdicts: Vec<(i64, &Verdict)> = groups
        .iter()
        .enumerate()
        .flat_map(|(place, graded)| {
            let id = group_ids[&place];
            graded.verdicts().iter().enumerate().map(move |(place, verdict)| (sample_ids[&(id, place)], verdict))
        })
        .collect();
    verdict::add(connection, FIRST_SCORING, &verdicts, DOING).await
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a record of strings and numbers is JSON")
}

/// An INSERT of any number of rows.
pub(crate) struct Insert {
    pub(crate) into: &'static str,
    pub(crate) columns: usize,
    pub(crate) returning: &'static str,
}

impl Insert {
    /// `INSERT INTO … VALUES ($1, $2), ($3, $4) RETURNING …`
    pub(crate) fn sql(&self, rows: usize) -> String {
        format!("INSERT INTO {} VALUES {} {}", self.into, sql::places(rows, self.columns), self.returning)
    }
}
