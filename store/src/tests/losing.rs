//! A store whose files go away under a program: it says so, and what was paid for is in a copy.

use super::{begin, count, is_postgres, new_store, realistic_step, step_groups, url};
use crate::{Error, RunId, RunStatus, Store};
use std::fs;
use std::path::Path;

/// Asserts that the store is said to be lost, as a failure while running, and returns the sentence.
fn lost<T: std::fmt::Debug>(outcome: crate::Result<T>) -> String {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Removed { .. }) && !error.is_input(), "{error}");
    let text = error.to_string();
    assert!(text.contains("proxrl.db was removed or replaced while this program had it open"), "{text}");
    text
}

fn copies(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut copies: Vec<String> = names.filter(|name| name.contains("rescued")).collect();
    copies.sort();
    copies
}

#[test]
fn a_removed_store_is_copied_with_the_step_that_found_it_out() {
    if is_postgres() {
        return;
    }
    let (folder, store) = new_store();
    let run = begin(&store, "run");
    store.append_step(run, 1, &realistic_step(1, 2, 3, 5), None).unwrap();
    for end in ["", "-wal", "-shm"] {
        fs::remove_file(folder.path().join(format!("proxrl.db{end}"))).unwrap();
    }
    let said = lost(store.append_step(run, 2, &realistic_step(2, 2, 3, 5), None));
    let copy = folder.path().join("proxrl.rescued-1.db");
    assert!(said.contains(&format!("its 4 groups with 12 samples were copied to {}", copy.display())), "{said}");
    // Nothing more is taken, and it is copied once.
    assert_eq!(lost(store.append_step(run, 3, &realistic_step(3, 2, 3, 5), None)), said);
    assert_eq!(lost(store.finish_run(run, RunStatus::Failed)), said);
    drop(store);
    assert_eq!(copies(folder.path()), ["proxrl.rescued-1.db"]);
    fs::rename(copy, folder.path().join("proxrl.db")).unwrap();
    let store = Store::open(folder.url()).unwrap();
    assert!(store.verify().unwrap().is_sound());
    assert_eq!(step_groups(&store, run, 2).unwrap().unwrap(), realistic_step(2, 2, 3, 5));
    assert_eq!(count(&store, "samples"), 12);
}

#[test]
fn nothing_is_written_behind_a_file_that_took_its_place() {
    if is_postgres() {
        return;
    }
    let (folder, store) = new_store();
    let run = begin(&store, "mine");
    store.append_step(run, 1, &realistic_step(1, 2, 3, 5), None).unwrap();
    let other = folder.path().join("other.db");
    begin(&Store::open(&url(&other)).unwrap(), "theirs");
    let before = fs::read(&other).unwrap();
    fs::rename(&other, folder.path().join("proxrl.db")).unwrap();
    let said = lost(store.append_step(run, 2, &realistic_step(2, 2, 3, 5), None));
    assert!(said.contains("its 2 groups with 6 samples were copied"), "{said}");
    drop(store);
    assert_eq!(fs::read(folder.path().join("proxrl.db")).unwrap(), before);
    let copy = Store::open_read_only(&url(&folder.path().join("proxrl.rescued-1.db"))).unwrap();
    assert_eq!(copy.step_groups(run, 2).unwrap(), None);
    assert!(copy.verify().unwrap().is_sound());
}

#[test]
fn a_log_that_is_removed_is_a_store_that_is_lost() {
    if is_postgres() {
        return;
    }
    for end in ["-wal", "-shm"] {
        let (folder, store) = new_store();
        let run = begin(&store, "run");
        fs::write(folder.path().join("proxrl.rescued-1.db"), "of an earlier time").unwrap();
        fs::remove_file(folder.path().join(format!("proxrl.db{end}"))).unwrap();
        let said = lost(store.append_step(run, 1, &realistic_step(1, 2, 3, 5), None));
        assert!(said.contains("its 0 groups with 0 samples were copied to"), "{said}");
        assert_eq!(copies(folder.path()), ["proxrl.rescued-1.db", "proxrl.rescued-2.db"]);
    }
}

#[test]
fn a_store_whose_folder_is_gone_too_says_that_it_could_not_be_copied() {
    if is_postgres() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    fs::create_dir(&runs).unwrap();
    let store = Store::open(&url(&runs.join("proxrl.db"))).unwrap();
    let run = begin(&store, "run");
    fs::remove_dir_all(&runs).unwrap();
    let said = lost(store.append_step(run, 1, &realistic_step(1, 2, 3, 5), None));
    assert!(said.contains("its 2 groups with 6 samples could not be copied to"), "{said}");
    assert_eq!(run, RunId(1));
}

#[test]
fn reading_does_not_mind() {
    if is_postgres() {
        return;
    }
    let (folder, store) = new_store();
    begin(&store, "run");
    drop(store);
    let reader = Store::open_read_only(folder.url()).unwrap();
    fs::remove_file(folder.path().join("proxrl.db")).unwrap();
    assert_eq!(reader.runs().unwrap().len(), 1);
    assert_eq!(copies(folder.path()).len(), 0);
}
