//! Making room: removing the samples of old steps, never those that a run still needs.
//!
//! Whole steps go, oldest first, each in a transaction of its own, with the prompts and policies that no other step has,
//! and with a pause behind it, so that a training run beside it waits for one step at most. A pruning that is killed has
//! removed whole steps. What is small stays: the run, the step's row with its metrics, the checkpoints; so a pruned run can still
//! be plotted, compared and listed. The three counts of a pruned step become 0, replay no longer finds it, and reading
//! it back is an error that says why.
//!
//! A run that may be resumed (any that is not finished) keeps every step from [`MARGIN`] steps before its newest
//! checkpoint on: the steps behind the checkpoint are read back instead of sampled again, and those before it may be in
//! the window of its replay. A replay without a limit on age chooses other groups after a pruning than before.

use super::shrink::shrink;
use super::sweep::Unused;
use super::turns;
use crate::engine::time::now;
use crate::engine::{Access, Connection, Engine, FromRow, Row, sql};
use crate::error::Doing;
use crate::table::Table;
use crate::{Error, Result, RunId, Store};
use tokio::time::Instant;

const DOING: &str = "pruning";

/// Steps before the newest checkpoint that a run which may be resumed keeps for its replay.
pub const MARGIN: u64 = 16;

const STEPS: &str = "SELECT t.run_id, runs.name, runs.kind, runs.status, t.step, t.samples, t.tokens, t.collected_at,
        (SELECT MAX(x.step) FROM steps x WHERE x.run_id = t.run_id AND x.collected_at IS NOT NULL) AS newest,
        (SELECT MAX(c.step) FROM checkpoints c WHERE c.run_id = t.run_id) AS checkpoint,
        (SELECT MAX(p.version) FROM groups g JOIN policies p ON p.id = g.policy_id
            WHERE g.run_id = t.run_id AND g.step = t.step) AS policy
    FROM steps t JOIN runs ON runs.id = t.run_id
    WHERE t.samples > 0 AND t.pruned_at IS NULL
    ORDER BY t.collected_at, t.run_id, t.step";
const REMOVE: [&str; 5] = [
    "DELETE FROM rewards WHERE sample_id IN
        (SELECT s.id FROM groups g JOIN samples s ON s.group_id = g.id WHERE g.run_id = $1 AND g.step = $2)",
    "DELETE FROM comparisons WHERE sample_id IN
        (SELECT s.id FROM groups g JOIN samples s ON s.group_id = g.id WHERE g.run_id = $1 AND g.step = $2)",
    "DELETE FROM samples WHERE group_id IN (SELECT id FROM groups WHERE run_id = $1 AND step = $2)",
    "DELETE FROM groups WHERE run_id = $1 AND step = $2",
    "DELETE FROM jobs WHERE run_id = $1 AND step = $2",
];
const MARK: &str =
    "UPDATE steps SET groups = 0, samples = 0, tokens = 0, pruned_at = $3 WHERE run_id = $1 AND step = $2";

/// The rules of a pruning. A step goes if any of them names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    /// Of this run alone; of every run if absent.
    pub run: Option<RunId>,
    /// All but the newest this many steps of each run.
    pub keep_steps: Option<u64>,
    /// Those sampled by policy versions below this. Imported rows have no version of their own, and stay.
    pub below_policy: Option<u64>,
    /// The oldest, until the store is estimated to be at most this large, in bytes.
    pub max_bytes: Option<u64>,
}

/// The outcome of a pruning, or of its rehearsal.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// One row per run: the steps that go, from and to, and what they hold.
    pub runs: Table,
    /// Steps that go.
    pub steps: u64,
    /// Samples that go.
    pub samples: u64,
    /// Steps that a rule named, but that a run still needs.
    pub still_needed: u64,
    /// Prompts and policies that went because no step has them any more: left by a pruning that was killed in an
    /// earlier version, or in use at that moment. 0 in a rehearsal.
    pub swept: u64,
    /// The room that the rows of the store took before, in bytes.
    pub bytes_before: u64,
    /// The room that they take afterwards, in bytes: estimated in a rehearsal.
    pub bytes_after: u64,
    /// The reason why the store still takes more room than its rows need, and what to try, as a sentence; `None` if
    /// all was given back to the file system, and in a rehearsal.
    pub kept_room: Option<String>,
}

impl Store {
    /// Returns the outcome that [`prune`](Store::prune) would have, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] if the rule names no steps by number, policy version or size; [`Error::NoSuchRun`] if its run
    /// does not exist; or if the store cannot be read.
    pub fn rehearse_prune(&self, rule: &Prune) -> Result<Pruned> {
        Ok(self.with(async |connection| choose(connection, rule).await)?.0)
    }

    /// Removes the samples of the steps that the rule names, and gives free room back to the file system, that of an
    /// earlier pruning too.
    ///
    /// # Errors
    /// As [`rehearse_prune`](Store::rehearse_prune), or if a step cannot be removed; the steps before it are gone then.
    pub fn prune(&self, rule: &Prune) -> Result<Pruned> {
        self.with_once(async |connection| {
            let (mut pruned, steps) = choose(connection, rule).await?;
            for step in &steps {
                let began = Instant::now();
                remove(connection, step).await?;
                turns::leave_to_others(began).await;
            }
            for piece in Unused::anywhere(connection).await?.pieces() {
                let began = Instant::now();
                let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
                pruned.swept += piece.remove(&mut transaction).await?;
                transaction.commit().await.doing(DOING)?;
                turns::leave_to_others(began).await;
            }
            let kept_room = shrink(connection).await?;
            let removed = pruned.steps + pruned.swept > 0;
            // A server's tables always have free room.
            pruned.kept_room = kept_room.filter(|_| removed || self.engine() == Engine::Sqlite);
            pruned.bytes_after = bytes(connection).await?;
            Ok(pruned)
        })
    }
}

/// A step that has samples.
#[derive(Debug, Clone)]
struct Step {
    run: i64,
    run_name: String,
    imported: bool,
    finished: bool,
    number: i64,
    samples: i64,
    tokens: i64,
    newest: i64,
    checkpoint: Option<i64>,
    policy: Option<i64>,
}

impl FromRow for Step {
    fn from_row(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            run: row.try_get("run_id")?,
            run_name: row.try_get("name")?,
            imported: row.try_get::<String>("kind")? == "import",
            finished: row.try_get::<String>("status")? == "finished",
            number: row.try_get("step")?,
            samples: row.try_get("samples")?,
            tokens: row.try_get("tokens")?,
            newest: row.try_get("newest")?,
            checkpoint: row.try_get("checkpoint")?,
            policy: row.try_get("policy")?,
        })
    }
}

impl Step {
    /// Returns true if its run may ask for it again.
    fn is_needed(&self) -> bool {
        let kept_from = self.checkpoint.map_or(i64::MIN, |checkpoint| checkpoint - MARGIN as i64);
        !self.imported && !self.finished && self.number >= kept_from
    }

    /// Roughly the bytes that it takes: four for a token id, four for its log-probability, some for its text, and what
    /// the rows of a sample and its rewards cost whatever their length.
    fn weight(&self) -> f64 {
        12.0 * self.tokens as f64 + 400.0 * self.samples as f64
    }
}

/// Chooses the steps that go; returns their summary and the steps.
async fn choose(connection: &mut Connection, rule: &Prune) -> Result<(Pruned, Vec<Step>)> {
    if rule.keep_steps.is_none() && rule.below_policy.is_none() && rule.max_bytes.is_none() {
        return Err(Error::Setting("nothing says what to prune; give an age, a policy version or a size".into()));
    }
    let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
    if let Some(run) = rule.run {
        crate::rows::run::by_id(&mut snapshot, run).await?;
    }
    let all: Vec<Step> = sql::query_as(STEPS).fetch_all(&mut snapshot).await.doing(DOING)?;
    let before = bytes(&mut snapshot).await?;
    let total: f64 = all.iter().map(Step::weight).sum();
    let size_of = |steps: &[Step]| before as f64 * steps.iter().map(Step::weight).sum::<f64>() / total.max(1.0);

    let named = |step: &&Step| {
        let old = rule.keep_steps.is_some_and(|keep| step.newest - step.number >= keep as i64);
        let outgrown = rule.below_policy.is_some_and(|version| step.policy.is_some_and(|it| it < version as i64));
        old || (outgrown && !step.imported)
    };
    let ours = || all.iter().filter(|step| rule.run.is_none_or(|run| run.0 == step.run));
    let mut chosen: Vec<Step> = ours().filter(named).filter(|step| !step.is_needed()).cloned().collect();
    let mut still_needed = ours().filter(named).filter(|step| step.is_needed()).count() as u64;
    if let Some(most) = rule.max_bytes {
        let others: Vec<&Step> = ours().filter(|step| !named(step)).collect();
        for step in others {
            if before as f64 - size_of(&chosen) <= most as f64 {
                break;
            }
            if step.is_needed() {
                still_needed += 1;
            } else {
                chosen.push(step.clone());
            }
        }
    }
    let pruned = Pruned {
        runs: by_run(&chosen),
        steps: chosen.len() as u64,
        samples: chosen.iter().map(|step| step.samples as u64).sum(),
        still_needed,
        swept: 0,
        bytes_before: before,
        bytes_after: (before as f64 - size_of(&chosen)).max(0.0) as u64,
        kept_room: None,
    };
    Ok((pruned, chosen))
}

/// One row per run, in the order of their numbers.
fn by_run(steps: &[Step]) -> Table {
    let mut table = Table::new(["run", "run_id", "steps", "first", "last", "samples", "tokens"]);
    let mut runs: Vec<i64> = steps.iter().map(|step| step.run).collect();
    runs.sort_unstable();
    runs.dedup();
    for run in runs {
        let own: Vec<&Step> = steps.iter().filter(|step| step.run == run).collect();
        let sum = |value: fn(&Step) -> i64| own.iter().map(|step| value(step)).sum::<i64>();
        table.push(vec![
            own[0].run_name.clone().into(),
            run.into(),
            (own.len() as i64).into(),
            own.iter().map(|step| step.number).min().into(),
            own.iter().map(|step| step.number).max().into(),
            sum(|step| step.samples).into(),
            sum(|step| step.tokens).into(),
        ]);
    }
    table
}

async fn remove(connection: &mut Connection, step: &Step) -> Result<()> {
    let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
    let unused = Unused::of_step(&mut transaction, step.run, step.number).await?;
    for sql in REMOVE {
        sql::query(sql).bind(step.run).bind(step.number).execute(&mut transaction).await.doing(DOING)?;
    }
    unused.remove(&mut transaction).await?;
    sql::query(MARK).bind(step.run).bind(step.number).bind(now()).execute(&mut transaction).await.doing(DOING)?;
    transaction.commit().await.doing(DOING)
}

async fn bytes(connection: &mut Connection) -> Result<u64> {
    let bytes: i64 = sql::query_scalar(connection.engine().size()).fetch_one(connection).await.doing(DOING)?;
    Ok(bytes as u64)
}
