//! The other end: a process that leases jobs, draws them, and appends what it drew.

use super::publication::Publications;
use super::{job, lease};
use crate::config::{CollectorConfig, Config, RemoteConfig};
use crate::{Error, Result};
use model::Policy;
use rollout::collector::{Collector, Inline, Progress};
use schema::{Group, PolicyVersion, Seed};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{Lease, RunId, Store};

/// How long an idle worker waits for news before it says that it is alive, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How often a policy is looked for that the trainer replaces just now.
const TRIES: usize = 20;
/// How long a worker waits between two of those looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Whom a worker works for.
#[derive(Debug, Clone)]
pub struct Work {
    /// The store that the jobs are in.
    pub store: String,
    /// What the worker is called; no two have one name.
    pub name: String,
    /// Only for this run, by name or number; otherwise for every running one with the same base model.
    pub run: Option<String>,
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Jobs that it did.
    pub jobs: u64,
    /// Samples that it drew in them.
    pub samples: u64,
    /// Tokens of those.
    pub tokens: u64,
    /// Jobs that were somebody else's when it had drawn them; nothing of that was stored.
    pub refused: u64,
}

/// Draws for the runs of a store until `stop` is raised; `watch` hears of each job that is done. A job in hand is finished
/// first. `config` is that of the run: the model and its adapter must be the same, and the engine is this worker's own.
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
    /// When it last said that it is alive.
    said: Instant,
}

impl Worker<'_> {
    fn run(&mut self, run: Option<RunId>, stop: &AtomicBool, watch: &mut dyn FnMut(&Worked)) -> Result<()> {
        let beat = LOOK.min(self.lease / 3);
        while !stop.load(Ordering::SeqCst) {
            let Some(lease) = self.store.claim(self.name, &self.identity, run, self.lease)? else {
                // News comes more often than it has to say that it is alive, which costs a commit.
                self.store.wait_for_jobs(beat.saturating_sub(self.said.elapsed()))?;
                if self.said.elapsed() >= beat {
                    self.seen();
                }
                continue;
            };
            // The thread beside it may say that this worker is alive; all else is this thread's.
            let (store, name, identity, jobs) = (self.store, self.name, &self.identity, self.worked.jobs);
            let drawer = &mut self.drawer;
            let alive = || see(store, name, identity, jobs);
            let drawn = lease::under(store, &lease, self.lease, &alive, || drawer.draw(&lease));
            let groups = match drawn {
                Ok(groups) => groups,
                Err(error) => {
                    // Somebody else may be able to.
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

/// Says that a worker is alive. A store that does not answer is found out by whoever needs it.
fn see(store: &Store, name: &str, identity: &str, jobs: u64) {
    if let Err(error) = store.see_worker(name, identity, jobs) {
        tracing::warn!("cannot say that this worker is alive: {error}");
    }
}

/// What draws a job.
struct Drawer<'a> {
    store: &'a Store,
    policy: Policy,
    collector: Inline,
    /// Whose policy the collector has.
    drawing: Option<(RunId, PolicyVersion)>,
}

impl Drawer<'_> {
    fn draw(&mut self, lease: &Lease) -> Result<Vec<Group>> {
        self.fetch(lease)?;
        Ok(self.collector.collect(job::read(lease)?, &mut |_: Progress| {})?)
    }

    /// Makes the newest policy that the job's run has published for its step the one that draws.
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
            let place = &found.adapter;
            // The trainer drops what it has replaced, so a file may be gone that was there a moment ago.
            if !Publications::restore(place, &mut self.policy)? {
                problem = format!(
                    "there is no {place}; this worker must see the run's folder under the path that the trainer has for it, or the run must share it by share.url"
                );
                continue;
            }
            self.policy.set_version(found.policy.version);
            if *self.policy.version() != found.policy {
                problem = format!(
                    "{place} is not version {} of run {}'s policy: its hash is {} and should be {}; is this the run's own config?",
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
