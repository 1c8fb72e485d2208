//! What may be opened, and what is said about the rest.

use super::{begin, new_store, url};
use crate::{Error, Store};
use std::fs;

/// Whatever the cause, the user reads one line that has no full stop at its end, and nothing on the disk changes.
fn refused(error: &Error, part: &str) {
    let text = error.to_string();
    assert!(text.contains(part), "{text}");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    assert!(error.is_input(), "{error:?}");
}

#[test]
fn urls() {
    let cases = [
        ("postgres://host/db", "PostgreSQL is not supported yet"),
        ("proxrl.db", "must start with sqlite://"),
        ("sqlite://", "names no file"),
        ("sqlite://folder/", "names no file"),
        ("sqlite::memory:", "would lose its samples"),
    ];
    for (url, part) in cases {
        refused(&Store::open(url).unwrap_err(), part);
        refused(&Store::open_read_only(url).unwrap_err(), part);
    }
}

#[test]
fn a_missing_store_is_not_created_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.db");
    refused(&Store::open_read_only(&url(&path)).unwrap_err(), "there is no store at");
    assert!(!path.exists());
}

#[test]
fn a_missing_folder_is_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none/proxrl.db");
    refused(&Store::open(&url(&path)).unwrap_err(), "the folder of the store");
    assert!(!path.parent().unwrap().exists());
}

#[test]
fn other_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    for content in ["x", "seed = 1\nsteps = 200\n and quite some more text than the header takes"] {
        fs::write(&path, content).unwrap();
        refused(&Store::open(&url(&path)).unwrap_err(), "is not an SQLite file");
        refused(&Store::open_read_only(&url(&path)).unwrap_err(), "is not an SQLite file");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    refused(&Store::open(&url(folder.path())).unwrap_err(), "it is a folder");
}

#[test]
fn a_torn_sqlite_file_is_refused() {
    let (folder, store) = new_store();
    let path = folder.path().join("torn.db");
    drop(store);
    let mut bytes = fs::read(folder.path().join("proxrl.db")).unwrap();
    bytes[16..100].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    refused(&Store::open(&url(&path)).unwrap_err(), "is not a proxrl store");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let (folder, store) = new_store();
    let path = folder.path().join("proxrl.db");
    execute(&store, "PRAGMA foreign_keys = OFF; DROP TABLE schema_version");
    drop(store);
    let before = fs::read(&path).unwrap();
    refused(&Store::open(&url(&path)).unwrap_err(), "a database of another program");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_newer_store_is_refused_unchanged() {
    let (folder, store) = new_store();
    let path = folder.path().join("proxrl.db");
    begin(&store, "from the future");
    execute(&store, "INSERT INTO schema_version (version, program_version, applied_at) VALUES (99, '9.0', 0)");
    drop(store);
    let before = fs::read(&path).unwrap();
    refused(&Store::open(&url(&path)).unwrap_err(), "has schema version 99, but this program knows versions up to 2");
    refused(&Store::open_read_only(&url(&path)).unwrap_err(), "use a newer proxrl");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_empty_file_becomes_a_store_when_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.db");
    fs::write(&path, "").unwrap();
    refused(&Store::open_read_only(&url(&path)).unwrap_err(), "schema version 0");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    begin(&Store::open(&url(&path)).unwrap(), "first");
    assert_eq!(Store::open_read_only(&url(&path)).unwrap().runs().unwrap().len(), 1);
}

#[test]
fn a_file_in_place_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&Store::open(&url(&file.join("proxrl.db"))).unwrap_err(), "does not exist");
}

#[test]
fn a_store_can_move_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Store>();
}

/// Does to a store what nobody should.
fn execute(store: &Store, sql: &'static str) {
    store
        .with(async |connection| {
            sqlx::raw_sql(sql).execute(connection).await.unwrap();
            Ok(())
        })
        .unwrap();
}
