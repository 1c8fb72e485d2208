//! Runs, and their records of each step: metrics and checkpoints.

use super::read::parse;
use crate::engine::time::{micros, moment, now};
use crate::engine::{Connection, Row, sql};
use crate::error::Doing;
use crate::{Error, Result, RunId, Store};
use schema::{Metrics, SamplerSettings};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::SystemTime;

const BEGIN_RUN: &str = "INSERT INTO runs
    (name, status, config, program_version, model_hash, out_dir, started_at, kind)
    VALUES ($1, 'running', $2, $3, $4, $5, $6, $7) RETURNING id";
const RUN: &str = "SELECT * FROM runs WHERE id = $1";
const RUNS: &str = "SELECT * FROM runs ORDER BY id";
const RUN_NAMED: &str = "SELECT * FROM runs WHERE name = $1 ORDER BY id DESC LIMIT 1";
const RUN_NAMES: &str = "SELECT name FROM runs GROUP BY name ORDER BY MAX(id) DESC LIMIT 10";
const FINISH_RUN: &str = "UPDATE runs SET status = $2, finished_at = $3 WHERE id = $1";
const FINISH_STEP: &str = "INSERT INTO steps (run_id, step, metrics, finished_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (run_id, step) DO UPDATE SET metrics = excluded.metrics, finished_at = excluded.finished_at";
const METRICS: &str = "SELECT step, metrics FROM steps WHERE run_id = $1 AND metrics IS NOT NULL ORDER BY step";
const CHECKPOINT: &str = "INSERT INTO checkpoints (run_id, step, path, hash, created_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (run_id, step) DO UPDATE
    SET path = excluded.path, hash = excluded.hash, created_at = excluded.created_at";

const SETTINGS: &str = "SELECT DISTINCT settings FROM groups WHERE run_id = $1 ORDER BY settings";

const READING: &str = "reading a run";

/// The status of a run. A run whose process was killed still says `Running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStatus {
    /// Under way, or killed.
    Running,
    /// All its steps are done.
    Finished,
    /// Stopped by its user; it can be resumed.
    Interrupted,
    /// Stopped by an error.
    Failed,
}

impl RunStatus {
    /// The word in the column `runs.status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }

    /// The reverse of [`RunStatus::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Running, Self::Finished, Self::Interrupted, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// The origin of a run's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Training sampled them.
    Training,
    /// They were brought in from elsewhere, and a model of ours computed the log-probabilities beside them.
    Import,
}

impl RunKind {
    /// The word in the column `runs.kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Import => "import",
        }
    }

    /// The reverse of [`RunKind::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Training, Self::Import].into_iter().find(|kind| kind.as_str() == word)
    }

    /// The word in the column `policies.origin`.
    pub(crate) fn origin(self) -> &'static str {
        match self {
            Self::Training => "drawn",
            Self::Import => "imported",
        }
    }
}

/// The properties of a run that are known when it begins.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its name, which several runs may share.
    pub name: String,
    /// The resolved config, as TOML.
    pub config: String,
    /// The version of the program that begins it.
    pub program_version: String,
    /// The run folder; of an import, the file that was imported.
    pub out_dir: PathBuf,
    /// The identity of the base model, as a hash.
    pub model_hash: String,
    /// The moment when it began.
    pub started_at: SystemTime,
}

/// A run as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its number in the store.
    pub id: RunId,
    /// Its name, which several runs may share.
    pub name: String,
    /// The origin of its samples.
    pub kind: RunKind,
    /// Its status.
    pub status: RunStatus,
    /// The resolved config, as TOML.
    pub config: String,
    /// The version of the program that began it.
    pub program_version: String,
    /// The run folder; of an import, the file that was imported.
    pub out_dir: PathBuf,
    /// The identity of the base model, as a hash.
    pub model_hash: String,
    /// The moment when it began, to the microsecond.
    pub started_at: SystemTime,
    /// The moment when it ended; `None` while it runs.
    pub finished_at: Option<SystemTime>,
}

impl Store {
    /// Adds a run, with the status [`RunStatus::Running`].
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn begin_run(&self, run: &NewRun) -> Result<RunId> {
        self.begin(run, RunKind::Training)
    }

    /// Adds a run for samples from elsewhere. The policy of every group that is appended to it is marked: it computed
    /// the log-probabilities and did not sample.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn begin_import(&self, run: &NewRun) -> Result<RunId> {
        self.begin(run, RunKind::Import)
    }

    fn begin(&self, run: &NewRun, kind: RunKind) -> Result<RunId> {
        self.with_once(async |connection| {
            sql::query_scalar(BEGIN_RUN)
                .bind(&run.name)
                .bind(&run.config)
                .bind(&run.program_version)
                .bind(&run.model_hash)
                .bind(run.out_dir.to_string_lossy())
                .bind(micros(run.started_at))
                .bind(kind.as_str())
                .fetch_one(connection)
                .await
                .map(RunId)
                .doing("adding a run")
        })
    }

    /// Returns the run with this number.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if there is no such run, or if the store cannot be read.
    pub fn run(&self, run: RunId) -> Result<Run> {
        self.with(async |connection| by_id(connection, run).await)
    }

    /// Returns every run, oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn runs(&self) -> Result<Vec<Run>> {
        self.with(async |connection| {
            let rows = sql::query(RUNS).fetch_all(connection).await.doing("listing the runs")?;
            rows.iter().map(from_row).collect()
        })
    }

    /// Returns the newest run with this name, or else the run with this number.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if there is no such run, or if the store cannot be read.
    pub fn find_run(&self, name_or_number: &str) -> Result<Run> {
        self.with(async |connection| {
            let named = sql::query(RUN_NAMED).bind(name_or_number).fetch_optional(&mut *connection).await;
            if let Some(row) = named.doing("looking for a run")? {
                return from_row(&row);
            }
            match name_or_number.parse() {
                Ok(number) => by_id(connection, RunId(number)).await,
                Err(_) => Err(no_such_run(connection, name_or_number).await?),
            }
        })
    }

    /// Returns the different settings that a run sampled with.
    ///
    /// # Errors
    /// If the store cannot be read, or holds settings of a later version.
    pub fn settings_of(&self, run: RunId) -> Result<Vec<SamplerSettings>> {
        self.with(async |connection| {
            let rows =
                sql::query(SETTINGS).bind(run.0).fetch_all(connection).await.doing("reading a run's settings")?;
            rows.iter().map(|row| parse(row, "settings")).collect()
        })
    }

    /// Sets the status of a run that ended, or that goes on again ([`RunStatus::Running`]).
    ///
    /// # Errors
    /// [`Error::NoSuchRun`] if there is no such run, or if the store cannot be written.
    pub fn finish_run(&self, run: RunId, status: RunStatus) -> Result<()> {
        let finished_at = (status != RunStatus::Running).then(now);
        self.with(async |connection| {
            let done = sql::query(FINISH_RUN)
                .bind(run.0)
                .bind(status.as_str())
                .bind(finished_at)
                .execute(&mut *connection)
                .await
                .doing("noting how a run ended")?;
            match done.rows_affected() {
                0 => Err(no_such_run(connection, &run.to_string()).await?),
                _ => Ok(()),
            }
        })
    }

    /// Keeps the metrics of a step; a later call for the same step replaces them.
    ///
    /// # Errors
    /// If there is no such run, or the store cannot be written.
    pub fn finish_step(&self, run: RunId, step: u64, metrics: &Metrics) -> Result<()> {
        self.with(async |connection| {
            sql::query(FINISH_STEP)
                .bind(run.0)
                .bind(step as i64)
                .bind(to_json(metrics))
                .bind(now())
                .execute(connection)
                .await
                .doing("keeping a step's metrics")?;
            Ok(())
        })
    }

    /// Returns the metrics of every finished step of a run, in order. A number that was infinite comes back as NaN.
    ///
    /// # Errors
    /// [`Error::Damaged`] if stored metrics are not JSON numbers, or if the store cannot be read.
    pub fn metrics(&self, run: RunId) -> Result<Vec<(u64, Metrics)>> {
        self.with(async |connection| metrics_of(connection, run).await)
    }

    /// Records the location of a step's checkpoint, and the hash of its content.
    ///
    /// # Errors
    /// If there is no such run, or the store cannot be written.
    pub fn checkpoint(&self, run: RunId, step: u64, path: &str, hash: &str) -> Result<()> {
        self.with(async |connection| {
            sql::query(CHECKPOINT)
                .bind(run.0)
                .bind(step as i64)
                .bind(path)
                .bind(hash)
                .bind(now())
                .execute(connection)
                .await
                .doing("noting a checkpoint")?;
            Ok(())
        })
    }
}

/// The metrics of every finished step of a run, in order.
///
/// # Errors
/// [`Error::Damaged`] if stored metrics are not JSON numbers, or if the store cannot be read.
pub(crate) async fn metrics_of(connection: &mut Connection, run: RunId) -> Result<Vec<(u64, Metrics)>> {
    let rows: Vec<(i64, String)> =
        sql::query_as(METRICS).bind(run.0).fetch_all(connection).await.doing("reading metrics")?;
    rows.into_iter().map(|(step, json)| Ok((step as u64, from_json(&json, step)?))).collect()
}

/// Returns the run with this number, or an error that lists those that exist.
///
/// # Errors
/// [`Error::NoSuchRun`] if there is no such run, or if the store cannot be read.
pub(crate) async fn by_id(connection: &mut Connection, run: RunId) -> Result<Run> {
    let row = sql::query(RUN).bind(run.0).fetch_optional(&mut *connection).await.doing("looking for a run")?;
    match row {
        Some(row) => from_row(&row),
        None => Err(no_such_run(connection, &run.to_string()).await?),
    }
}

async fn no_such_run(connection: &mut Connection, wanted: &str) -> Result<Error> {
    let names: Vec<String> = sql::query_scalar(RUN_NAMES).fetch_all(connection).await.doing("listing the runs")?;
    let known = if names.is_empty() { "it holds no run yet".into() } else { format!("it holds {}", names.join(", ")) };
    Ok(Error::NoSuchRun { wanted: wanted.to_owned(), known })
}

fn from_row(row: &Row) -> Result<Run> {
    let word: String = row.try_get("status").doing(READING)?;
    let id = RunId(row.try_get("id").doing(READING)?);
    let Some(status) = RunStatus::parse(&word) else {
        return Err(Error::Damaged { what: format!("run {id} has the unknown status `{word}`") });
    };
    let word: String = row.try_get("kind").doing(READING)?;
    let Some(kind) = RunKind::parse(&word) else {
        return Err(Error::Damaged { what: format!("run {id} is of the unknown kind `{word}`") });
    };
    let finished_at: Option<i64> = row.try_get("finished_at").doing(READING)?;
    Ok(Run {
        id,
        kind,
        status,
        name: row.try_get("name").doing(READING)?,
        config: row.try_get("config").doing(READING)?,
        program_version: row.try_get("program_version").doing(READING)?,
        out_dir: PathBuf::from(row.try_get::<String>("out_dir").doing(READING)?),
        model_hash: row.try_get("model_hash").doing(READING)?,
        started_at: moment(row.try_get("started_at").doing(READING)?),
        finished_at: finished_at.map(moment),
    })
}

/// JSON knows neither NaN nor infinities: they become null.
fn to_json(metrics: &Metrics) -> String {
    metrics.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Value>().to_string()
}

fn from_json(json: &str, step: i64) -> Result<Metrics> {
    let damaged = || Error::Damaged { what: format!("the metrics of step {step} are not JSON numbers") };
    let values: Map<String, Value> = serde_json::from_str(json).map_err(|_| damaged())?;
    let mut metrics = Metrics::new();
    for (name, value) in values {
        let number = if value.is_null() { f64::NAN } else { value.as_f64().ok_or_else(damaged)? };
        metrics.set(name, number);
    }
    Ok(metrics)
}
