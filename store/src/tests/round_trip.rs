//! Round trips: appended groups come back bit for bit, and only once.

use super::{begin, count, group, new_run, new_store, rich_groups, step_groups};
use crate::{Error, RunStatus};
use schema::Metrics;
use std::time::SystemTime;

#[test]
fn groups_come_back_bit_for_bit() {
    let (_folder, store) = new_store();
    let run = begin(&store, "rich");
    let groups = rich_groups();
    store.append_step(run, 3, &groups, Some("checkpoints/step_3")).unwrap();
    let back = step_groups(&store, run, 3).unwrap().unwrap();
    assert_eq!(back, groups);
    let bits = |groups: &[schema::GradedGroup]| -> Vec<u32> {
        groups.iter().flat_map(|g| &g.group().samples).flat_map(|s| &s.logprobs).map(|p| p.to_bits()).collect()
    };
    assert_eq!(bits(&back), bits(&groups));
    // The order of a prompt's metadata is part of its hash.
    assert_eq!(back[0].group().prompt.hash(), groups[0].group().prompt.hash());
}

#[test]
fn a_step_that_was_never_appended_differs_from_an_empty_one() {
    let (_folder, store) = new_store();
    let run = begin(&store, "empty");
    assert_eq!(step_groups(&store, run, 0).unwrap(), None);
    store.append_step(run, 0, &[], None).unwrap();
    assert_eq!(step_groups(&store, run, 0).unwrap(), Some(vec![]));
}

#[test]
fn appending_a_step_twice_changes_nothing() {
    let (_folder, store) = new_store();
    let run = begin(&store, "twice");
    store.append_step(run, 1, &rich_groups(), None).unwrap();
    let other = [group("2+3?", 9, &[Some(1.0)])];
    let error = store.append_step(run, 1, &other, None).unwrap_err();
    assert!(matches!(error, Error::StepExists { step: 1, .. }), "{error}");
    assert!(!error.is_input());
    assert_eq!(step_groups(&store, run, 1).unwrap().unwrap(), rich_groups());
    assert_eq!((count(&store, "samples"), count(&store, "policies"), count(&store, "prompts")), (4, 2, 2));
    // The store is as usable as before.
    store.append_step(run, 2, &other, None).unwrap();
}

#[test]
fn a_policy_version_has_one_content() {
    let (_folder, store) = new_store();
    let run = begin(&store, "policy");
    store.append_step(run, 1, &[group("a", 5, &[Some(1.0)])], None).unwrap();
    let mut changed = group("b", 5, &[Some(1.0)]).group().clone();
    changed.policy.hash = "other".into();
    let changed = schema::GradedGroup::new(changed, vec![super::verdict(Some(1.0))]).unwrap();
    let error = store.append_step(run, 2, &[changed], None).unwrap_err();
    assert!(error.to_string().contains("policy version 5 of run 1"), "{error}");
    assert_eq!(step_groups(&store, run, 2).unwrap(), None);
    assert_eq!((count(&store, "groups"), count(&store, "prompts"), count(&store, "steps")), (1, 1, 1));
}

#[test]
fn prompts_are_kept_once_per_tokenization() {
    let (_folder, store) = new_store();
    let (one, two) = (begin(&store, "one"), begin(&store, "two"));
    store.append_step(one, 0, &[group("2+2?", 0, &[Some(1.0)]), group("2+2?", 0, &[None])], None).unwrap();
    store.append_step(two, 0, &[group("2+2?", 0, &[Some(1.0)])], None).unwrap();
    assert_eq!(count(&store, "prompts"), 1);
    let mut other = group("2+2?", 0, &[Some(1.0)]).group().clone();
    other.prompt_ids.push(4);
    let other = schema::GradedGroup::new(other, vec![super::verdict(Some(1.0))]).unwrap();
    store.append_step(two, 1, std::slice::from_ref(&other), None).unwrap();
    assert_eq!(count(&store, "prompts"), 2);
    assert_eq!(step_groups(&store, two, 1).unwrap().unwrap(), [other]);
}

#[test]
fn what_could_not_come_back_is_refused() {
    let (_folder, store) = new_store();
    let run = begin(&store, "refused");
    let check = |scored: schema::GradedGroup, part: &str| {
        let error = store.append_step(run, 0, &[group("fine", 0, &[Some(1.0)]), scored], None).unwrap_err();
        assert!(error.to_string().starts_with("sample 1 of group 1 cannot be stored: "), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let good = group("a", 0, &[Some(0.0), Some(1.0)]);
    let mut ragged = good.group().clone();
    ragged.samples[1].logprobs.clear();
    check(
        schema::GradedGroup::new(ragged, good.verdicts().to_vec()).unwrap(),
        "1 tokens, 1 entries in its mask and 0 log",
    );
    check(group("a", 0, &[Some(0.0), Some(f32::NAN)]), "reward `exact` is Some(NaN)");
    assert_eq!(count(&store, "steps"), 0);
}

#[test]
fn the_adapter_belongs_to_the_newest_policy() {
    let (_folder, store) = new_store();
    let run = begin(&store, "adapters");
    store.append_step(run, 3, &rich_groups(), Some("step_3")).unwrap();
    let adapters = store.query("SELECT version, adapter FROM policies ORDER BY version").unwrap();
    assert_eq!(adapters.to_csv(), "version,adapter\r\n2,\r\n3,step_3\r\n");
}

#[test]
fn runs_steps_and_checkpoints() {
    let (_folder, store) = new_store();
    let (first, second) = (begin(&store, "same"), begin(&store, "same"));
    let run = store.run(first).unwrap();
    let expected = new_run("same");
    assert_eq!((run.name, run.config, run.out_dir), (expected.name, expected.config, expected.out_dir));
    assert_eq!((run.status, run.started_at, run.finished_at), (RunStatus::Running, expected.started_at, None));

    assert_eq!(store.find_run("same").unwrap().id, second);
    assert_eq!(store.find_run("1").unwrap().id, first);
    let error = store.find_run("nope").unwrap_err();
    assert_eq!(error.to_string(), "the store holds no run `nope`; it holds same");
    assert!(error.is_input());

    store.finish_run(first, RunStatus::Interrupted).unwrap();
    assert!(store.run(first).unwrap().finished_at.unwrap() <= SystemTime::now());
    store.finish_run(first, RunStatus::Running).unwrap();
    assert_eq!(store.run(first).unwrap().finished_at, None);
    assert_eq!(store.runs().unwrap().len(), 2);
    assert!(store.finish_run(crate::RunId(9), RunStatus::Failed).is_err());

    let mut metrics = Metrics::new();
    metrics.set("reward", 0.1 + 0.2);
    metrics.set("kl", f64::NAN);
    store.finish_step(first, 0, &Metrics::new()).unwrap();
    store.finish_step(first, 0, &metrics).unwrap();
    let (step, back) = store.metrics(first).unwrap().remove(0);
    assert_eq!((step, back.get("reward")), (0, Some(0.1 + 0.2)));
    assert!(back.get("kl").unwrap().is_nan());
    // Metrics that come before the samples do not stand for them.
    assert_eq!(step_groups(&store, first, 0).unwrap(), None);
    store.append_step(first, 0, &rich_groups(), None).unwrap();
    assert_eq!(store.metrics(first).unwrap().len(), 1);

    store.checkpoint(first, 0, "a", "1").unwrap();
    store.checkpoint(first, 0, "b", "2").unwrap();
    assert_eq!(store.query("SELECT path, hash FROM checkpoints").unwrap().to_csv(), "path,hash\r\nb,2\r\n");
    // A step of no run is refused by the foreign key.
    assert!(store.finish_step(crate::RunId(9), 0, &metrics).is_err());
    assert!(matches!(store.append_step(crate::RunId(9), 0, &[], None).unwrap_err(), Error::NoSuchRun { .. }));
}
