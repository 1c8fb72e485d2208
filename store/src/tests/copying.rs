//! A file's store moves to the engine that is tested, whole and equal.

use super::{
    Place, begin, count, execute, group, is_postgres, new_place, realistic_step, rich_groups, sample, step_groups, url,
};
use crate::{Error, NewJob, RunId, SampleId, Store, Value};
use schema::GradedGroup;
use std::time::Duration;

/// A file with everything in it that a store can hold.
fn full_store() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let url = url(&folder.path().join("full.db"));
    let store = Store::open(&url).unwrap();
    let run = begin(&store, "rich");
    store.append_step(run, 1, &rich_groups(), Some("step_0")).unwrap();
    for step in 4..=9 {
        store.append_step(run, step, &realistic_step(step, 8, 3, 12), None).unwrap();
    }
    let mut odd = group("zero", 10, &[Some(1.0)]).group().clone();
    odd.samples[0] = sample(&[0, 0], "a\0b\u{10fffe}\0");
    let odd = GradedGroup::new(odd, vec![super::verdict(None)]).unwrap();
    store.append_step(run, 10, &[odd], None).unwrap();
    store.finish_step(run, 1, &schema::Metrics::new()).unwrap();
    store.checkpoint(run, 1, "step_1", "hash").unwrap();
    let scoring = store.begin_scoring(Some(run), "[[reward]]").unwrap();
    store.add_scores(scoring, &[(vec![SampleId(4)], group("q", 0, &[Some(0.5)]))]).unwrap();
    store.finish_scoring(scoring).unwrap();
    let job = NewJob { place: 0, groups: 1, min_version: 0, request: "draw".into() };
    store.enqueue(run, 11, &[job]).unwrap();
    store.publish(run, &schema::PolicyVersion { version: 10, hash: "h".into() }, "adapters/10", 0).unwrap();
    begin(&store, "empty");
    (folder, url)
}

fn empty_place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let url = if is_postgres() { new_place() } else { url(&folder.path().join("copy.db")) };
    Place { folder, url }
}

#[test]
fn a_copy_is_equal_and_goes_on() {
    let ((_folder, from), to) = (full_store(), empty_place());
    let mut tables = Vec::new();
    let migrated = Store::migrate(&from, to.url(), &mut |table| tables.push(table.to_owned())).unwrap();
    assert_eq!((tables.len(), tables.first().map(String::as_str)), (12, Some("runs")));
    let (source, copy) = (Store::open_read_only(&from).unwrap(), Store::open(to.url()).unwrap());
    for row in &migrated.tables.rows {
        let Value::Text(table) = &row[0] else { panic!("{row:?}") };
        assert_eq!(row[1], Value::Integer(count(&source, table)), "{table}");
        assert_eq!(count(&source, table), count(&copy, table), "{table}");
    }
    assert_eq!(
        migrated.rows,
        migrated.tables.rows.iter().map(|row| if let Value::Integer(n) = row[1] { n as u64 } else { 0 }).sum::<u64>()
    );
    let found = copy.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
    let run = RunId(1);
    for step in 1..=10 {
        assert_eq!(step_groups(&copy, run, step).unwrap(), step_groups(&source, run, step).unwrap(), "step {step}");
    }
    for ask in [Store::list, Store::scorings] {
        assert_eq!(ask(&copy).unwrap(), ask(&source).unwrap());
    }
    assert_eq!(copy.stats(None).unwrap(), source.stats(None).unwrap());
    // New rows get numbers of their own.
    copy.append_step(run, 12, &realistic_step(12, 2, 2, 5), None).unwrap();
    assert_eq!(begin(&copy, "third"), RunId(3));
    assert_eq!(copy.begin_scoring(None, "").unwrap(), 2);
    let lease = copy.claim("a", "abc", Some(run), Duration::from_secs(9)).unwrap().unwrap();
    assert_eq!((lease.step, lease.request), (11, "draw".into()));
}

#[test]
fn a_store_that_holds_something_is_not_copied_into() {
    let ((_folder, from), to) = (full_store(), empty_place());
    begin(&Store::open(to.url()).unwrap(), "mine");
    let error = Store::migrate(&from, to.url(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }) && error.is_input(), "{error}");
    assert_eq!(count(&Store::open(to.url()).unwrap(), "samples"), 0);
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let ((_folder, from), to) = (full_store(), empty_place());
    // The second table cannot take what the first file holds.
    let target = Store::open(to.url()).unwrap();
    let narrow = if is_postgres() {
        "ALTER TABLE samples ADD CONSTRAINT narrow CHECK (length < 3)"
    } else {
        "DROP VIEW sample_view; DROP VIEW group_view; DROP VIEW reward_view; DROP TABLE samples;
        CREATE TABLE samples (id INTEGER PRIMARY KEY)"
    };
    execute(&target, narrow);
    drop(target);
    assert!(Store::migrate(&from, to.url(), &mut |_| ()).is_err());
    let target = Store::open(to.url()).unwrap();
    assert_eq!((count(&target, "runs"), count(&target, "groups")), (0, 0));
}
