//! Drawing old groups.

use super::{begin, group, new_store, realistic_step};
use crate::{Recent, ReplaySampler, ReplayedGroup, Store};
use schema::Seed;
use std::collections::HashSet;

fn draw(store: &Store, steps: u64, now: u64, count: usize, seed: u64) -> Vec<ReplayedGroup> {
    let run = store.find_run("replayed").unwrap().id;
    Recent { steps }.draw(store, run, now, count, &Seed::new(seed)).unwrap()
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
