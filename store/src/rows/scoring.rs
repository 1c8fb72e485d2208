//! Grading stored samples again: a new reward over old rows, with no generation.
//!
//! One pass of grading is a *scoring*. Scoring 0 holds the grades that training saw and never changes; each later one
//! gets the next number, keeps the `[[reward]]` tables it was made with, and counts as the latest once it is finished.
//! Rows are added some groups at a time, each time in a short transaction, so that a training run beside it never waits
//! long; a scoring that was broken off stays visible under its number and is never the latest.
//!
//! The views speak of scoring 0. A store opened [`Store::judged_by`] another scoring has temporary views of the same
//! names, which only the queries of that handle see.

use crate::engine::time::{now, words};
use crate::engine::{Access, Connection, Engine, sql};
use crate::error::Doing;
use crate::id::FIRST_SCORING;
use crate::rows::read::StoredGroup;
use crate::rows::verdict;
use crate::table::{Table, Value};
use crate::{Error, GroupId, Result, RunId, SampleId, Scoring, Store};
use schema::{GradedGroup, Verdict};

const BEGIN_SCORING: &str = "INSERT INTO scorings (run_id, config, created_at) VALUES ($1, $2, $3) RETURNING id";
const FINISH_SCORING: &str = "UPDATE scorings SET finished_at = $2 WHERE id = $1";
const KNOWN: &str = "SELECT COUNT(*) FROM scorings WHERE id = $1";
const SCORINGS: &str = "SELECT c.id, runs.name, c.created_at, c.finished_at,
        (SELECT COUNT(DISTINCT r.sample_id) FROM rewards r WHERE r.scoring = c.id), c.config
    FROM scorings c LEFT JOIN runs ON runs.id = c.run_id ORDER BY c.id";
const NEXT_GROUPS: &str = "SELECT id FROM groups WHERE id > $1 AND run_id = COALESCE($2, run_id) ORDER BY id LIMIT $3";
const SAMPLES: &str = "SELECT COUNT(*) FROM samples s JOIN groups g ON g.id = s.group_id
    WHERE g.run_id = COALESCE($1, g.run_id)";
const VIEWS: &str = "SELECT name, sql FROM sqlite_schema WHERE type = 'view' ORDER BY rowid";

impl Store {
    /// Returns the same store with the grades of this scoring in all queries: views, reports, exports and SQL alike.
    /// Training and resuming are not affected; they always see scoring 0.
    ///
    /// # Errors
    /// [`Error::NoSuchScoring`] if there is no such scoring, or if the engine refuses the temporary views.
    pub fn judged_by(mut self, scoring: Scoring) -> Result<Self> {
        const DOING: &str = "choosing a scoring";
        self.with(async |connection| {
            check(connection, scoring).await?;
            match connection.engine() {
                Engine::Sqlite => {
                    let views: Vec<(String, String)> = sql::query_as(VIEWS).fetch_all(connection).await.doing(DOING)?;
                    // Temporary views live in memory and change no file, but `query_only` would refuse them too.
                    let kept: i64 = sql::query_scalar("PRAGMA query_only").fetch_one(connection).await.doing(DOING)?;
                    let mut script = "PRAGMA temp_store = MEMORY; PRAGMA query_only = OFF;\n".to_owned();
                    for (name, sql) in views {
                        let sql = scoring.applied_to(&sql).replacen("CREATE VIEW", "CREATE TEMP VIEW", 1);
                        script.extend(["DROP VIEW IF EXISTS temp.", &name, ";\n", &sql, ";\n"]);
                    }
                    script.push_str(if kept == 0 { "" } else { "PRAGMA query_only = ON;" });
                    connection.script(script).await.doing(DOING)
                }
                Engine::Postgres => connection.script(self.views_on_server(scoring)).await.doing(DOING),
            }
        })?;
        if self.engine() == Engine::Postgres {
            self.session().begin_with(self.views_on_server(scoring));
        }
        self.scoring = scoring;
        Ok(self)
    }

    /// The temporary views of a scoring, as one script.
    fn views_on_server(&self, scoring: Scoring) -> String {
        let mut script = Engine::Postgres.begin(Access::Scratch).to_owned();
        for sql in self.migrations().iter().flat_map(|(_, migration)| views_of(migration)) {
            let view = scoring.applied_to(sql).replacen("CREATE VIEW", "CREATE OR REPLACE TEMP VIEW", 1);
            script.extend([";\n", &view]);
        }
        script.push_str(";\nCOMMIT");
        script
    }

    /// Begins a new scoring of one run's samples, or of all, and returns its number; `config` has the `[[reward]]`
    /// tables that grade, as TOML.
    ///
    /// # Errors
    /// If there is no such run, or the store cannot be written.
    pub fn begin_scoring(&self, run: Option<RunId>, config: &str) -> Result<i64> {
        self.with_once(async |connection| {
            sql::query_scalar(BEGIN_SCORING)
                .bind(run.map(|run| run.0))
                .bind(config)
                .bind(now())
                .fetch_one(connection)
                .await
                .doing("beginning a scoring")
        })
    }

    /// Adds verdicts to a scoring, all of them or none: those of `scored`, each group beside the numbers of its
    /// samples.
    ///
    /// # Errors
    /// If one of the samples is not in the store or has a verdict of this scoring already, or if the store cannot be
    /// written.
    pub fn add_scores(&self, scoring: i64, scored: &[(Vec<SampleId>, GradedGroup)]) -> Result<()> {
        const DOING: &str = "adding a scoring's verdicts";
        let verdicts: Vec<(i64, &Verdict)> =
            scored.iter().flat_map(|(ids, group)| ids.iter().map(|id| id.0).zip(group.verdicts())).collect();
        self.with_once(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            verdict::add(&mut transaction, scoring, &verdicts, DOING).await?;
            transaction.commit().await.doing(DOING)
        })
    }

    /// Makes a scoring the latest of the samples that it graded.
    ///
    /// # Errors
    /// [`Error::NoSuchScoring`] if there is no such scoring, or if the store cannot be written.
    pub fn finish_scoring(&self, scoring: i64) -> Result<()> {
        self.with(async |connection| {
            let done = sql::query(FINISH_SCORING).bind(scoring).bind(now()).execute(connection).await;
            match done.doing("finishing a scoring")?.rows_affected() {
                0 => Err(Error::NoSuchScoring(scoring)),
                _ => Ok(()),
            }
        })
    }

    /// Returns the next groups behind `after` (all, from [`GroupId::FIRST`] on), at most `count` of them, in the order
    /// of their numbers, with the grades of this handle's scoring.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a group is not as it was written, or if the store cannot be read.
    pub fn groups_after(&self, run: Option<RunId>, after: GroupId, count: usize) -> Result<Vec<StoredGroup>> {
        const DOING: &str = "walking through the groups";
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let ids: Vec<i64> = sql::query_scalar(NEXT_GROUPS)
                .bind(after.0)
                .bind(run.map(|run| run.0))
                .bind(count as i64)
                .fetch_all(&mut snapshot)
                .await
                .doing(DOING)?;
            crate::rows::read::groups(&mut snapshot, &ids, self.scoring).await
        })
    }

    /// Counts the samples of a run, or of all runs for `None`.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub fn count_samples(&self, run: Option<RunId>) -> Result<u64> {
        self.with(async |connection| {
            let count: i64 = sql::query_scalar(SAMPLES)
                .bind(run.map(|run| run.0))
                .fetch_one(connection)
                .await
                .doing("counting the samples")?;
            Ok(count as u64)
        })
    }

    /// Returns one row per later scoring: its number, the run that it grades, its beginning, its status, the number of
    /// its samples, and its config.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn scorings(&self) -> Result<Table> {
        type Row = (i64, Option<String>, i64, Option<i64>, i64, String);
        self.with(async |connection| {
            let rows: Vec<Row> = sql::query_as(SCORINGS).fetch_all(connection).await.doing("listing the scorings")?;
            let mut table = Table::new(["scoring", "run", "began", "status", "samples", "config"]);
            for (id, run, began, finished, samples, config) in rows {
                table.push(vec![
                    id.into(),
                    run.unwrap_or_else(|| "every run".into()).into(),
                    words(began).into(),
                    Value::from(if finished.is_some() { "finished" } else { "unfinished" }),
                    samples.into(),
                    config.into(),
                ]);
            }
            Ok(table)
        })
    }
}

/// Refuses a number that no scoring has.
///
/// # Errors
/// [`Error::NoSuchScoring`] if there is no such scoring, or if the store cannot be read.
pub(crate) async fn check(connection: &mut Connection, scoring: Scoring) -> Result<()> {
    let Scoring::Number(number) = scoring else { return Ok(()) };
    let known: i64 =
        sql::query_scalar(KNOWN).bind(number).fetch_one(connection).await.doing("looking for a scoring")?;
    if known == 0 && number != FIRST_SCORING { Err(Error::NoSuchScoring(number)) } else { Ok(()) }
}

/// The views that a migration makes, each as it stands there. The server itself would tell of them in other words.
pub(crate) fn views_of(migration: &'static str) -> impl Iterator<Item = &'static str> {
    let starts = migration.match_indices("\nCREATE VIEW ").map(|(at, _)| &migration[at + 1..]);
    starts.map(|view| view.split_once(";\n").map_or(view, |(view, _)| view))
}
