//! Jobs: the pieces of a step's sampling, each under a lease of one worker at a time.

use super::publication::is_superseded;
use super::waiting::ring;
use crate::engine::time::now;
use crate::engine::{Access, News, sql};
use crate::error::Doing;
use crate::rows::append::{add_groups, add_policies, add_samples};
use crate::rows::{blob, read, run};
use crate::{Error, Result, RunId, Scoring, Store};
use schema::Group;
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
const DONE: &str = "SELECT COUNT(*) FROM jobs WHERE id = $1 AND worker = $2 AND attempts = $3 AND state = 'done'";
const RELEASE: &str = "UPDATE jobs SET state = 'ready', worker = NULL, leased_until = NULL
    WHERE id = $1 AND worker = $2 AND attempts = $3 AND state = 'leased'";
const PROGRESS: &str = "SELECT COUNT(*), COUNT(CASE WHEN state = 'done' THEN 1 END),
        CAST(COALESCE(SUM(CASE WHEN state = 'done' THEN groups ELSE 0 END), 0) AS BIGINT)
    FROM jobs WHERE run_id = $1 AND step = $2 AND place >= $3 AND place < $4";
const DRAWN: &str =
    "SELECT id FROM groups WHERE run_id = $1 AND step = $2 AND place >= $3 AND place < $4 ORDER BY place";

/// A piece of a step's sampling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// The index of its first group in the step.
    pub place: usize,
    /// Number of groups that it samples.
    pub groups: usize,
    /// The oldest policy version that may sample it.
    pub min_version: u64,
    /// The request to sample, in the form that the workers parse.
    pub request: String,
}

/// A job that one worker has for a limited time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job's number.
    pub job: i64,
    /// The run that asked for it.
    pub run: RunId,
    /// The step that will learn from it.
    pub step: u64,
    /// The index of its first group in the step.
    pub place: usize,
    /// Number of groups that it samples.
    pub groups: usize,
    /// The oldest policy version that may sample it.
    pub min_version: u64,
    /// The request to sample, as in [`NewJob`].
    pub request: String,
    /// The name of the worker that has it.
    pub worker: String,
    /// Number of its leases, this one included.
    pub attempt: u64,
}

/// The progress of some jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Jobs in all.
    pub jobs: u64,
    /// Jobs that are done.
    pub done: u64,
    /// Groups that the done jobs sampled.
    pub groups: u64,
}

impl Store {
    /// Adds the jobs of a step to the queue; those that are there already stay as they are. Another request at the same
    /// index is an error, because samples of the old one could not be told from those of the new one.
    ///
    /// # Errors
    /// [`Error::AskedOtherwise`] if a job at the same index has another request, or if the store cannot be written.
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

    /// Takes the oldest free job of the earliest step under a lease of this duration. The run must be running, have
    /// this base model, and be `run` if that is given. `None` if there is no such job.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn claim(&self, worker: &str, model_hash: &str, run: Option<RunId>, lease: Duration) -> Result<Option<Lease>> {
        type Row = (i64, i64, i64, i64, i64, i64, String, i64);
        let sql = self.spelled(CLAIM);
        // If the answer is lost with the connection, another job is taken, and the lease of the first one ends unused.
        self.with(async |connection| {
            let row: Option<Row> = sql::query_as(sql.clone())
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

    /// Extends a lease to this duration from now. `false` if the job is done, or another worker has it by now.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn extend(&self, lease: &Lease, by: Duration) -> Result<bool> {
        let sql = self.spelled(EXTEND);
        self.with(async |connection| {
            let done = of(sql::query(sql.clone()), lease).bind(by.as_micros() as i64).execute(connection).await;
            Ok(done.doing("extending a lease")?.rows_affected() == 1)
        })
    }

    /// Gives a job back undone. A lease that has passed to another worker is left alone.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn release(&self, lease: &Lease) -> Result<()> {
        const DOING: &str = "giving a job back";
        self.with(async |connection| {
            let mut transaction = connection.begin(Access::Write).await.doing(DOING)?;
            of(sql::query(RELEASE), lease).execute(&mut transaction).await.doing(DOING)?;
            ring(&mut transaction, News::Jobs).await?;
            transaction.commit().await.doing(DOING)
        })
    }

    /// Appends the samples of a job and makes it done, both or neither. `false` if the job is done already, if another
    /// worker has it by now, or if the run has made the policy anew that sampled it: then nothing is appended.
    ///
    /// # Errors
    /// [`Error::Setting`] if the number of groups is not the job's; [`Error::PolicyChanged`] if the policy's version is
    /// in the store with another hash; or if the store cannot be written.
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
                // The first try may have been committed, and its answer lost with the connection.
                let repeated = transaction.is_repeated();
                let done: i64 = of(sql::query_scalar(DONE), lease).fetch_one(&mut transaction).await.doing(DOING)?;
                return Ok(repeated && done == 1);
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

    /// Returns the progress of the jobs whose first group is at these indices of a step.
    ///
    /// # Errors
    /// If the store cannot be read.
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

    /// Returns the groups that jobs sampled for these indices of a step, in order.
    ///
    /// # Errors
    /// If the store cannot be read.
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
}

/// Binds the three values that identify a lease.
fn of<T: sql::Shape<S>, S>(query: sql::Query<T, S>, lease: &Lease) -> sql::Query<T, S> {
    query.bind(lease.job).bind(&lease.worker).bind(lease.attempt as i64)
}
