//! Sampling by other processes and machines: a queue of jobs under leases.
//!
//! A step's sampling is cut into jobs. A worker takes the oldest one that nobody has by one UPDATE, which leaves to
//! others what they are just taking (`FOR UPDATE SKIP LOCKED`, where there is more than one writer at a time), and has it
//! until its lease ends; while it draws it extends the lease. When a worker dies, its lease ends and the job is taken
//! again. What a job drew is appended in the transaction that makes it done, and that is conditional: on the worker, on
//! the attempt, and on nobody having done it. So a worker that was thought dead and comes back late is refused, and each
//! job has one result or none, whoever dies when. Leases are measured by the store's clock, because those of several
//! machines differ.
//!
//! Whoever waits is woken: by NOTIFY on `PostgreSQL`, by looking again on `SQLite`.

use crate::engine::postgres::Bell;
use crate::engine::sql::{self, Access, Connection, Engine};
use crate::engine::time::now;
use crate::engine::{DatabaseUrl, News};
use crate::error::Doing;
use crate::rows::append::{add_groups, add_policies, add_samples};
use crate::rows::{blob, read, run};
use crate::{Error, Result, RunId, Scoring, Store};
use schema::{Group, PolicyVersion};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

const KNOWN_JOBS: &str = "SELECT place, digest FROM jobs WHERE run_id = $1 AND step = $2";
const ADD_JOB: &str = "INSERT INTO jobs (run_id, step, place, groups, min_version, state, request, digest, created_at)
    VALUES ($1, $2, $3, $4, $5, 'ready', $6, $7, $8) ON CONFLICT (run_id, step, place) DO NOTHING";
// {now} and {skip_locked} are the engine's own.
const CLAIM: &str = "UPDATE jobs SET state = 'leased', worker = $1, leased_until = {now} + $2, attempts = attempts + 1
    WHERE id = (SELECT j.id FROM jobs j JOIN runs r ON r.id = j.run_id
        WHERE r.model_hash = $3 AND r.id = COALESCE($4, r.id) AND r.status = 'running'
            AND (j.state = 'ready' OR (j.state = 'leased' AND j.leased_until < {now}))
        ORDER BY j.step, j.id LIMIT 1 {skip_locked})
    RETURNING id, run_id, step, place, groups, min_version, request, attempts";
const EXTEND: &str = "UPDATE jobs SET leased_until = {now} + $4
    WHERE id = $1 AND worker = $2 AND attempts = $3 AND state = 'leased'";
const FINISH: &str = "UPDATE jobs SET state = 'done', request = NULL, leased_until = NULL, finished_at = $4
    WHERE id = $1 AND worker = $2 AND attempts = $3 AND state = 'leased'";
const RELEASE: &str = "UPDATE jobs SET state = 'ready', worker = NULL, leased_until = NULL
    WHERE id = $1 AND worker = $2 AND attempts = $3 AND state = 'leased'";
const PROGRESS: &str = "SELECT COUNT(*), COUNT(CASE WHEN state = 'done' THEN 1 END),
        CAST(COALESCE(SUM(CASE WHEN state = 'done' THEN groups ELSE 0 END), 0) AS BIGINT)
    FROM jobs WHERE run_id = $1 AND step = $2 AND place >= $3 AND place < $4";
const DRAWN: &str =
    "SELECT id FROM groups WHERE run_id = $1 AND step = $2 AND place >= $3 AND place < $4 ORDER BY place";
const FORGET_PUBLICATIONS: &str = "DELETE FROM publications WHERE run_id = $1 AND (version >= $2 OR version < $3)";
// The number is that of no step: later versions count steps, and those of other policies begin at 2^32.
const SUPERSEDE: &str =
    "UPDATE policies SET version = 8589934592 + id WHERE run_id = $1 AND version = $2 AND hash <> $3";
const SUPERSEDED: &str = "SELECT COUNT(*) FROM publications WHERE run_id = $1 AND version = $2 AND hash <> $3";
const PUBLISH: &str =
    "INSERT INTO publications (run_id, version, hash, adapter, created_at) VALUES ($1, $2, $3, $4, $5)";
const PUBLICATION: &str = "SELECT version, hash, adapter FROM publications WHERE run_id = $1 AND version < $2
    ORDER BY version DESC LIMIT 1";
const SEE_WORKER: &str = "INSERT INTO workers (name, model_hash, jobs, started_at, seen_at)
    VALUES ($1, $2, $3, {now}, {now})
    ON CONFLICT (name) DO UPDATE SET model_hash = excluded.model_hash, jobs = excluded.jobs, seen_at = excluded.seen_at";
const FORGET_WORKER: &str = "DELETE FROM workers WHERE name = $1";
const ALIVE: &str = "SELECT COUNT(*) FROM workers WHERE model_hash = $1 AND seen_at > {now} - $2";

/// How long whoever waits on `SQLite` sleeps before looking again.
const POLL: Duration = Duration::from_millis(20);

/// A piece of a step's sampling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// The place of its first group in the step.
    pub place: usize,
    /// How many groups it draws.
    pub groups: usize,
    /// The oldest policy version that may draw it.
    pub min_version: u64,
    /// What to draw, in words that the workers understand.
    pub request: String,
}

/// A job that somebody has for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job's number.
    pub job: i64,
    /// The run that asked for it.
    pub run: RunId,
    /// The step that will learn from it.
    pub step: u64,
    /// The place of its first group in the step.
    pub place: usize,
    /// How many groups it draws.
    pub groups: usize,
    /// The oldest policy version that may draw it.
    pub min_version: u64,
    /// What to draw.
    pub request: String,
    /// Who has it.
    pub worker: String,
    /// How often it has been leased, this time included.
    pub attempt: u64,
}

/// How far some jobs are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Jobs in all.
    pub jobs: u64,
    /// Jobs that are done.
    pub done: u64,
    /// Groups that they drew.
    pub groups: u64,
}

/// A policy version that workers may draw from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Which it is.
    pub policy: PolicyVersion,
    /// Where its adapter is.
    pub adapter: String,
}

impl Store {
    /// Asks for the jobs of a step; those that were asked for already stay as they are. Asking for another piece at the
    /// same place is an error: what is drawn already could not be told from what is wanted.
    pub fn enqueue(&self, run: RunId, step: u64, jobs: &[NewJob]) -> Result<()> {
        const DOING: &str = "asking for jobs";
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            let known: Vec<(i64, String)> = sql::query_as(KNOWN_JOBS)
                .bind(run.0)
                .bind(step as i64)
                .fetch_all(&mut transaction)
                .await
                .doing(DOING)?;
            let mut added = 0;
            for job in jobs {
                let digest = blob::sha256(job.request.as_bytes());
                if let Some((_, known)) = known.iter().find(|(place, _)| *place == job.place as i64) {
                    if *known != digest {
                        return Err(Error::AskedOtherwise { run, step });
                    }
                    continue;
                }
                let done = sql::query(ADD_JOB)
                    .bind(run.0)
                    .bind(step as i64)
                    .bind(job.place as i64)
                    .bind(job.groups as i64)
                    .bind(job.min_version as i64)
                    .bind(&job.request)
                    .bind(digest)
                    .bind(now())
                    .execute(&mut transaction)
                    .await
                    .doing(DOING)?;
                added += done.rows_affected();
            }
            if added > 0 {
                ring(&mut transaction, News::Jobs).await?;
            }
            transaction.commit().await.doing(DOING)
        })
    }

    /// Takes the oldest job that nobody has, of the earliest step, for so long: of one run, or of every running one
    /// whose base model is this. `None` if there is none.
    pub fn claim(&self, worker: &str, model_hash: &str, run: Option<RunId>, lease: Duration) -> Result<Option<Lease>> {
        type Row = (i64, i64, i64, i64, i64, i64, String, i64);
        let sql = self.spelled(CLAIM);
        self.with(async |connection| {
            let row: Option<Row> = sql::query_as(sql)
                .bind(worker)
                .bind(lease.as_micros() as i64)
                .bind(model_hash)
                .bind(run.map(|run| run.0))
                .fetch_optional(connection)
                .await
                .doing("taking a job")?;
            Ok(row.map(|(job, run, step, place, groups, min_version, request, attempt)| Lease {
                job,
                run: RunId(run),
                step: step as u64,
                place: place as usize,
                groups: groups as usize,
                min_version: min_version as u64,
                request,
                worker: worker.to_owned(),
                attempt: attempt as u64,
            }))
        })
    }

    /// Has a job for so long from now. `false` if somebody else has it by now, or did it.
    pub fn extend(&self, lease: &Lease, by: Duration) -> Result<bool> {
        let sql = self.spelled(EXTEND);
        self.with(async |connection| {
            let done = of(sql::query(sql), lease).bind(by.as_micros() as i64).execute(connection).await;
            Ok(done.doing("extending a lease")?.rows_affected() == 1)
        })
    }

    /// Gives a job back undone.
    pub fn release(&self, lease: &Lease) -> Result<()> {
        const DOING: &str = "giving a job back";
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            of(sql::query(RELEASE), lease).execute(&mut transaction).await.doing(DOING)?;
            ring(&mut transaction, News::Jobs).await?;
            transaction.commit().await.doing(DOING)
        })
    }

    /// Appends what a job drew and makes it done, both or neither. `false` if somebody else has the job by now, or did
    /// it, or if the run has made the policy anew that drew it: then nothing is appended.
    pub fn finish_job(&self, lease: &Lease, groups: &[Group]) -> Result<bool> {
        const DOING: &str = "appending a job's samples";
        if groups.len() != lease.groups {
            return Err(Error::Setting(format!(
                "job {} draws {} groups, not {}",
                lease.job,
                lease.groups,
                groups.len()
            )));
        }
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            if is_superseded(&mut transaction, lease.run, groups).await? {
                of(sql::query(RELEASE), lease).execute(&mut transaction).await.doing(DOING)?;
                ring(&mut transaction, News::Jobs).await?;
                transaction.commit().await.doing(DOING)?;
                return Ok(false);
            }
            let done = of(sql::query(FINISH), lease).bind(now()).execute(&mut transaction).await.doing(DOING)?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            let kind = run::by_id(&mut transaction, lease.run).await?.kind;
            let groups: Vec<(usize, &Group)> = (lease.place..).zip(groups).collect();
            let policies = add_policies(&mut transaction, lease.run, kind, &groups, None).await?;
            let ids = add_groups(&mut transaction, lease.run, lease.step, &groups, &policies).await?;
            add_samples(&mut transaction, &groups, &ids).await?;
            ring(&mut transaction, News::Results).await?;
            transaction.commit().await.doing(DOING)?;
            Ok(true)
        })
    }

    /// How far the jobs of these places of a step are.
    pub fn job_progress(&self, run: RunId, step: u64, places: std::ops::Range<usize>) -> Result<JobProgress> {
        self.with(async |connection| {
            let (jobs, done, groups): (i64, i64, i64) = sql::query_as(PROGRESS)
                .bind(run.0)
                .bind(step as i64)
                .bind(places.start as i64)
                .bind(places.end as i64)
                .fetch_one(connection)
                .await
                .doing("asking how far jobs are")?;
            Ok(JobProgress { jobs: jobs as u64, done: done as u64, groups: groups as u64 })
        })
    }

    /// What jobs drew for these places of a step, in order.
    pub fn drawn(&self, run: RunId, step: u64, places: std::ops::Range<usize>) -> Result<Vec<Group>> {
        const DOING: &str = "reading what jobs drew";
        self.with(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let ids: Vec<i64> = sql::query_scalar(DRAWN)
                .bind(run.0)
                .bind(step as i64)
                .bind(places.start as i64)
                .bind(places.end as i64)
                .fetch_all(&mut snapshot)
                .await
                .doing(DOING)?;
            let groups = read::groups(&mut snapshot, &ids, Scoring::Training).await?;
            Ok(groups.into_iter().map(|stored| stored.scored.group().clone()).collect())
        })
    }

    /// Lets workers draw from a policy whose adapter is at `adapter`. Newer versions, which a resumed run makes anew, are
    /// forgotten, and so are those below `oldest`. Where a resumed run on a GPU, or one that was rolled back, makes a version
    /// otherwise than before, what the earlier one drew keeps its hash under another number.
    pub fn publish(&self, run: RunId, policy: &PolicyVersion, adapter: &str, oldest: u64) -> Result<()> {
        const DOING: &str = "publishing a policy";
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            sql::query(FORGET_PUBLICATIONS)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(oldest as i64)
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            sql::query(SUPERSEDE)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(&policy.hash)
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            sql::query(PUBLISH)
                .bind(run.0)
                .bind(policy.version as i64)
                .bind(&policy.hash)
                .bind(adapter)
                .bind(now())
                .execute(&mut transaction)
                .await
                .doing(DOING)?;
            transaction.commit().await.doing(DOING)
        })
    }

    /// The newest policy of a run that its steps before `step` made.
    pub fn publication(&self, run: RunId, step: u64) -> Result<Option<Publication>> {
        self.with(async |connection| {
            let row: Option<(i64, String, String)> = sql::query_as(PUBLICATION)
                .bind(run.0)
                .bind(step as i64)
                .fetch_optional(connection)
                .await
                .doing("looking for the newest policy")?;
            Ok(row.map(|(version, hash, adapter)| Publication {
                policy: PolicyVersion { version: version as u64, hash },
                adapter,
            }))
        })
    }

    /// Notes that a worker is alive, and how many jobs it has done.
    pub fn see_worker(&self, name: &str, model_hash: &str, jobs: u64) -> Result<()> {
        let sql = self.spelled(SEE_WORKER);
        self.with(async |connection| {
            let seen = sql::query(sql).bind(name).bind(model_hash).bind(jobs as i64).execute(connection).await;
            seen.doing("noting that a worker is alive").map(drop)
        })
    }

    /// Notes that a worker has left.
    pub fn forget_worker(&self, name: &str) -> Result<()> {
        self.with(async |connection| {
            sql::query(FORGET_WORKER).bind(name).execute(connection).await.doing("noting that a worker left").map(drop)
        })
    }

    /// How many workers of this base model were heard of in the last while.
    pub fn workers_alive(&self, model_hash: &str, within: Duration) -> Result<u64> {
        let sql = self.spelled(ALIVE);
        self.with(async |connection| {
            let alive: i64 = sql::query_scalar(sql)
                .bind(model_hash)
                .bind(within.as_micros() as i64)
                .fetch_one(connection)
                .await
                .doing("counting workers")?;
            Ok(alive as u64)
        })
    }

    /// Waits until there may be a job, but no longer than that. It may come back early, so look and wait again.
    pub fn wait_for_jobs(&self, at_most: Duration) -> Result<()> {
        self.wait(News::Jobs, at_most)
    }

    /// Waits until a job may be done, but no longer than that. It may come back early, so look and wait again.
    pub fn wait_for_results(&self, at_most: Duration) -> Result<()> {
        self.wait(News::Results, at_most)
    }

    fn wait(&self, news: News, at_most: Duration) -> Result<()> {
        const DOING: &str = "waiting for news of jobs";
        let DatabaseUrl::Server(server) = self.address() else {
            std::thread::sleep(at_most.min(POLL));
            return Ok(());
        };
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        self.block_on(async {
            match bells.iter_mut().find(|(heard, _)| *heard == news) {
                Some((_, bell)) => bell.wait(at_most).await,
                // What happened before it hung there was heard by nobody: the caller looks once more.
                None => Bell::new(server, news.channel()).await.map(|bell| bells.push((news, bell))),
            }
        })
        .doing(DOING)
    }

    /// A statement with the engine's own words in it.
    fn spelled(&self, sql: &str) -> String {
        sql.replace("{now}", self.engine().now()).replace("{skip_locked}", self.engine().skip_locked())
    }
}

/// Whether the run has published another policy under the version that drew some of these groups.
async fn is_superseded(connection: &mut Connection, run: RunId, groups: &[Group]) -> Result<bool> {
    let policies: BTreeSet<(u64, &str)> =
        groups.iter().map(|group| (group.policy.version, &group.policy.hash[..])).collect();
    for (version, hash) in policies {
        let others: i64 = sql::query_scalar(SUPERSEDED)
            .bind(run.0)
            .bind(version as i64)
            .bind(hash)
            .fetch_one(&mut *connection)
            .await
            .doing("looking for a policy")?;
        if others > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The three values that say which lease is meant.
fn of<T: sql::Shape<S>, S>(query: sql::Query<T, S>, lease: &Lease) -> sql::Query<T, S> {
    query.bind(lease.job).bind(&lease.worker).bind(lease.attempt as i64)
}

/// Wakes whoever waits for this, when the transaction is committed.
async fn ring(connection: &mut Connection, news: News) -> Result<()> {
    if connection.engine() == Engine::Postgres {
        connection.script(format!("NOTIFY {}", news.channel())).await.doing("waking who waits")?;
    }
    Ok(())
}
