//! The trainer's end: it asks for jobs, waits for them, and samples itself if no worker does.

use super::publication::Publications;
use super::{job, lease};
use crate::config::{RemoteConfig, WithoutWorkers};
use crate::sampling::RunContext;
use crate::{Error, Result};
use model::Policy;
use rollout::collector::{Collector, Inline, Job, SamplingProgress};
use schema::Group;
use std::time::{Duration, Instant};
use store::{RunId, Store};

/// The trainer's wait for news before it looks for workers that are alive.
const LOOK: Duration = Duration::from_millis(500);

/// The collector that lets others draw.
pub(crate) struct Remote {
    config: RemoteConfig,
    store: Store,
    run: RunId,
    /// The base model, by which workers are known.
    identity: String,
    publications: Publications,
    /// Samples here the jobs that no worker takes.
    local: Inline,
    /// `true` once the user has been told that no worker is alive.
    told: bool,
}

impl Remote {
    /// Publishes the policy that the run begins with.
    pub(super) fn open(
        config: &RemoteConfig,
        context: &RunContext<'_>,
        policy: &Policy,
        local: Inline,
    ) -> Result<Self> {
        let mut remote = Self {
            config: config.clone(),
            // A handle of its own, so that it can wait while others ask.
            store: Store::open_existing(&context.config.store.url)?,
            run: context.run,
            identity: policy.identity().to_owned(),
            publications: Publications::new(context.folder, context.shared.cloned())?,
            local,
            told: false,
        };
        remote.share(policy)?;
        Ok(remote)
    }

    /// Lets workers draw from this policy.
    fn share(&mut self, policy: &Policy) -> Result<()> {
        let oldest = policy.version().version.saturating_sub(1);
        let place = self.publications.write(policy, oldest)?;
        self.store.publish(self.run, policy.version(), &place, oldest)?;
        self.local.publish(policy)?;
        Ok(())
    }

    fn ask(&self, job: &Job) -> Result<()> {
        let oldest = job.position.step.saturating_sub(1 + self.config.max_staleness);
        let jobs = job::cut(job, self.config.prompts_per_job, oldest);
        Ok(self.store.enqueue(self.run, job.position.step, &jobs)?)
    }

    fn wait_for(&mut self, job: &Job, progress: &mut dyn FnMut(SamplingProgress)) -> Result<Vec<Group>> {
        let (step, start) = (job.position.step, job.position.first_group);
        let places = start..start + job.prompts.len();
        let mut heard = Instant::now();
        loop {
            let done = self.store.job_progress(self.run, step, places.clone())?;
            let samples = job.prompts.len() * job.group_size;
            progress(SamplingProgress { finished: done.groups as usize * job.group_size, samples, tokens: 0 });
            if done.done == done.jobs {
                return Ok(self.store.drawn(self.run, step, places)?);
            }
            if self.store.workers_alive(&self.identity, self.config.lease())? > 0 {
                (heard, self.told) = (Instant::now(), false);
            } else if heard.elapsed() >= self.config.patience() && self.without_workers()? {
                continue;
            }
            self.store.wait_for_results(LOOK)?;
        }
    }

    /// Does what the config says where no worker is alive. Returns whether a job was drawn.
    fn without_workers(&mut self) -> Result<bool> {
        let start = "start one with `proxrl rollout work --store URL --config FILE`";
        let what = match self.config.without_workers {
            WithoutWorkers::Stop => {
                return Err(Error::runtime(format!(
                    "no worker is alive, and collector.remote.without_workers is \"stop\": {start}, then resume this run; what is drawn is in the store"
                )));
            }
            WithoutWorkers::Wait => "waiting for one",
            WithoutWorkers::Draw => "drawing here until there is one",
        };
        if !self.told {
            tracing::warn!("no worker is alive: {what}; {start}");
            self.told = true;
        }
        if self.config.without_workers == WithoutWorkers::Wait {
            return Ok(false);
        }
        let (length, name) = (self.config.lease(), format!("the trainer of run {}", self.run));
        let Some(lease) = self.store.claim(&name, &self.identity, Some(self.run), length)? else { return Ok(false) };
        let (store, local) = (&self.store, &mut self.local);
        let groups =
            lease::under(store, &lease, length, &|| {}, || Ok(local.collect(job::read(&lease)?, &mut |_| {})?))?;
        // A worker that was thought dead may have been faster.
        Ok(store.finish_job(&lease, &groups)?)
    }
}

impl Collector for Remote {
    fn publish(&mut self, policy: &Policy) -> rollout::Result<()> {
        Ok(self.share(policy)?)
    }

    fn announce(&mut self, job: &Job) -> rollout::Result<()> {
        Ok(self.ask(job)?)
    }

    fn collect(&mut self, job: Job, progress: &mut dyn FnMut(SamplingProgress)) -> rollout::Result<Vec<Group>> {
        self.ask(&job)?;
        Ok(self.wait_for(&job, progress)?)
    }
}
