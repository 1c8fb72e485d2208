//! Room that a pruning gives back to the file system, and what others may do meanwhile.

use super::{begin, execute, is_postgres, new_store, one, realistic_step};
use crate::{Prune, RunStatus, Store, Value};

const RULE: Prune = Prune { run: None, keep_steps: Some(1), below_policy: None, max_bytes: None };

/// A finished run of six steps, about 300 kB.
fn fill(store: &Store) {
    let run = begin(store, "old");
    for step in 1..=6 {
        store.append_step(run, step, &realistic_step(step, 4, 4, 200), None).unwrap();
    }
    store.finish_run(run, RunStatus::Finished).unwrap();
}

fn pragma(store: &Store, name: &str) -> i64 {
    match one(&store.query(&format!("SELECT {name} FROM pragma_{name}")).unwrap()) {
        Value::Integer(number) => *number,
        other => panic!("{other:?}"),
    }
}

/// Another process may write: it is not kept waiting.
fn may_write(store: &Store) {
    let run = begin(store, "beside");
    store.append_step(run, 1, &realistic_step(1, 1, 1, 5), None).unwrap();
}

#[test]
fn a_new_file_shrinks_in_pieces_while_others_have_it_open() {
    if is_postgres() {
        return;
    }
    let (folder, store) = new_store();
    fill(&store);
    // INCREMENTAL
    assert_eq!(pragma(&store, "auto_vacuum"), 2);
    let other = Store::open(folder.url()).unwrap();
    let path = folder.path().join("proxrl.db");
    execute(&store, "PRAGMA wal_checkpoint(TRUNCATE)");
    let before = std::fs::metadata(&path).unwrap().len();
    let pruned = store.prune(&RULE).unwrap();
    assert_eq!((pruned.steps, pruned.kept_room), (5, None));
    assert_eq!(pragma(&store, "freelist_count"), 0);
    let after = std::fs::metadata(&path).unwrap().len();
    assert_eq!((before, after), (pruned.bytes_before, pruned.bytes_after));
    assert!(after < before, "{before} to {after}");
    may_write(&other);
    assert!(other.verify().unwrap().is_sound());
}

#[test]
fn a_piece_is_as_many_pages_as_it_says() {
    if is_postgres() {
        return;
    }
    let (_folder, store) = new_store();
    // A megabyte, and its room when it is gone: 256 pages and a few.
    execute(&store, "CREATE TABLE filler AS SELECT randomblob(1048576) AS x");
    execute(&store, "DROP TABLE filler");
    let free = pragma(&store, "freelist_count");
    assert!(free > 256, "{free}");
    execute(&store, "PRAGMA incremental_vacuum(100)");
    assert_eq!(pragma(&store, "freelist_count"), free - 100);
}

#[test]
fn a_file_of_an_earlier_version_is_written_anew_only_by_who_is_alone_with_it() {
    if is_postgres() {
        return;
    }
    let (folder, store) = new_store();
    fill(&store);
    execute(&store, "PRAGMA auto_vacuum = NONE");
    execute(&store, "VACUUM");
    assert_eq!(pragma(&store, "auto_vacuum"), 0);
    let other = Store::open_read_only(folder.url()).unwrap();
    let pruned = store.prune(&RULE).unwrap();
    let said = pruned.kept_room.expect("another one has it open");
    assert!(said.contains("because another process has the store open; the next `prune`"), "{said}");
    assert_eq!((pruned.steps, pragma(&store, "auto_vacuum")), (5, 0));
    assert!(pragma(&store, "freelist_count") > 0 && pruned.bytes_after < pruned.bytes_before);
    // Neither reading nor writing waits, in handles old and new.
    assert_eq!(other.count_samples(None).unwrap(), 16);
    may_write(&Store::open(folder.url()).unwrap());
    drop(other);
    // There is no step to remove now, but room to give back.
    let again = store.prune(&RULE).unwrap();
    assert_eq!((again.steps, again.kept_room), (0, None));
    assert_eq!((pragma(&store, "auto_vacuum"), pragma(&store, "freelist_count")), (2, 0));
    may_write(&Store::open(folder.url()).unwrap());
    may_write(&store);
    assert!(store.verify().unwrap().is_sound());
}

#[test]
fn room_that_is_free_for_later_samples_does_not_count() {
    let (folder, store) = new_store();
    fill(&store);
    if !is_postgres() {
        // So that the room stays in the file.
        execute(&store, "PRAGMA auto_vacuum = NONE");
        execute(&store, "VACUUM");
    }
    let beside = (!is_postgres()).then(|| Store::open_read_only(folder.url()).unwrap());
    let pruned = store.prune(&RULE).unwrap();
    assert!(pruned.kept_room.is_some() && pruned.bytes_after < pruned.bytes_before / 2, "{pruned:?}");
    // What was asked for is reached, although neither engine gave the room back.
    let size = Prune { max_bytes: Some(pruned.bytes_after), ..Prune::default() };
    let again = store.prune(&size).unwrap();
    assert_eq!((again.steps, again.bytes_before), (0, pruned.bytes_after));
    drop(beside);
}
