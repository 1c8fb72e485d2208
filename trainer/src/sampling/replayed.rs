//! Old groups in the place of fresh ones (ReMix: Liang et al. 2025, arXiv 2507.06892).
//!
//! A step whose schedule replays a share `p` samples for `(1 − p) B` prompts instead of `B`, and takes the rest from the
//! groups that the run stored in the last few steps: whole groups, each equally likely, none twice in a step. Groups that
//! the window cannot supply (the first step has no past) are sampled. Every old sample brings the log-probabilities of
//! the policy that sampled it.
//!
//! Groups whose rewards are all alike, and groups with an empty completion, are never replayed: they teach nothing.
//!
//! A run may begin with the samples of another run: as long as its own past is too short, the rest comes from there
//! ([`Past`]). Those groups keep the run and the policy that sampled them, and both runs must have the same base model.
//!
//! The selection depends on the seed, the step and the samples of earlier steps, all of which a resumed run has: the
//! store only grows. With `replay.scoring = "latest"` it also depends on the scorings that finish meanwhile.
//!
//! `[replay]` names the rule that selects groups, the greatest age, and the scoring that grades them. With
//! `[replay.fill]` single old samples of the same prompt and another reward join each group whose rewards are all alike.

use super::{Fresh, Source, StepContext, StepRequest, StepSamples};
use crate::algorithm::{Algorithm, Replay};
use crate::collected::Collected;
use crate::config;
use crate::objective::has_signal;
use crate::report::metrics;
use crate::{Error, Result};
use model::Policy;
use rollout::collector::SamplingProgress;
use schema::{GradedGroup, Group, Metrics, Sample, SamplerSettings, Seed};
use store::replay::{ReplaySampler, ReplaySource, ReplayedGroup};
use store::{RunId, RunStatus, Scoring, Store};

/// Returns `true` if an algorithm replays groups in any step of a run of `steps` steps.
pub(crate) fn replays(algorithm: &dyn Algorithm, steps: u64) -> bool {
    (1..=steps).any(|step| algorithm.schedule(step).replay.is_some())
}

/// Fresh samples, and old ones where the schedule replays. Fresh groups come first.
pub(crate) struct Replayed {
    fresh: Fresh,
    past: Option<Past>,
    rules: config::Replay,
    seed: Seed,
}

impl Replayed {
    /// `past` supplies groups while the run's own past is too short; `seed` decides which old groups come back.
    pub(crate) fn new(fresh: Fresh, past: Option<Past>, rules: config::Replay, seed: Seed) -> Self {
        Self { fresh, past, rules, seed }
    }

    /// The old groups of a step that samples for `prompts` prompts otherwise.
    fn old(&self, context: &StepContext<'_>, replay: &Replay, prompts: usize) -> Result<Vec<ReplayedGroup>> {
        let StepContext { step, store, run, .. } = *context;
        let (wanted, seed) = (wanted(replay, prompts), self.seed.at(step));
        let teaches = |group: &GradedGroup| teaches(group, replay);
        let (rules, sampler) = (&self.rules, self.rules.sampler);
        let own = admitted(ReplaySource::of(store, run, step).within(replay.window), rules)?;
        let mut old = select(&own, sampler, wanted, &seed, &teaches)?;
        if let Some(past) = self.past.filter(|_| old.len() < wanted) {
            let other = admitted(past.source(store, run)?, rules)?;
            old.extend(select(&other, sampler, wanted - old.len(), &seed.child("other run"), &teaches)?);
        }
        Ok(old)
    }

    /// Joins old samples to the groups without signal.
    ///
    /// | metric | meaning |
    /// |---|---|
    /// | `replay/filled_groups` | groups that old samples joined |
    /// | `replay/filled_samples` | those samples |
    fn fill(&self, context: &StepContext<'_>, samples: &mut StepSamples) -> Result<()> {
        let (Some(rule), Collected::Groups(groups)) = (self.rules.fill, &mut samples.trained) else { return Ok(()) };
        let StepContext { step, store, run, .. } = *context;
        let mut source = ReplaySource::of(store, run, step);
        if let Some(past) = self.past {
            source = source.and(&past.source(store, run)?);
        }
        let fills = rule.fill(&admitted(source, &self.rules)?, groups, &self.seed.at(step).child("fill"))?;
        for fill in &fills {
            groups[fill.group] = fill.mixed(&groups[fill.group]);
        }
        let rows: usize = fills.iter().map(|fill| fill.rows.len()).sum();
        samples.metrics.set("replay/filled_groups", fills.len() as f64);
        samples.metrics.set("replay/filled_samples", rows as f64);
        Ok(())
    }
}

/// The part of a source that the rules admit, graded by their scoring.
fn admitted<'a>(source: ReplaySource<'a>, rules: &config::Replay) -> Result<ReplaySource<'a>> {
    let source = if rules.max_staleness == 0 { source } else { source.within(rules.max_staleness) };
    Ok(if rules.scoring == Scoring::Training { source } else { source.scored(rules.scoring)? })
}

/// The stored samples of another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past(RunId);

impl Past {
    /// Finds the run that `[replay]` names in the store at `url`, if it names one; the run must have ended and have sampled
    /// from the base model called `identity`, without truncation unless the rules accept it. Also refuses a scoring that
    /// the store does not hold.
    pub(crate) fn find(url: &str, rules: &config::Replay, identity: &str) -> Result<Option<Self>> {
        if matches!(rules.scoring, Scoring::Number(_)) {
            Store::open_read_only(url)?.judged_by(rules.scoring)?;
        }
        let Some(name) = &rules.run else { return Ok(None) };
        let store = Store::open_read_only(url)?;
        let run = store.find_run(name)?;
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
        if !rules.truncated && store.settings_of(run.id)?.iter().any(SamplerSettings::truncates) {
            return Err(Error::input(format!(
                "replay.run: `{name}` sampled with top_k, top_p or min_p, so its tokens were likelier than their stored log-probabilities say and would get too much weight; choose a run without them, or set replay.truncated = true"
            )));
        }
        Ok(Some(Self(run.id)))
    }

    fn source(self, store: &Store, present: RunId) -> Result<ReplaySource<'_>> {
        if self.0 == present {
            return Err(Error::input("replay.run: this is the run itself; name the other one by its number"));
        }
        Ok(ReplaySource::runs(store, &[self.0])?)
    }
}

impl Source for Replayed {
    fn publish(&mut self, policy: &Policy) -> Result<()> {
        self.fresh.publish(policy)
    }

    fn request(&mut self, context: &StepContext<'_>) -> Result<StepRequest> {
        let mut request = self.fresh.request(context)?;
        if let Some(replay) = &context.schedule.replay {
            let old = self.old(context, replay, request.prompts)?;
            request.prompts -= old.len();
            request.metrics = store::replay::metrics(&old);
            request.existing = Collected::Groups(old.into_iter().map(|group| group.stored.scored).collect());
        }
        Ok(request)
    }

    fn collect(
        &mut self,
        request: &StepRequest,
        round: usize,
        groups: usize,
        progress: &mut dyn FnMut(SamplingProgress),
    ) -> Result<Vec<Group>> {
        self.fresh.collect(request, round, groups, progress)
    }

    fn select(
        &mut self,
        context: &StepContext<'_>,
        mut request: StepRequest,
        fresh: Vec<GradedGroup>,
    ) -> Result<StepSamples> {
        let replayed = request.schedule.replay.map(|_| std::mem::take(&mut request.metrics));
        let old = std::mem::replace(&mut request.existing, Collected::Groups(Vec::new()));
        let mut samples = self.fresh.select(context, request, fresh)?;
        if let (Some(replayed), Collected::Groups(groups), Collected::Groups(old)) =
            (replayed, &mut samples.trained, old)
        {
            samples.metrics.merge(replayed);
            samples.metrics.merge(fresh_metrics(groups));
            groups.extend(old);
        }
        self.fill(context, &mut samples)?;
        Ok(samples)
    }
}

/// The number of old groups among `groups`; at least one is fresh.
fn wanted(replay: &Replay, groups: usize) -> usize {
    ((replay.share * groups as f64).round() as usize).min(groups.saturating_sub(1))
}

/// Up to `wanted` groups of `source` that are `worth` it, each that there are equally likely.
fn select(
    source: &ReplaySource<'_>,
    sampler: ReplaySampler,
    wanted: usize,
    seed: &Seed,
    worth: &dyn Fn(&GradedGroup) -> bool,
) -> Result<Vec<ReplayedGroup>> {
    // A longer draw begins with the shorter one, so that drawing more only adds groups.
    let mut count = wanted;
    loop {
        let drawn = sampler.draw(source, count, seed)?;
        let exhausted = drawn.len() < count;
        let mut worthy: Vec<ReplayedGroup> = drawn.into_iter().filter(|group| worth(&group.stored.scored)).collect();
        if exhausted || worthy.len() >= wanted {
            worthy.truncate(wanted);
            return Ok(worthy);
        }
        count *= 2;
    }
}

fn teaches(group: &GradedGroup, replay: &Replay) -> bool {
    let signal = !replay.only_with_signal || has_signal(&group.rewards());
    signal && !group.group().samples.iter().any(Sample::is_empty)
}

/// The metrics of the fresh groups of a step that replays; those of the old ones are [`store::replay::metrics`].
///
/// | metric | meaning |
/// |---|---|
/// | `replay/groups`, `replay/samples` | old groups and samples that the step trains on |
/// | `replay/fresh_groups`, `replay/fresh_samples` | fresh ones |
/// | `replay/age_mean`, `replay/age_max` | steps since the old ones were sampled |
fn fresh_metrics(fresh: &[GradedGroup]) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.set("replay/fresh_groups", fresh.len() as f64);
    metrics.set("replay/fresh_samples", fresh.iter().map(|group| group.group().samples.len()).sum::<usize>() as f64);
    metrics
}

/// Samples of another run alone: nothing is sampled.
///
/// Each step takes `groups` groups of that run, each equally likely and none twice in the step, of those whose rewards
/// differ and that have no empty completion.
pub(crate) struct Offline {
    past: Past,
    rules: config::Replay,
    groups: usize,
    /// The smallest group that the algorithm can learn from.
    group_size: usize,
    seed: Seed,
}

impl Offline {
    /// `groups` groups of `past` a step, each of at least `group_size` samples; `seed` decides which.
    pub(crate) fn new(past: Past, rules: config::Replay, groups: usize, group_size: usize, seed: Seed) -> Self {
        Self { past, rules, groups, group_size, seed }
    }
}

impl Source for Offline {
    fn request(&mut self, context: &StepContext<'_>) -> Result<StepRequest> {
        let StepContext { step, store, run, .. } = *context;
        let replay = Replay { share: 1.0, window: 0, only_with_signal: self.group_size > 1 };
        let worth = |group: &GradedGroup| group.group().samples.len() >= self.group_size && teaches(group, &replay);
        let source = admitted(self.past.source(store, run)?, &self.rules)?;
        let old = select(&source, self.rules.sampler, self.groups, &self.seed.at(step), &worth)?;
        if old.is_empty() {
            return Err(Error::input(
                "replay.run: that run holds no group whose samples have different rewards, so nothing can be learned from it",
            ));
        }
        let mut metrics = store::replay::metrics(&old);
        metrics.merge(fresh_metrics(&[]));
        let existing: Vec<GradedGroup> = old.into_iter().map(|group| group.stored.scored).collect();
        metrics.merge(metrics::samples(&existing));
        Ok(StepRequest::existing(context, Collected::Groups(existing), metrics))
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
            let own = ReplaySource::of(&store, run, 4).within(replay.window);
            select(&own, ReplaySampler::Uniform, wanted, &Seed::new(seed), &|group| teaches(group, &replay)).unwrap()
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
        let own = ReplaySource::of(&store, run, 1);
        assert!(select(&own, ReplaySampler::Uniform, 3, &Seed::new(0), &|_| true).unwrap().is_empty());
    }

    #[test]
    fn what_was_drawn_is_described() {
        let (_folder, store, run) = stored();
        let own = ReplaySource::of(&store, run, 4).within(2);
        let old = select(&own, ReplaySampler::Uniform, 4, &Seed::new(0), &|group| teaches(group, &REPLAY)).unwrap();
        let mut metrics = store::replay::metrics(&old);
        metrics.merge(fresh_metrics(&scored(&[&[1.0]])));
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
