//! A worker: a process that leases jobs, samples them, and appends the samples to the store.

use super::publication::Publications;
use super::{job, lease};
use crate::config::{CollectorConfig, Config, RemoteConfig};
use crate::{Error, Result};
use model::Policy;
use rollout::collector::{Collector, Inline, SamplingProgress};
use schema::{Group, PolicyVersion, Seed};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{Lease, RunId, Store};

/// Longest wait of an idle worker for new jobs before its next heartbeat.
const LOOK: Duration = Duration::from_secs(1);
/// Number of attempts to read a policy that the trainer is just replacing.
const TRIES: usize = 20;
/// Pause between two of these attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Assignment of a worker.
#[derive(Debug, Clone)]
pub struct Work {
    /// URL of the store that holds the jobs.
    pub store: String,
    /// Name of the worker; unique among workers.
    pub name: String,
    /// Run to work for, by name or number; `None` for every running one with the same base model.
    pub run: Option<String>,
}

/// Work done by a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Jobs done.
    pub jobs: u64,
    /// Samples of these jobs.
    pub samples: u64,
    /// Tokens of these samples.
    pub tokens: u64,
    /// Jobs that another worker had taken over before they were done; none of their samples were stored.
    pub refused: u64,
}

/// Samples for the runs of a store until `stop` is set, and finishes a job in hand first. `watch` is called after each
/// job. `config` is that of the run: model and adapter must be the same, and the engine settings are this worker's own.
///
/// # Errors
/// If the model or the store cannot be opened, the named run does not exist or trains another base model, a run's
/// policy cannot be read, or sampling fails.
pub fn work(config: &Config, work: &Work, stop: &AtomicBool, watch: &mut dyn FnMut(&Worked)) -> Result<Worked> {
    let remote = match &config.collector {
        Some(CollectorConfig::Remote(remote)) => remote.clone(),
        None => RemoteConfig::default(),
    };
    let policy = Policy::load(&config.model, &Seed::new(config.seed))?;
    let store = Store::open_existing(&work.store)?;
    let run = work.run.as_deref().map(|run| store.find_run(run)).transpose()?;
    if let Some(run) = run.as_ref().filter(|run| run.model_hash != policy.identity()) {
        return Err(Error::input(format!(
            "run {} trains another base model than the one of this config; give the worker the run's own config",
            run.id
        )));
    }
    let mut worker = Worker {
        identity: policy.identity().to_owned(),
        drawer: Drawer {
            store: &store,
            collector: Inline::new(&policy, config.rollout.engine.clone()),
            policy,
            drawing: None,
        },
        store: &store,
        lease: remote.lease(),
        name: &work.name,
        worked: Worked::default(),
        said: Instant::now(),
    };
    worker.seen();
    let outcome = worker.run(run.map(|run| run.id), stop, watch);
    let forgotten = store.forget_worker(&work.name);
    outcome?;
    forgotten?;
    Ok(worker.worked)
}

struct Worker<'a> {
    store: &'a Store,
    name: &'a str,
    lease: Duration,
    identity: String,
    drawer: Drawer<'a>,
    worked: Worked,
    /// Time of the last heartbeat.
    said: Instant,
}

impl Worker<'_> {
    fn run(&mut self, run: Option<RunId>, stop: &AtomicBool, watch: &mut dyn FnMut(&Worked)) -> Result<()> {
        let beat = LOOK.min(self.lease / 3);
        while !stop.load(Ordering::SeqCst) {
            let Some(lease) = self.store.claim(self.name, &self.identity, run, self.lease)? else {
                // New jobs are announced more often than a heartbeat is due, which costs a commit.
                self.store.wait_for_jobs(beat.saturating_sub(self.said.elapsed()))?;
                if self.said.elapsed() >= beat {
                    self.seen();
                }
                continue;
            };
            // The lease thread may send heartbeats; everything else stays in this thread.
            let (store, name, identity, jobs) = (self.store, self.name, &self.identity, self.worked.jobs);
            let drawer = &mut self.drawer;
            let alive = || see(store, name, identity, jobs);
            let drawn = lease::under(store, &lease, self.lease, &alive, || drawer.draw(&lease));
            let groups = match drawn {
                Ok(groups) => groups,
                Err(error) => {
                    // Another worker may succeed.
                    let _ = self.store.release(&lease);
                    return Err(error);
                }
            };
            if self.store.finish_job(&lease, &groups)? {
                let samples = || groups.iter().flat_map(|group| &group.samples);
                self.worked.jobs += 1;
                self.worked.samples += samples().count() as u64;
                self.worked.tokens += samples().map(|sample| sample.len() as u64).sum::<u64>();
            } else {
                self.worked.refused += 1;
                tracing::warn!("job {} was done by somebody else, so what was drawn here is dropped", lease.job);
            }
            self.seen();
            watch(&self.worked);
        }
        Ok(())
    }

    fn seen(&mut self) {
        see(self.store, self.name, &self.identity, self.worked.jobs);
        self.said = Instant::now();
    }
}

/// Sends a heartbeat. Store errors are ignored here; the next call that needs the store reports them.
fn see(store: &Store, name: &str, identity: &str, jobs: u64) {
    if let Err(error) = store.see_worker(name, identity, jobs) {
        tracing::warn!("cannot say that this worker is alive: {error}");
    }
}

/// The sampler of a worker, with the policy that it last loaded.
struct Drawer<'a> {
    store: &'a Store,
    policy: Policy,
    collector: Inline,
    /// Run and version of the policy that the collector has.
    drawing: Option<(RunId, PolicyVersion)>,
}

impl Drawer<'_> {
    fn draw(&mut self, lease: &Lease) -> Result<Vec<Group>> {
        self.fetch(lease)?;
        Ok(self.collector.collect(job::read(lease)?, &mut |_: SamplingProgress| {})?)
    }

    /// Loads the newest policy that the job's run has published for its step.
    fn fetch(&mut self, lease: &Lease) -> Result<()> {
        let mut problem = format!("run {} has published no policy", lease.run);
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            let Some(found) = self.store.publication(lease.run, lease.step)? else { continue };
            if found.policy.version < lease.min_version {
                problem = format!(
                    "run {} has published version {} last, and job {} asks for {} or later",
                    lease.run, found.policy.version, lease.job, lease.min_version
                );
                continue;
            }
            if self.drawing.as_ref().is_some_and(|(run, policy)| *run == lease.run && *policy == found.policy) {
                return Ok(());
            }
            self.drawing = None;
            let adapter = &found.adapter;
            // The trainer removes replaced versions, so the file may be gone a moment later.
            if !Publications::restore(adapter, &mut self.policy)? {
                problem = format!(
                    "there is no {adapter}; this worker must see the run's folder under the path that the trainer has for it, or the run must share it by share.url"
                );
                continue;
            }
            self.policy.set_version(found.policy.version);
            if *self.policy.version() != found.policy {
                problem = format!(
                    "{adapter} is not version {} of run {}'s policy: its hash is {} and should be {}; is this the run's own config?",
                    found.policy.version,
                    lease.run,
                    self.policy.version().hash,
                    found.policy.hash
                );
                continue;
            }
            self.collector.publish(&self.policy)?;
            self.drawing = Some((lease.run, found.policy));
            return Ok(());
        }
        Err(Error::input(problem))
    }
}
