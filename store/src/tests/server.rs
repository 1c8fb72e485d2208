//! Opening a store on a server, and the errors of a failure. On `SQLite` these tests do nothing.

use super::{begin, execute, is_postgres, new_place, new_store, realistic_step};
use crate::{Error, Store};

#[test]
fn what_cannot_be_reached_is_said_without_the_password() {
    for url in ["postgres://me:secret@127.0.0.1:1/db", "postgres://me@127.0.0.1:1/db?password=secret"] {
        let error = Store::open(url).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }) && !error.is_input());
        let text = format!("{error} {error:?}");
        assert!(text.contains("cannot connect to the store postgres://me@127.0.0.1:1/db: "), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn reading_makes_nothing() {
    if !is_postgres() {
        return;
    }
    let url = new_place();
    for error in [Store::open_read_only(&url).unwrap_err(), Store::open_existing(&url).unwrap_err()] {
        assert!(matches!(error, Error::Missing { .. }) && error.is_input(), "{error}");
    }
    Store::open(&url).unwrap();
    assert_eq!(Store::open_read_only(&url).unwrap().runs().unwrap(), []);
}

#[test]
fn tables_of_another_program_are_left_alone() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    execute(&store, "DROP TABLE schema_version");
    let error = Store::open(place.url()).unwrap_err();
    assert!(error.to_string().contains("a database of another program"), "{error}");
}

#[test]
fn a_newer_store_is_refused() {
    if !is_postgres() {
        return;
    }
    let (place, store) = new_store();
    let newer = "INSERT INTO schema_version (version, program_version, applied_at) VALUES (99, '9.0', 0)";
    execute(&store, newer);
    let error = Store::open(place.url()).unwrap_err();
    assert!(error.to_string().contains("has schema version 99, but this program knows versions up to 4"), "{error}");
}

#[test]
fn many_may_make_the_same_store_at_once() {
    if !is_postgres() {
        return;
    }
    let url = new_place();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d", "e", "f"] {
            let url = &url;
            scope.spawn(move || {
                let store = Store::open(url).unwrap();
                let run = begin(&store, name);
                // Every writer asks the same questions, and in another order than the others.
                let mut groups = realistic_step(1, 8, 2, 3);
                groups.rotate_left(name.len() + usize::from(name.as_bytes()[0]) % 8);
                store.append_step(run, 1, &groups, None).unwrap();
            });
        }
    });
    let store = Store::open_read_only(&url).unwrap();
    assert_eq!((store.runs().unwrap().len(), super::count(&store, "prompts")), (6, 8));
    assert!(store.verify().unwrap().is_sound());
}
