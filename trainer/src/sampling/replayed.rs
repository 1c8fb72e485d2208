//! Old groups in the place of fresh ones (ReMix: Liang et al. 2025, arXiv 2507.06892).
//!
//! A step that its schedule gives a share `p` of old groups asks `(1 − p) B` prompts instead of `B`, and takes the rest
//! from what the run has stored in the last few steps: whole groups, each equally likely, none twice in a step. What
//! the window cannot supply (the first step has no past) is drawn. Every old sample brings the log-probabilities of the
//! policy that drew it.
//!
//! Groups whose rewards are all alike, and groups with an empty completion, are never replayed: they would take the
//! place of samples that teach something.
//!
//! A run may begin with what another run has paid for: as long as its own past is too short, the rest comes from there
//! ([`Past`]). Those groups keep the run and the policy that drew them, and both must stand on the same base model.
//!
//! The draw depends on the seed, the step and the samples of earlier steps, all of which a resumed run has: the store
//! only grows.

use super::{Desk, Home, Rollouts, Source, StepSamples};
use crate::algorithm::{Replay, Schedule};
use crate::objective::has_signal;
use crate::report::metrics;
use crate::{Error, Result};
use model::Policy;
use schema::{Metrics, Sample, ScoredGroup, Seed};
use store::replay::Uniform;
use store::{ReplaySampler, ReplayedGroup, RunId, RunStatus, Store};

/// Draws samples, or takes old ones where the schedule says so. Fresh groups come first.
pub(crate) struct Replayed {
    rollouts: Rollouts,
    past: Option<Past>,
    seed: Seed,
}

impl Replayed {
    /// `rollouts` draws what is fresh, and `past` is another run's; `seed` decides which old groups come back.
    pub(crate) fn new(rollouts: Rollouts, past: Option<Past>, seed: Seed) -> Self {
        Self { rollouts, past, seed }
    }
}

/// What another run has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past(RunId);

impl Past {
    /// The run with this name or number in the store at `url`, which must have ended and have sampled from the base model
    /// called `identity`.
    pub(crate) fn find(url: &str, name: &str, identity: &str) -> Result<Self> {
        let run = Store::open_read_only(url)?.find_run(name)?;
        if run.model_hash != identity {
            return Err(Error::input(format!(
                "replay.run: `{name}` sampled from another base model, so its tokens and log-probabilities mean nothing here; choose a run of the same model.path"
            )));
        }
        if run.status == RunStatus::Running {
            return Err(Error::input(format!(
                "replay.run: `{name}` has not ended, so what it holds may still change; wait for it, or resume and finish it"
            )));
        }
        Ok(Self(run.id))
    }

    fn source(self, store: &Store, present: RunId) -> Result<store::replay::Source<'_>> {
        if self.0 == present {
            return Err(Error::input("replay.run: this is the run itself; name the other one by its number"));
        }
        Ok(store::replay::Source::runs(store, &[self.0])?)
    }
}

impl Source for Replayed {
    fn begin(&mut self, home: &Home<'_>) -> Result<()> {
        self.rollouts.begin(home)
    }

    fn publish(&mut self, policy: &Policy) -> Result<()> {
        self.rollouts.publish(policy)
    }

    fn step(&mut self, step: u64, schedule: &Schedule, desk: Desk<'_>) -> Result<StepSamples> {
        let Some(replay) = schedule.replay else { return self.rollouts.step(step, schedule, desk) };
        let groups = self.rollouts.prompts_per_step;
        let (wanted, seed) = (wanted(&replay, groups), self.seed.at(step));
        let teaches = |group: &ScoredGroup| teaches(group, &replay);
        let own = store::replay::Source::of(desk.store, desk.run, step).within(replay.window);
        let mut old = select(&own, wanted, &seed, &teaches)?;
        if let Some(past) = self.past.filter(|_| old.len() < wanted) {
            let other = past.source(desk.store, desk.run)?;
            old.extend(select(&other, wanted - old.len(), &seed.child("other run"), &teaches)?);
        }
        let mut samples = self.rollouts.fresh(step, groups - old.len(), schedule, desk)?;
        samples.metrics.merge(metrics(&old, samples.trained()));
        let old = old.into_iter().map(|group| group.stored.scored);
        samples.chosen = Some(samples.trained().iter().cloned().chain(old).collect());
        Ok(samples)
    }
}

/// How many of `groups` groups are to be old ones; at least one is fresh.
fn wanted(replay: &Replay, groups: usize) -> usize {
    ((replay.share * groups as f64).round() as usize).min(groups.saturating_sub(1))
}

/// Up to `wanted` groups of `source` that are `worth` it, each that there are equally likely.
fn select(
    source: &store::replay::Source<'_>,
    wanted: usize,
    seed: &Seed,
    worth: &dyn Fn(&ScoredGroup) -> bool,
) -> Result<Vec<ReplayedGroup>> {
    // A longer draw begins with the shorter one, so that drawing more only adds groups.
    let mut count = wanted;
    loop {
        let drawn = Uniform.draw_from(source, count, seed)?;
        let exhausted = drawn.len() < count;
        let mut worthy: Vec<ReplayedGroup> = drawn.into_iter().filter(|group| worth(&group.stored.scored)).collect();
        if exhausted || worthy.len() >= wanted {
            worthy.truncate(wanted);
            return Ok(worthy);
        }
        count *= 2;
    }
}

fn teaches(group: &ScoredGroup, replay: &Replay) -> bool {
    let signal = !replay.only_with_signal || has_signal(&group.rewards());
    signal && !group.group().samples.iter().any(Sample::is_empty)
}

/// | metric | meaning |
/// |---|---|
/// | `replay/groups`, `replay/samples` | old groups and samples that the step learns from |
/// | `replay/fresh_groups`, `replay/fresh_samples` | drawn ones |
/// | `replay/age_mean`, `replay/age_max` | how many steps ago the old ones were drawn |
fn metrics(old: &[ReplayedGroup], fresh: &[ScoredGroup]) -> Metrics {
    let mut metrics = store::replay::metrics(old);
    metrics.set("replay/fresh_groups", fresh.len() as f64);
    metrics.set("replay/fresh_samples", fresh.iter().map(|group| group.group().samples.len()).sum::<usize>() as f64);
    metrics
}

/// Learns from another run's samples alone: nothing is drawn.
///
/// Each step takes `groups` groups of that run, each equally likely and none twice in the step, of those whose rewards
/// differ and that have no empty completion.
pub(crate) struct Offline {
    past: Past,
    groups: usize,
    /// The smallest group that the algorithm can learn from.
    group_size: usize,
    seed: Seed,
}

impl Offline {
    /// `groups` groups of `past` a step, each of at least `group_size` samples; `seed` decides which.
    pub(crate) fn new(past: Past, groups: usize, group_size: usize, seed: Seed) -> Self {
        Self { past, groups, group_size, seed }
    }
}

impl Source for Offline {
    fn publish(&mut self, _policy: &Policy) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, step: u64, _schedule: &Schedule, desk: Desk<'_>) -> Result<StepSamples> {
        let replay = Replay { share: 1.0, window: 0, only_with_signal: self.group_size > 1 };
        let worth = |group: &ScoredGroup| group.group().samples.len() >= self.group_size && teaches(group, &replay);
        let old = select(&self.past.source(desk.store, desk.run)?, self.groups, &self.seed.at(step), &worth)?;
        if old.is_empty() {
            return Err(Error::input(
                "replay.run: that run holds no group whose samples have different rewards, so nothing can be learned from it",
            ));
        }
        let mut metrics = metrics(&old, &[]);
        let chosen: Vec<ScoredGroup> = old.into_iter().map(|group| group.stored.scored).collect();
        metrics.merge(metrics::samples(&chosen));
        Ok(StepSamples { fresh: Vec::new(), chosen: Some(chosen), metrics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;
    use std::collections::HashSet;
    use std::time::SystemTime;
    use store::NewRun;

    /// Two groups with a signal and two without in each of three steps.
    fn stored() -> (tempfile::TempDir, Store, RunId) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite://{}", folder.path().join("a.db").display())).unwrap();
        let run = store
            .begin_run(&NewRun {
                name: "old".into(),
                config: String::new(),
                program_version: String::new(),
                out_dir: folder.path().to_owned(),
                model_hash: String::new(),
                started_at: SystemTime::UNIX_EPOCH,
            })
            .unwrap();
        for step in 1..=3 {
            let groups = scored(&[&[1.0, 1.0], &[1.0, 0.0], &[0.0, 0.0], &[0.0, 1.0]]);
            store.append_step(run, step, &groups, None).unwrap();
        }
        (folder, store, run)
    }

    const REPLAY: Replay = Replay { share: 0.4, window: 2, only_with_signal: true };

    #[test]
    fn a_share_is_rounded_and_leaves_something_fresh() {
        assert_eq!([8, 5, 2, 1, 0].map(|groups| wanted(&REPLAY, groups)), [3, 2, 1, 0, 0]);
        assert_eq!(wanted(&Replay { share: 0.99, ..REPLAY }, 8), 7);
    }

    #[test]
    fn only_groups_that_teach_come_back_and_each_once() {
        let (_folder, store, run) = stored();
        let select = |replay: Replay, wanted, seed| {
            let own = store::replay::Source::of(&store, run, 4).within(replay.window);
            select(&own, wanted, &Seed::new(seed), &|group| teaches(group, &replay)).unwrap()
        };
        for seed in 0..20 {
            let old = select(REPLAY, 3, seed);
            assert_eq!(old.len(), 3);
            assert!(old.iter().all(|group| has_signal(&group.stored.scored.rewards()) && group.age <= 2));
            assert_eq!(old.iter().map(|group| group.stored.id).collect::<HashSet<_>>().len(), 3);
            assert_eq!(old, select(REPLAY, 3, seed));
        }
        // Two steps of two groups are all that there is.
        assert_eq!(select(REPLAY, 9, 0).len(), 4);
        assert_eq!(select(Replay { only_with_signal: false, ..REPLAY }, 9, 0).len(), 8);
        assert_eq!(select(Replay { window: 1, ..REPLAY }, 9, 0).len(), 2);
    }

    #[test]
    fn the_first_step_has_no_past() {
        let (_folder, store, run) = stored();
        let own = store::replay::Source::of(&store, run, 1);
        assert!(select(&own, 3, &Seed::new(0), &|_| true).unwrap().is_empty());
    }

    #[test]
    fn what_was_drawn_is_described() {
        let (_folder, store, run) = stored();
        let own = store::replay::Source::of(&store, run, 4).within(2);
        let old = select(&own, 4, &Seed::new(0), &|group| teaches(group, &REPLAY)).unwrap();
        let metrics = metrics(&old, &scored(&[&[1.0]]));
        // the two groups of step 3 and the two of step 2, seen from step 4
        let expected = [
            ("replay/age_max", 2.0),
            ("replay/age_mean", 1.5),
            ("replay/fresh_groups", 1.0),
            ("replay/fresh_samples", 1.0),
            ("replay/groups", 4.0),
            ("replay/samples", 8.0),
        ];
        assert_eq!(metrics.iter().collect::<Vec<_>>(), expected);
    }
}
