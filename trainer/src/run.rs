//! The training loop: collect, score, store, update, publish; the same for every algorithm.
//!
//! A run is a folder: `config.toml` (resolved), `run.json` (its place in the store), `metrics.jsonl`, `checkpoints/`,
//! `tensorboard/`, `reward` (`loss` without rewards) and `ranks` as `.svg` and `.png`, `alarms.jsonl` where a guard raised one, and at the
//! end `summary.json`. It can be killed at any moment: samples are committed before they are trained on, checkpoints
//! appear whole or not at all, and a resumed run takes the samples of a step that it has already paid for from the
//! store.

mod folder;
mod follow;
mod guards;
mod plan;

pub use folder::{Summary, Target};
pub use plan::{Estimate, estimate};

use crate::Result;
use crate::checkpoint::bucket::Shared;
use crate::checkpoint::restore::{check_restored, restore_newest};
use crate::checkpoint::{Snapshots, State};
use crate::config::Config;
use crate::distributed::Team;
use crate::evaluate::pool;
use crate::evaluate::{Exam, Panel};
use crate::guard::Alarm;
use crate::learner::Learner;
use crate::observer::{Observer, Phase};
use crate::report::metrics;
use crate::report::tracker::{JsonlTracker, TensorboardTracker, Tracker};
use crate::sampling::{Desk, Home, StepSamples};
use folder::RunFolder;
use plan::Plan;
use schema::Metrics;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{RunId, RunStatus, Store};

/// How a call of [`train`] ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every step is done.
    Finished(Summary),
    /// This process has followed the one that leads, which has the run.
    Followed,
    /// The stop flag was raised; everything is saved.
    Interrupted {
        /// The run folder, for resuming.
        folder: PathBuf,
        /// The last finished step.
        step: u64,
    },
}

/// Runs a config to its end, or until `stop` is raised. Where the environment says that this is one of several processes
/// that train together (`RANK`, `WORLD_SIZE`), only rank 0 touches `target`.
pub fn train(config: &Config, target: &Target, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    let team = Team::join()?.map(Rc::new);
    match team {
        Some(team) if !team.leads() => follow::follow(config, &team).map(|()| Outcome::Followed),
        team => lead(config, target, observer, stop, team.as_ref()),
    }
}

fn lead(
    config: &Config,
    target: &Target,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    team: Option<&Rc<Team>>,
) -> Result<Outcome> {
    observer.phase(Phase::Loading);
    let loading = phase_span!("load");
    let plan = Plan::build(config)?;
    let learner = Learner::new(config, &plan.policy)?;
    drop(loading);
    let (folder, store, run) = folder::open(config, target, plan.policy.identity())?;
    let mut training = Training::open(config, plan, learner, folder, store, run, team)?;
    let outcome = training.run(observer, stop);
    if let Some(team) = team {
        // Those that are gone already know.
        let _ = team.end();
    }
    let status = match &outcome {
        Ok(Outcome::Finished(_) | Outcome::Followed) => RunStatus::Finished,
        Ok(Outcome::Interrupted { .. }) => RunStatus::Interrupted,
        Err(_) => RunStatus::Failed,
    };
    let recorded = training.store.finish_run(training.run, status);
    observer.end();
    let outcome = outcome?;
    recorded?;
    Ok(outcome)
}

/// Answers the held-out prompts of a config with the untouched model, or with the newest checkpoint of a run folder.
pub fn evaluate(config: &Config, checkpoint: Option<&Path>, observer: &mut dyn Observer) -> Result<Metrics> {
    observer.phase(Phase::Loading);
    // Answering needs nobody's old samples.
    let config = &Config { replay: None, ..config.clone() };
    let mut plan = Plan::build(config)?;
    let learner = Learner::new(config, &plan.policy)?;
    if let Some(folder) = checkpoint {
        let snapshot = restore_newest(folder, &mut plan.policy)?;
        learner.restore_critic(&snapshot)?;
    }
    let Some(exam) = &plan.exam else { return Ok(Metrics::new()) };
    observer.phase(Phase::Evaluating);
    let mut progress = |progress| observer.progress(Phase::Evaluating, progress);
    let rivals = pool::open(config, &plan.policy, checkpoint)?;
    let mut panel = Panel { reward: &mut plan.reward, judge: plan.judge.as_mut(), rivals: &rivals };
    exam.evaluate(&plan.policy, &learner, &mut panel, &mut progress)
}

/// One call of [`train`].
struct Training<'a> {
    config: &'a Config,
    plan: Plan,
    learner: Learner,
    folder: RunFolder,
    snapshots: Snapshots,
    store: Store,
    run: RunId,
    shared: Option<Rc<Shared>>,
    team: Option<Rc<Team>>,
    trackers: Vec<Box<dyn Tracker>>,
    state: State,
    saved: Option<u64>,
}

impl<'a> Training<'a> {
    fn open(
        config: &'a Config,
        mut plan: Plan,
        mut learner: Learner,
        folder: RunFolder,
        store: Store,
        run: RunId,
        team: Option<&Rc<Team>>,
    ) -> Result<Self> {
        let shared = Shared::open(&config.share, folder.path())?.map(Rc::new);
        let snapshots = Snapshots::new(folder.path(), config.checkpoint.keep);
        let newest = snapshots.newest()?;
        let saved = newest.as_ref().map(|snapshot| snapshot.state.step);
        let state = match newest {
            Some(snapshot) => {
                let state = learner.restore(snapshot, &mut plan.policy)?;
                learner.scale_rate(state.guard.rate_scale);
                plan.publish(state.step)?;
                check_restored(&plan.policy, &state, folder.path())?;
                state
            }
            None => State::start(&plan.policy.version().hash),
        };
        plan.source.begin(&Home { config, run, folder: folder.path(), shared: shared.as_ref(), team })?;
        if let Some(team) = team {
            learner.join(Rc::clone(team));
        }
        let mut trackers: Vec<Box<dyn Tracker>> = vec![Box::new(JsonlTracker::resume(&folder.metrics(), state.step)?)];
        if config.tracker.tensorboard {
            trackers.push(Box::new(TensorboardTracker::resume(&folder.tensorboard(), state.step)?));
        }
        if folder.alarms().exists() {
            JsonlTracker::resume(&folder.alarms(), state.step)?;
        }
        let team = team.cloned();
        let training =
            Self { config, plan, learner, folder, snapshots, store, run, shared, team, trackers, state, saved };
        training.gather()?;
        Ok(training)
    }

    /// Brings the other processes to where this one is.
    fn gather(&self) -> Result<()> {
        let Some(team) = &self.team else { return Ok(()) };
        team.restore(&self.learner.snapshot(&self.state, &self.plan.policy))?;
        team.agree(self.state.step, &self.plan.policy.version().hash)
    }

    fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        if self.saved.is_none() {
            self.state.before = self.evaluate(observer)?;
            self.save()?;
        }
        let steps = self.config.steps;
        observer.begin(self.state.step + 1, steps);
        while self.state.step < steps {
            if stop.load(Ordering::SeqCst) {
                self.save()?;
                return Ok(Outcome::Interrupted { folder: self.folder.path().to_owned(), step: self.state.step });
            }
            let step = self.state.step + 1;
            let (metrics, alarms) = self.step(step, observer)?;
            observer.step(step, steps, &metrics);
            self.heed(&alarms, observer)?;
            if step.is_multiple_of(self.config.checkpoint.every) {
                observer.phase(Phase::Saving);
                self.save()?;
            }
        }
        self.save()?;
        for tracker in &mut self.trackers {
            tracker.finish()?;
        }
        // The last step has no evaluation of its own: this is it, also after a resume that had no step left to do.
        let after = self.evaluate(observer)?;
        observer.phase(Phase::Saving);
        let held_out = self.plan.exam.as_ref().map_or(0, Exam::len);
        let summary =
            self.folder.summarise(self.config, held_out, &self.state, &after, self.run, self.plan.policy.adapter())?;
        Ok(Outcome::Finished(summary))
    }

    /// One step of the loop: what was measured, and what its guards say.
    fn step(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(Metrics, Vec<Alarm>)> {
        let _span = phase_span!("step", number = step);
        let start = Instant::now();
        let samples = self.samples(step, observer)?;
        let mut metrics = samples.metrics.clone();
        metrics.set("time/rollout_s", start.elapsed().as_secs_f64());
        observer.phase(Phase::Updating);
        let updating = Instant::now();
        if let Some(team) = &self.team {
            team.learn(step, samples.trained())?;
        }
        metrics.merge(self.learner.update(step, samples.trained(), &mut self.plan.policy)?);
        self.plan.publish(step)?;
        if let Some(team) = &self.team {
            team.agree(step, &self.plan.policy.version().hash)?;
        }
        metrics.set("time/update_s", updating.elapsed().as_secs_f64());

        self.state.step = step;
        self.state.policy_hash.clone_from(&self.plan.policy.version().hash);
        self.state.generated_tokens += samples.generated_tokens();
        self.state.num_tokens += metrics::seen_tokens(samples.seen());
        self.state.samples += samples.seen().iter().map(|group| group.group().samples.len() as u64).sum::<u64>();
        let seconds = start.elapsed().as_secs_f64();
        self.state.train_seconds += seconds;
        metrics.set("num_tokens", self.state.num_tokens as f64);
        metrics.set("num_samples", self.state.samples as f64);
        metrics.set("num_generated_tokens", self.state.generated_tokens as f64);
        metrics.set("time/train_s", self.state.train_seconds);
        metrics.merge(metrics::ranks(self.plan.policy.adapter()));
        metrics.set("step_time", seconds);
        if !samples.fresh.is_empty() {
            metrics.set("perf/generated_tokens_per_second", samples.generated_tokens() as f64 / seconds);
        }
        metrics.set("perf/peak_rss_mb", metrics::peak_rss_mb());
        if self.config.evaluate.every > 0 && step.is_multiple_of(self.config.evaluate.every) && step < self.config.steps
        {
            metrics.merge(self.evaluate(observer)?);
        }
        let alarms = self.config.guard.watch(step, &samples.fresh, &mut self.state.guard, &mut metrics);
        for tracker in &mut self.trackers {
            tracker.log(step, &metrics)?;
        }
        self.store.finish_step(self.run, step, &metrics)?;
        Ok((metrics, alarms))
    }

    fn samples(&mut self, step: u64, observer: &mut dyn Observer) -> Result<StepSamples> {
        let kept = self.saved == Some(step - 1);
        let desk = Desk {
            store: &self.store,
            run: self.run,
            reward: &mut self.plan.reward,
            judge: self.plan.judge.as_mut(),
            adapter: kept.then(|| self.snapshots.path(step - 1).display().to_string()),
            observer,
            judging: Duration::ZERO,
        };
        self.plan.source.step(step, &self.learner.algorithm().schedule(step), desk)
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<Metrics> {
        let Some(exam) = &self.plan.exam else { return Ok(Metrics::new()) };
        let _span = phase_span!("evaluate");
        observer.phase(Phase::Evaluating);
        let mut progress = |progress| observer.progress(Phase::Evaluating, progress);
        let policy = self.learner.shipped(&self.plan.policy);
        let rivals = pool::open(self.config, &policy, Some(self.folder.path()))?;
        let mut panel = Panel { reward: &mut self.plan.reward, judge: self.plan.judge.as_mut(), rivals: &rivals };
        exam.evaluate(&policy, &self.learner, &mut panel, &mut progress)
    }

    /// Saves the present state, unless it is saved already, and redraws the run's curve.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let _span = phase_span!("checkpoint");
        let snapshot = self.learner.snapshot(&self.state, &self.plan.policy);
        let path = self.snapshots.save(&snapshot)?;
        self.store.checkpoint(self.run, self.state.step, &path.display().to_string(), &self.state.policy_hash)?;
        self.saved = Some(self.state.step);
        if let Some(shared) = &self.shared
            && let Err(error) = shared.checkpoint(self.folder.path(), self.state.step, &self.snapshots.steps())
        {
            tracing::warn!("the checkpoint of step {} is only here: {error}", self.state.step);
        }
        self.folder.draw_course()?;
        self.folder.draw_ranks(self.plan.policy.adapter())
    }
}
