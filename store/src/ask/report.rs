//! The reports that people ask for most: all runs, the statistics of each policy, one sample, one run.

use crate::engine::{Access, Connection, FromRow, Row, sql, time};
use crate::error::Doing;
use crate::rows::read;
use crate::rows::run::{Run, by_id};
use crate::rows::verdict::{Part, Status};
use crate::table::{Table, Value};
use crate::{Error, Result, RunId, SampleId, Store};
use schema::{PromptInput, Verdict};
use serde::Serialize;

const DOING: &str = "summing up";

const RUN_IDS: &str = "SELECT id FROM runs ORDER BY id";
const PROGRESS: &str = "SELECT COUNT(*) AS steps, CAST(COALESCE(SUM(samples), 0) AS BIGINT) AS samples,
        CAST(COALESCE(SUM(tokens), 0) AS BIGINT) AS tokens,
        MIN(CASE WHEN groups > 0 THEN step END) AS first_step, MAX(CASE WHEN groups > 0 THEN step END) AS last_step
    FROM steps WHERE run_id = $1";
const STEP_REWARD: &str = "SELECT AVG(t.reward) FROM groups g JOIN samples s ON s.group_id = g.id
    JOIN reward_view t ON t.sample_id = s.id WHERE g.run_id = $1 AND g.step = $2";
const LAST_CHECKPOINT: &str = "SELECT path FROM checkpoints WHERE run_id = $1 ORDER BY step DESC LIMIT 1";
const GROUP_OF_SAMPLE: &str = "SELECT group_id FROM samples WHERE id = $1";
// Sums rather than means and deviations, which are left to Rust: not every SQLite has sqrt(). Materialized, so that a
// sample's reward is summed up once and not at every mention.
const POLICY_SUMS: &str = "WITH judged AS MATERIALIZED (
        SELECT g.id AS group_id, g.policy_id, s.length, s.finish, t.reward
        FROM groups g JOIN samples s ON s.group_id = g.id JOIN reward_view t ON t.sample_id = s.id
        WHERE g.run_id = COALESCE($1, g.run_id)),
    per_group AS (
        SELECT policy_id, COUNT(*) AS samples, SUM(length) AS tokens, COUNT(reward) AS judged,
            SUM(reward) AS reward, SUM(reward * reward) AS reward_squared,
            SUM(CASE WHEN finish = 'length' THEN 1 ELSE 0 END) AS clipped,
            CASE WHEN MAX(reward) > MIN(reward) THEN 0 ELSE 1 END AS no_signal
        FROM judged GROUP BY group_id, policy_id)
    SELECT runs.name AS run, runs.id AS run_id, p.version, p.hash, p.origin,
        (SELECT MAX(newest.version) FROM policies newest WHERE newest.run_id = p.run_id) - p.version AS age,
        (SELECT AVG(json_extract(t.metrics, '$.effective_sample_share')) FROM steps t WHERE t.run_id = p.run_id
            AND t.step IN (SELECT g.step FROM groups g WHERE g.policy_id = p.id)) AS ess,
        COUNT(*) AS groups,
        CAST(SUM(x.samples) AS BIGINT) AS samples, CAST(SUM(x.tokens) AS BIGINT) AS tokens,
        CAST(SUM(x.judged) AS BIGINT) AS judged, SUM(x.reward) AS reward, SUM(x.reward_squared) AS reward_squared,
        CAST(SUM(x.clipped) AS BIGINT) AS clipped, CAST(SUM(x.no_signal) AS BIGINT) AS no_signal
    FROM per_group x JOIN policies p ON p.id = x.policy_id JOIN runs ON runs.id = p.run_id
    GROUP BY p.id, runs.id, runs.name, p.version, p.hash, p.origin ORDER BY runs.id, p.version";

impl Store {
    /// Returns one row per run, oldest first: its status, the number of its samples and tokens, and the mean reward of
    /// its first and its last step.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Table> {
        const COLUMNS: [&str; 10] =
            ["id", "run", "kind", "status", "started", "steps", "samples", "tokens", "reward_first", "reward_last"];
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let ids: Vec<i64> = sql::query_scalar(RUN_IDS).fetch_all(&mut snapshot).await.doing(DOING)?;
            let mut table = Table::new(COLUMNS);
            for id in ids {
                let run = by_id(&mut snapshot, RunId(id)).await?;
                let progress = progress(&mut snapshot, run.id).await?;
                table.push(vec![
                    id.into(),
                    run.name.into(),
                    run.kind.as_str().into(),
                    run.status.as_str().into(),
                    time::words(time::micros(run.started_at)).into(),
                    progress.steps.into(),
                    progress.samples.into(),
                    progress.tokens.into(),
                    step_reward(&mut snapshot, run.id, progress.first_step).await?.into(),
                    step_reward(&mut snapshot, run.id, progress.last_step).await?.into(),
                ]);
            }
            Ok(table)
        })
    }

    /// Returns one row per policy version, of one run or of all. `age` is the number of versions that the run's newest
    /// samples are ahead: the staleness of these rows if they were replayed now. `reward_std` divides by n - 1.
    /// `clipped` is the share of samples that the token limit cut off, `no_signal` the share of groups in which no two
    /// rewards differ. `ess` is the effective sample share that the trainer measured when it learned from these rows,
    /// from the steps' metrics; of old rows under a newer policy the store cannot know it, because that takes the newer
    /// policy's log-probabilities.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn stats(&self, run: Option<RunId>) -> Result<Table> {
        const COLUMNS: [&str; 16] = [
            "run",
            "run_id",
            "policy",
            "hash",
            "origin",
            "age",
            "groups",
            "samples",
            "tokens",
            "unjudged",
            "reward_mean",
            "reward_std",
            "length_mean",
            "clipped",
            "no_signal",
            "ess",
        ];
        self.with(async |connection| {
            let sums: Vec<PolicySums> =
                sql::query_as(POLICY_SUMS).bind(run.map(|run| run.0)).fetch_all(connection).await.doing(DOING)?;
            let mut table = Table::new(COLUMNS);
            table.rows = sums.into_iter().map(PolicySums::row).collect();
            Ok(table)
        })
    }

    /// Returns one sample in one row: its prompt, its text, its grades, its tokens and log-probabilities, and where it
    /// comes from.
    ///
    /// # Errors
    /// [`Error::NoSuchSample`] if there is no such sample, or if the store cannot be read.
    pub fn show_sample(&self, sample: SampleId) -> Result<Table> {
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let group: Option<i64> =
                sql::query_scalar(GROUP_OF_SAMPLE).bind(sample.0).fetch_optional(&mut snapshot).await.doing(DOING)?;
            let group = group.ok_or(Error::NoSuchSample(sample.0))?;
            let groups = read::groups(&mut snapshot, &[group], self.scoring).await?;
            let run = by_id(&mut snapshot, groups[0].run).await?;
            sample_record(&groups[0], sample, &run)
        })
    }

    /// Returns one run in one row: its status, its counts, the mean reward of its first and its last step, its last
    /// checkpoint, and its config.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if there is no such run, or if the store cannot be read.
    pub fn show_run(&self, run: RunId) -> Result<Table> {
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let run = by_id(&mut snapshot, run).await?;
            let progress = progress(&mut snapshot, run.id).await?;
            let checkpoint: Option<String> =
                sql::query_scalar(LAST_CHECKPOINT).bind(run.id.0).fetch_optional(&mut snapshot).await.doing(DOING)?;
            let reward_first = step_reward(&mut snapshot, run.id, progress.first_step).await?;
            let reward_last = step_reward(&mut snapshot, run.id, progress.last_step).await?;
            Ok(record([
                ("id", run.id.0.into()),
                ("run", run.name.into()),
                ("kind", run.kind.as_str().into()),
                ("status", run.status.as_str().into()),
                ("started", time::words(time::micros(run.started_at)).into()),
                ("finished", run.finished_at.map(|moment| time::words(time::micros(moment))).into()),
                ("program_version", run.program_version.into()),
                ("model_hash", run.model_hash.into()),
                ("out_dir", run.out_dir.to_string_lossy().into_owned().into()),
                ("last_checkpoint", checkpoint.into()),
                ("steps", progress.steps.into()),
                ("samples", progress.samples.into()),
                ("tokens", progress.tokens.into()),
                ("reward_first", reward_first.into()),
                ("reward_last", reward_last.into()),
                ("config", run.config.into()),
            ]))
        })
    }
}

struct Progress {
    steps: i64,
    samples: i64,
    tokens: i64,
    first_step: Option<i64>,
    last_step: Option<i64>,
}

impl FromRow for Progress {
    fn from_row(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            steps: row.try_get("steps")?,
            samples: row.try_get("samples")?,
            tokens: row.try_get("tokens")?,
            first_step: row.try_get("first_step")?,
            last_step: row.try_get("last_step")?,
        })
    }
}

async fn progress(connection: &mut Connection, run: RunId) -> Result<Progress> {
    sql::query_as(PROGRESS).bind(run.0).fetch_one(connection).await.doing(DOING)
}

async fn step_reward(connection: &mut Connection, run: RunId, step: Option<i64>) -> Result<Option<f64>> {
    sql::query_scalar(STEP_REWARD).bind(run.0).bind(step).fetch_one(connection).await.doing(DOING)
}

struct PolicySums {
    run: String,
    run_id: i64,
    version: i64,
    hash: String,
    origin: String,
    age: i64,
    ess: Option<f64>,
    groups: i64,
    samples: i64,
    tokens: i64,
    judged: i64,
    reward: Option<f64>,
    reward_squared: Option<f64>,
    clipped: i64,
    no_signal: i64,
}

impl FromRow for PolicySums {
    fn from_row(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            run: row.try_get("run")?,
            run_id: row.try_get("run_id")?,
            version: row.try_get("version")?,
            hash: row.try_get("hash")?,
            origin: row.try_get("origin")?,
            age: row.try_get("age")?,
            ess: row.try_get("ess")?,
            groups: row.try_get("groups")?,
            samples: row.try_get("samples")?,
            tokens: row.try_get("tokens")?,
            judged: row.try_get("judged")?,
            reward: row.try_get("reward")?,
            reward_squared: row.try_get("reward_squared")?,
            clipped: row.try_get("clipped")?,
            no_signal: row.try_get("no_signal")?,
        })
    }
}

impl PolicySums {
    fn row(self) -> Vec<Value> {
        let share = |part: i64, whole: i64| part as f64 / whole as f64;
        let mean = self.reward.map(|sum| sum / self.judged as f64);
        vec![
            self.run.clone().into(),
            self.run_id.into(),
            self.version.into(),
            self.hash.chars().take(12).collect::<String>().into(),
            self.origin.clone().into(),
            self.age.into(),
            self.groups.into(),
            self.samples.into(),
            self.tokens.into(),
            (self.samples - self.judged).into(),
            mean.into(),
            self.deviation().into(),
            share(self.tokens, self.samples).into(),
            share(self.clipped, self.samples).into(),
            share(self.no_signal, self.groups).into(),
            self.ess.into(),
        ]
    }

    /// The standard deviation of the rewards, from their sum and the sum of their squares.
    fn deviation(&self) -> Option<f64> {
        let n = self.judged as f64;
        let variance = (self.reward_squared? - self.reward?.powi(2) / n) / (n - 1.0);
        (self.judged > 1).then(|| variance.max(0.0).sqrt())
    }
}

fn sample_record(group: &read::StoredGroup, id: SampleId, run: &Run) -> Result<Table> {
    let place = group.sample_ids.iter().position(|other| *other == id).ok_or(Error::NoSuchSample(id.0))?;
    let (drawn, verdict) = (group.scored.group(), &group.scored.verdicts()[place]);
    let sample = &drawn.samples[place];
    let trained = sample.mask.iter().filter(|trained| **trained).count();
    let logprob_sum: f64 = sample.logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
    let input = match &drawn.prompt.input {
        PromptInput::Text(text) => text.clone(),
        PromptInput::Messages(turns) => {
            turns.iter().map(|turn| format!("[{}] {}", turn.role, turn.content)).collect::<Vec<_>>().join("\n")
        }
    };
    Ok(record([
        ("sample_id", id.0.into()),
        ("run", run.name.clone().into()),
        ("run_id", run.id.0.into()),
        ("step", (group.step as i64).into()),
        ("group_id", group.id.0.into()),
        ("place", (place as i64).into()),
        ("policy_version", (drawn.policy.version as i64).into()),
        ("policy_hash", drawn.policy.hash.clone().into()),
        ("prompt", input.into()),
        ("answer", drawn.prompt.answer.clone().into()),
        ("metadata", json(&drawn.prompt.metadata).into()),
        ("completion", sample.text.clone().into()),
        ("finish", sample.finish.as_str().into()),
        ("reward", verdict.total().map(f64::from).into()),
        ("parts", parts_in_words(verdict).into()),
        ("length", (sample.len() as i64).into()),
        ("trained_tokens", (trained as i64).into()),
        ("logprob_sum", logprob_sum.into()),
        ("settings", json(&drawn.settings).into()),
        ("prompt_ids", json(&drawn.prompt_ids).into()),
        ("completion_ids", json(&sample.ids).into()),
        ("logprobs", json(&sample.logprobs).into()),
    ]))
}

/// One line per part: `exact 1 x 0.5 (version 2)`.
fn parts_in_words(verdict: &Verdict) -> String {
    let line = |part: &Part| {
        let value = match (&part.status, part.value) {
            (Status::Judged, Some(value)) => value.to_string(),
            (Status::Judged, None) => "none".into(),
            (Status::Unjudged(reason), _) => format!("unjudged ({reason})"),
        };
        format!("{} {value} x {} (version {})", part.name, part.weight, part.version)
    };
    Part::of(verdict).iter().map(line).collect::<Vec<_>>().join("\n")
}

/// JSON, with each `f32` as short as it can be.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a record of strings and numbers is JSON")
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Table {
    let mut table = Table::new(fields.iter().map(|(name, _)| *name));
    table.push(fields.map(|(_, value)| value).into());
    table
}
