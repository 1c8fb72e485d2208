//! The training loop: collect, grade, compare, store, learn, publish, log; the same for every algorithm.
//!
//! [`Training::step`] is the loop's body. Samples are committed to the store before they are trained on, and checkpoints
//! appear whole or not at all, so a run can be killed at any moment: a resumed run takes the samples of a step that are
//! in the store already from there.
//!
//! A run is a folder: `config.toml` (resolved), `run.json` (its identity and its place in the store), `metrics.jsonl`, `checkpoints/`,
//! `tensorboard/`, `reward` (`loss` without rewards) and `ranks` as `.svg` and `.png`, `alarms.jsonl` if a guard raised
//! an alarm, and at the end `summary.json`.

mod begin;
mod folder;
mod follow;
mod guards;
mod peers;
mod plan;
mod record;

pub use folder::{Summary, Target};
pub use plan::{Estimate, estimate};

use crate::checkpoint::restore::{check_restored, restore_newest};
use crate::checkpoint::{Snapshots, State};
use crate::config::Config;
use crate::distributed::Team;
use crate::evaluate::pool;
use crate::evaluate::{Graders, HeldOutEvaluation};
use crate::grading::{Finding, Ungraded};
use crate::guard::Alarm;
use crate::judge::PairComparer;
use crate::learner::Learner;
use crate::observer::{Observer, Phase};
use crate::report::tracker::{JsonlTracker, TensorboardTracker, Tracker};
use crate::sampling::{Source, StepContext, StepRequest, StepSamples};
use crate::{Error, Result};
use folder::RunFolder;
use model::Policy;
use peers::Peers;
use plan::Plan;
use record::StepClock;
use reward::WeightedSum;
use schema::{GradedGroup, Group, Metrics};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use store::{RunId, RunStatus, Store};

/// Result of [`train`].
#[derive(Debug)]
pub enum Outcome {
    /// All steps are done.
    Finished(Summary),
    /// This process is a rank other than 0, which has no run of its own.
    Followed,
    /// The stop flag was raised; everything is saved.
    Interrupted {
        /// The run folder, for resuming.
        folder: PathBuf,
        /// The last finished step.
        step: u64,
    },
}

/// Trains a config to its end, or until `stop` is set. If several processes train together (`RANK` and `WORLD_SIZE` in
/// the environment), only rank 0 touches `target`.
///
/// # Errors
/// If the config cannot be built, a file, the store or a worker fails, ranks hold different policies, or a guard stops the
/// run. Samples and checkpoints so far stay.
pub fn train(config: &Config, target: &Target, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    let team = Team::join()?.map(Rc::new);
    match team {
        Some(team) if !team.leads() => follow::follow(config, &team).map(|()| Outcome::Followed),
        team => lead(config, target, observer, stop, team),
    }
}

fn lead(
    config: &Config,
    target: &Target,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    team: Option<Rc<Team>>,
) -> Result<Outcome> {
    observer.phase(Phase::Loading);
    let loading = phase_span!("load");
    let plan = Plan::build(config)?;
    let learner = Learner::new(config, &plan.policy)?;
    drop(loading);
    let (folder, store, run) = begin::open(config, target, plan.policy.identity())?;
    begin::pin_date(folder.path(), &plan.policy)?;
    let peers = Peers::open(config, folder.path(), team)?;
    let mut training = Training::open(config, plan, learner, folder, store, run, peers)?;
    // libtorch panics where memory runs out; the run has failed then, and its row says so.
    let outcome = catch_unwind(AssertUnwindSafe(|| training.run(observer, stop)));
    training.peers.end();
    let status = match &outcome {
        Ok(Ok(Outcome::Finished(_) | Outcome::Followed)) => RunStatus::Finished,
        Ok(Ok(Outcome::Interrupted { .. })) => RunStatus::Interrupted,
        Ok(Err(_)) | Err(_) => RunStatus::Failed,
    };
    let recorded = training.store.finish_run(training.run, status);
    observer.end();
    let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
    recorded?;
    Ok(outcome)
}

/// Evaluates a config's held-out prompts with the untouched model, or with the newest checkpoint of a run folder. Returns
/// no metrics without held-out prompts.
///
/// # Errors
/// If the config cannot be built, or the folder has no checkpoint of it.
pub fn evaluate(config: &Config, checkpoint: Option<&Path>, observer: &mut dyn Observer) -> Result<Metrics> {
    observer.phase(Phase::Loading);
    // An evaluation replays nothing.
    let config = &Config { replay: None, ..config.clone() };
    let mut plan = Plan::build(config)?;
    let learner = Learner::new(config, &plan.policy)?;
    if let Some(folder) = checkpoint {
        begin::pin_date(folder, &plan.policy)?;
        let snapshot = restore_newest(folder, &mut plan.policy)?;
        learner.restore_critic(&snapshot)?;
    }
    let Some(evaluation) = &plan.evaluation else { return Ok(Metrics::new()) };
    observer.phase(Phase::Evaluating);
    let mut progress = |progress| observer.progress(Phase::Evaluating, progress);
    let rivals = pool::open(config, &plan.policy, checkpoint)?;
    let mut graders = Graders { reward: &mut plan.reward, judge: plan.judge.as_mut(), rivals: &rivals };
    evaluation.evaluate(&plan.policy, &learner, &mut graders, &mut progress)
}

/// One call of [`train`], on the process that leads.
struct Training<'a> {
    config: &'a Config,
    policy: Policy,
    source: Box<dyn Source>,
    reward: WeightedSum,
    judge: Option<PairComparer>,
    evaluation: Option<HeldOutEvaluation>,
    learner: Learner,
    folder: RunFolder,
    snapshots: Snapshots,
    store: Store,
    run: RunId,
    peers: Peers,
    trackers: Vec<Box<dyn Tracker>>,
    state: State,
    ungraded: Ungraded,
    /// The step of the newest checkpoint, if there is one.
    saved: Option<u64>,
}

impl<'a> Training<'a> {
    /// Goes on from the newest checkpoint of the run folder, if there is one.
    fn open(
        config: &'a Config,
        plan: Plan,
        mut learner: Learner,
        folder: RunFolder,
        store: Store,
        run: RunId,
        peers: Peers,
    ) -> Result<Self> {
        let Plan { mut policy, source, reward, judge, evaluation, .. } = plan;
        let snapshots = Snapshots::new(folder.path(), config.checkpoint.keep);
        let newest = snapshots.newest()?;
        let saved = newest.as_ref().map(|snapshot| snapshot.state.step);
        let state = match newest {
            Some(snapshot) => {
                let state = learner.restore(snapshot, &mut policy)?;
                learner.scale_rate(state.guard.rate_scale);
                policy.set_version(state.step);
                check_restored(&policy, &state, folder.path())?;
                state
            }
            None => State::start(&policy.version().hash),
        };
        let source = source.open(&peers.context(config, run, folder.path()), &policy)?;
        if let Some(team) = peers.team() {
            learner.join(Rc::clone(team));
        }
        let mut trackers: Vec<Box<dyn Tracker>> = vec![Box::new(JsonlTracker::resume(&folder.metrics(), state.step)?)];
        if config.tracker.tensorboard {
            trackers.push(Box::new(TensorboardTracker::resume(&folder.tensorboard(), state.step)?));
        }
        if folder.alarms().exists() {
            JsonlTracker::resume(&folder.alarms(), state.step)?;
        }
        let training = Self {
            config,
            policy,
            source,
            reward,
            judge,
            evaluation,
            learner,
            folder,
            snapshots,
            store,
            run,
            peers,
            trackers,
            state,
            ungraded: Ungraded::default(),
            saved,
        };
        training.gather()?;
        training.complete_save()?;
        Ok(training)
    }

    /// Does again what a process that was killed may not have done after it had saved the newest checkpoint.
    fn complete_save(&self) -> Result<()> {
        let Some(step) = self.saved else { return Ok(()) };
        self.snapshots.tidy();
        self.announce_save(&self.snapshots.path(step))
    }

    /// Notes a checkpoint in the store, shares it, and redraws the run's curve.
    fn announce_save(&self, path: &Path) -> Result<()> {
        self.store.checkpoint(self.run, self.state.step, &path.display().to_string(), &self.state.policy_hash)?;
        self.peers.checkpoint(self.folder.path(), self.state.step, &self.snapshots.steps());
        self.folder.plot_curve()?;
        self.folder.plot_ranks(self.policy.adapter())
    }

    /// Brings the other ranks to the state of this one.
    fn gather(&self) -> Result<()> {
        self.peers.restore(|| self.learner.snapshot(&self.state, &self.policy))?;
        self.peers.agree(self.state.step, &self.policy.version().hash)
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
            self.handle_alarms(&alarms, observer)?;
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
        let held_out = self.evaluation.as_ref().map_or(0, HeldOutEvaluation::len);
        let summary =
            self.folder.summarise(self.config, held_out, &self.state, &after, self.run, self.policy.adapter())?;
        Ok(Outcome::Finished(summary))
    }

    /// One step of the loop. Returns its metrics and the alarms of its guards.
    fn step(&mut self, step: u64, observer: &mut dyn Observer) -> Result<(Metrics, Vec<Alarm>)> {
        let _span = phase_span!("step", number = step);
        let mut clock = StepClock::start();
        let request = self.request(step)?;
        let fresh = if let Some(stored) = self.stored(&request)? {
            stored
        } else {
            let mut fresh = Vec::new();
            for round in 0.. {
                if !request.wants_round(round, &fresh) {
                    break;
                }
                let groups = self.collect(&request, round, fresh.len(), observer)?;
                let start = Instant::now();
                let graded = self.grade(groups, observer)?;
                fresh.extend(self.compare(graded)?);
                clock.graded(start);
            }
            self.store(step, &fresh)?;
            fresh
        };
        self.watch_grades(step, &fresh)?;
        let samples = self.select(request, fresh)?;
        clock.sampled();
        let learned = self.learn(step, &samples, observer)?;
        self.publish(step)?;
        self.peers.agree(step, &self.policy.version().hash)?;
        clock.updated();
        let metrics = self.count(step, &samples, learned, &clock);
        self.log(step, &samples, metrics, observer)
    }

    /// Asks the source for the samples that a step needs.
    fn request(&mut self, step: u64) -> Result<StepRequest> {
        let schedule = self.learner.algorithm().schedule(step);
        self.source.request(&StepContext { step, schedule, store: &self.store, run: self.run })
    }

    /// The step's fresh samples, if they are in the store already or none are asked for.
    fn stored(&self, request: &StepRequest) -> Result<Option<Vec<GradedGroup>>> {
        if request.prompts == 0 {
            return Ok(Some(Vec::new()));
        }
        let stored = self.store.step_groups(self.run, request.step)?;
        Ok(stored.map(|groups| groups.into_iter().map(|group| group.scored).collect()))
    }

    /// Samples one round of a step that has `groups` groups so far.
    fn collect(
        &mut self,
        request: &StepRequest,
        round: usize,
        groups: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Group>> {
        observer.phase(Phase::Sampling);
        let _span = phase_span!("collect");
        self.source.collect(request, round, groups, &mut |progress| observer.progress(Phase::Sampling, progress))
    }

    /// Grades samples by the rewards.
    fn grade(&mut self, groups: Vec<Group>, observer: &mut dyn Observer) -> Result<Vec<GradedGroup>> {
        observer.phase(Phase::Scoring);
        let _span = phase_span!("reward");
        Ok(self.reward.grade(groups)?)
    }

    /// Adds the judge's comparisons, if there is a judge.
    fn compare(&mut self, graded: Vec<GradedGroup>) -> Result<Vec<GradedGroup>> {
        let Some(judge) = &mut self.judge else { return Ok(graded) };
        let _span = phase_span!("reward");
        judge.compare_step(graded)
    }

    /// Commits the step's fresh samples, in one transaction.
    fn store(&self, step: u64, fresh: &[GradedGroup]) -> Result<()> {
        let _span = phase_span!("append");
        let adapter = (self.saved == Some(step - 1)).then(|| self.snapshots.path(step - 1).display().to_string());
        self.store.append_step(self.run, step, fresh, adapter.as_deref())?;
        Ok(())
    }

    /// Warns if nothing of a step could be graded, and ends the run if that goes on.
    fn watch_grades(&mut self, step: u64, fresh: &[GradedGroup]) -> Result<()> {
        match self.ungraded.watch(fresh) {
            Finding::Fine => Ok(()),
            Finding::Warn(reason) => {
                tracing::warn!("step {step}: no sample could be graded, so nothing is learned ({reason})");
                Ok(())
            }
            Finding::Stop(reason) => {
                self.save()?;
                Err(Error::runtime(format!(
                    "no sample could be graded in the last three steps ({reason}), so the run ends before step {step} is learned from; everything is saved. Mend the reward, and go on by proxrl train --resume {}",
                    self.folder.path().display()
                )))
            }
        }
    }

    /// Asks the source for the samples to train on.
    fn select(&mut self, request: StepRequest, fresh: Vec<GradedGroup>) -> Result<StepSamples> {
        let StepRequest { step, schedule, .. } = request;
        self.source.select(&StepContext { step, schedule, store: &self.store, run: self.run }, request, fresh)
    }

    /// Updates the policy, together with the other ranks. Returns the updates' metrics.
    fn learn(&mut self, step: u64, samples: &StepSamples, observer: &mut dyn Observer) -> Result<Metrics> {
        observer.phase(Phase::Updating);
        self.peers.learn(step, &samples.trained)?;
        self.learner.update(step, &samples.trained, &mut self.policy)
    }

    /// Names the policy after the step that made it, and samples from it from now on.
    fn publish(&mut self, step: u64) -> Result<()> {
        self.policy.set_version(step);
        self.source.publish(&self.policy)
    }

    /// Evaluates if it is time to, asks the guards, and logs the step's metrics.
    fn log(
        &mut self,
        step: u64,
        samples: &StepSamples,
        mut metrics: Metrics,
        observer: &mut dyn Observer,
    ) -> Result<(Metrics, Vec<Alarm>)> {
        let every = self.config.evaluate.every;
        if every > 0 && step.is_multiple_of(every) && step < self.config.steps {
            metrics.merge(self.evaluate(observer)?);
        }
        let alarms = self.config.guard.watch(step, &samples.fresh, &mut self.state.guard, &mut metrics);
        for tracker in &mut self.trackers {
            tracker.log(step, &metrics)?;
        }
        self.store.finish_step(self.run, step, &metrics)?;
        Ok((metrics, alarms))
    }

    /// Answers the held-out prompts with the policy that a run would end with now.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<Metrics> {
        let Some(evaluation) = &self.evaluation else { return Ok(Metrics::new()) };
        let _span = phase_span!("evaluate");
        observer.phase(Phase::Evaluating);
        let mut progress = |progress| observer.progress(Phase::Evaluating, progress);
        let policy = self.learner.deployed(&self.policy);
        let rivals = pool::open(self.config, &policy, Some(self.folder.path()))?;
        let mut graders = Graders { reward: &mut self.reward, judge: self.judge.as_mut(), rivals: &rivals };
        evaluation.evaluate(&policy, &self.learner, &mut graders, &mut progress)
    }

    /// Saves the present state, unless it is saved already, and redraws the run's curve.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.step) {
            return Ok(());
        }
        let _span = phase_span!("checkpoint");
        let snapshot = self.learner.snapshot(&self.state, &self.policy);
        let path = self.snapshots.save(&snapshot)?;
        self.saved = Some(self.state.step);
        self.announce_save(&path)
    }
}
