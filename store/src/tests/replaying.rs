//! Sampling of old groups: rules, ages, and the rewards of a scoring.

use super::{begin, group, new_store, realistic_step};
use crate::replay::{self, Ages, FillRule, Recent, ReplaySampler, ReplaySource, Stratified};
use crate::{ReplayedGroup, RunId, SampleId, Scoring, Store};
use schema::{GradedGroup, Seed};
use std::collections::HashSet;

fn draw(store: &Store, steps: u64, now: u64, count: usize, seed: u64) -> Vec<ReplayedGroup> {
    let run = store.find_run("replayed").unwrap().id;
    ReplaySampler::Recent(Recent { steps }).draw(&ReplaySource::of(store, run, now), count, &Seed::new(seed)).unwrap()
}

#[test]
fn the_window_ends_before_this_step_and_reaches_back_as_far_as_asked() {
    let (_folder, store) = new_store();
    // Another run's groups lie between ours.
    let (run, other) = (begin(&store, "replayed"), begin(&store, "other"));
    for step in 0..6 {
        store.append_step(run, step, &realistic_step(step, 3, 2, 4), None).unwrap();
        store.append_step(other, step, &[group("other", step, &[Some(1.0)])], None).unwrap();
    }
    let drawn = draw(&store, 2, 5, 100, 1);
    let steps: Vec<u64> = drawn.iter().map(|group| group.stored.step).collect();
    assert_eq!(drawn.len(), 6);
    assert_eq!(steps.iter().copied().collect::<HashSet<_>>(), HashSet::from([3, 4]));
    for group in &drawn {
        assert_eq!((group.stored.run, group.age), (run, 5 - group.stored.step));
        assert_eq!(group.stored.scored.group().policy.version, group.stored.step);
        assert_eq!(group.stored.sample_ids.len(), 2);
        assert!(realistic_step(group.stored.step, 3, 2, 4).contains(&group.stored.scored));
    }
    assert!(draw(&store, 0, 5, 100, 1).is_empty());
    assert!(draw(&store, 3, 0, 100, 1).is_empty());
    assert_eq!(draw(&store, 99, 3, 100, 1).len(), 9);
}

#[test]
fn a_draw_repeats_under_its_seed_and_holds_no_group_twice() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    for step in 0..40 {
        store.append_step(run, step, &realistic_step(step, 4, 1, 2), None).unwrap();
    }
    let drawn = draw(&store, 40, 40, 130, 7);
    assert_eq!(drawn, draw(&store, 40, 40, 130, 7));
    assert_ne!(drawn, draw(&store, 40, 40, 130, 8));
    assert_eq!(drawn.iter().map(|group| group.stored.id).collect::<HashSet<_>>().len(), 130);
    let ids: Vec<_> = drawn.iter().map(|group| group.stored.id).collect();
    let again = store.groups(&ids).unwrap();
    assert!(again.iter().zip(&drawn).all(|(group, drawn)| *group == drawn.stored));
}

/// Appends a step of one group with these rewards.
fn rewarded(store: &Store, run: RunId, step: u64, question: &str, rewards: &[Option<f32>]) -> GradedGroup {
    let scored = group(question, step, rewards);
    store.append_step(run, step, std::slice::from_ref(&scored), None).unwrap();
    scored
}

#[test]
fn uniform_reaches_every_earlier_step_and_a_limit_cuts_it() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    for step in 1..=6 {
        store.append_step(run, step, &realistic_step(step, 2, 1, 2), None).unwrap();
    }
    let own = ReplaySource::of(&store, run, 6);
    let steps = |sampler: ReplaySampler, source: &ReplaySource<'_>| {
        let drawn = sampler.draw(source, 100, &Seed::new(1)).unwrap();
        let mut steps: Vec<u64> = drawn.iter().map(|group| group.stored.step).collect();
        steps.sort_unstable();
        steps
    };
    assert_eq!(steps(ReplaySampler::Uniform, &own), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    assert_eq!(steps(ReplaySampler::Uniform, &own.within(3)), [3, 3, 4, 4, 5, 5]);
    assert_eq!(steps(ReplaySampler::Recent(Recent { steps: 1 }), &own), [5, 5]);
    assert_eq!(steps(ReplaySampler::Recent(Recent { steps: 9 }), &own.within(1)), [5, 5]);
}

#[test]
fn ages_are_counted_over_groups() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    rewarded(&store, run, 1, "a", &[Some(1.0)]);
    rewarded(&store, run, 3, "a", &[Some(1.0), None]);
    let drawn = ReplaySampler::Uniform.draw(&ReplaySource::of(&store, run, 5), 9, &Seed::new(1)).unwrap();
    // Ages 4 and 2.
    assert_eq!(Ages::of(&drawn), Some(Ages { mean: 3.0, max: 4 }));
    let metrics = replay::metrics(&drawn);
    assert_eq!((metrics.get("replay/groups"), metrics.get("replay/samples")), (Some(2.0), Some(3.0)));
    assert_eq!(metrics.get("replay/age_max"), Some(4.0));
    assert_eq!(Ages::of(&[]), None);
    assert_eq!(replay::metrics(&[]).get("replay/age_mean"), None);
}

#[test]
fn other_runs_lend_their_rows_with_their_provenance() {
    let (_folder, store) = new_store();
    let (old, new) = (begin(&store, "old"), begin(&store, "new"));
    for step in 1..=3 {
        rewarded(&store, old, step, "a", &[Some(step as f32)]);
    }
    rewarded(&store, new, 1, "b", &[Some(0.0)]);
    let source = ReplaySource::runs(&store, &[old]).unwrap();
    // The old run ends behind step 3, so step 2 is two steps old.
    let drawn = ReplaySampler::Uniform.draw(&source.within(2), 9, &Seed::new(1)).unwrap();
    let mut ages: Vec<(u64, u64)> = drawn.iter().map(|group| (group.stored.step, group.age)).collect();
    ages.sort_unstable();
    assert_eq!(ages, [(2, 2), (3, 1)]);
    assert!(drawn.iter().all(|group| group.stored.run == old));
    assert!(drawn.iter().all(|group| group.stored.scored.group().policy.version == group.stored.step));

    let both = ReplaySource::of(&store, new, 2).and(&source).and(&source);
    assert_eq!(both.pasts().len(), 2);
    let drawn = ReplaySampler::Uniform.draw(&both, 9, &Seed::new(1)).unwrap();
    assert_eq!(drawn.iter().map(|group| group.stored.run).collect::<HashSet<_>>(), HashSet::from([old, new]));
    assert_eq!(drawn.len(), 4);
    assert!(ReplaySource::runs(&store, &[RunId(9)]).unwrap_err().is_input());
}

#[test]
fn stratified_draws_only_groups_with_a_signal() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    for step in 1..=40 {
        // Every fourth step differs in reward, every eighth by more than a half.
        let second = if step % 8 == 0 {
            1.0
        } else if step % 4 == 0 {
            0.25
        } else {
            0.0
        };
        rewarded(&store, run, step, "a", &[Some(0.0), Some(second), None]);
    }
    let draw = |min_difference, count, seed| {
        let sampler = ReplaySampler::Stratified(Stratified { min_difference });
        let drawn = sampler.draw(&ReplaySource::of(&store, run, 41), count, &Seed::new(seed)).unwrap();
        drawn.iter().map(|group| group.stored.step).collect::<Vec<u64>>()
    };
    let sorted = |mut steps: Vec<u64>| {
        steps.sort_unstable();
        steps
    };
    assert_eq!(sorted(draw(0.0, 99, 1)), [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]);
    assert_eq!(sorted(draw(0.5, 99, 1)), [8, 16, 24, 32, 40]);
    assert_eq!(draw(0.0, 3, 1).len(), 3);
    assert_eq!(draw(0.0, 3, 1), draw(0.0, 3, 1));
    assert_ne!(draw(0.0, 3, 1), draw(0.0, 3, 2));
}

#[test]
fn a_group_without_signal_is_filled_with_another_reward() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    rewarded(&store, run, 1, "a", &[Some(0.0), Some(1.0), None]);
    rewarded(&store, run, 2, "b", &[Some(1.0), Some(1.0)]);
    // The same question in other tokens, and at another temperature: no row of these fits.
    for (step, change) in [(3, 0), (4, 1)] {
        let mut other = group("a", step, &[Some(1.0)]).group().clone();
        if change == 0 {
            other.prompt_ids.push(9);
        } else {
            other.settings.temperature = 0.5;
        }
        let other = GradedGroup::new(other, vec![super::verdict(Some(1.0))]).unwrap();
        store.append_step(run, step, &[other], None).unwrap();
    }
    let fresh = [
        group("a", 5, &[Some(0.0), Some(0.0), None]),
        group("b", 5, &[Some(1.0), Some(1.0)]),
        group("a", 5, &[Some(0.0), Some(1.0)]),
        group("a", 5, &[None, None]),
        group("never asked", 5, &[Some(0.0)]),
    ];
    let source = ReplaySource::of(&store, run, 5);
    let fills = FillRule { rows: 4, min_difference: 0.0 }.fill(&source, &fresh, &Seed::new(1)).unwrap();
    // Only the first has no signal and an old row of another reward: the second sample of step 1.
    assert_eq!(fills.len(), 1);
    assert_eq!((fills[0].group, fills[0].rows.len()), (0, 1));
    let row = &fills[0].rows[0];
    assert_eq!((row.id, row.run, row.step, row.age, row.policy.version), (SampleId(2), run, 1, 4, 1));
    assert_eq!(row.sample.logprobs, vec![0.5f32.ln()]);
    let mixed = fills[0].mixed(&fresh[0]);
    assert_eq!(mixed.rewards(), [Some(0.0), Some(0.0), None, Some(1.0)]);

    // A limit on age takes it away again, and so does a difference that is asked for.
    let fill = |rule: FillRule, source: &ReplaySource<'_>| rule.fill(source, &fresh, &Seed::new(1)).unwrap().len();
    assert_eq!(fill(FillRule::default(), &source), 1);
    assert_eq!(fill(FillRule::default(), &source.within(3)), 0);
    assert_eq!(fill(FillRule { rows: 1, min_difference: 1.0 }, &source), 0);
}

#[test]
fn a_source_hands_out_the_scoring_that_was_asked_for() {
    let (_folder, store) = new_store();
    let run = begin(&store, "replayed");
    rewarded(&store, run, 1, "a", &[Some(0.0), Some(0.0)]);
    let again = store.begin_scoring(Some(run), "").unwrap();
    let verdicts = group("a", 1, &[Some(0.0), Some(1.0)]);
    store.add_scores(again, &[(vec![SampleId(1), SampleId(2)], verdicts)]).unwrap();
    let rewards = |scoring| {
        let source = ReplaySource::of(&store, run, 2).scored(scoring).unwrap();
        ReplaySampler::Uniform.draw(&source, 1, &Seed::new(1)).unwrap()[0].stored.scored.rewards()
    };
    assert_eq!(rewards(Scoring::Training), [Some(0.0), Some(0.0)]);
    assert_eq!(rewards(Scoring::Number(again)), [Some(0.0), Some(1.0)]);
    // An unfinished scoring does not count as the latest.
    assert_eq!(rewards(Scoring::Latest), [Some(0.0), Some(0.0)]);
    store.finish_scoring(again).unwrap();
    assert_eq!(rewards(Scoring::Latest), [Some(0.0), Some(1.0)]);
    // Under it the group has a signal.
    let source = ReplaySource::of(&store, run, 2);
    let drawn = |source: &ReplaySource<'_>| {
        ReplaySampler::Stratified(Stratified::default()).draw(source, 1, &Seed::new(1)).unwrap().len()
    };
    assert_eq!((drawn(&source), drawn(&source.clone().scored(Scoring::Latest).unwrap())), (0, 1));
    assert!(source.scored(Scoring::Number(9)).unwrap_err().is_input());
}
