//! Opening a store: the URLs and files that are accepted, and the errors for the others.

use super::{begin, execute, new_store, rich_groups, url};
use crate::{Error, RunId, Store};
use std::fs;

/// Asserts an error of one line, without a full stop at its end, that contains `part`.
fn refused(error: &Error, part: &str) {
    let text = error.to_string();
    assert!(text.contains(part), "{text}");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    assert!(error.is_input(), "{error:?}");
}

#[test]
fn urls() {
    let cases = [
        ("postgres://host:port/db", "invalid port number"),
        ("proxrl.db", "must start with sqlite:// or postgres://"),
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
    refused(&Store::open(&url(&path)).unwrap_err(), "has schema version 99, but this program knows versions up to 4");
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

#[test]
fn samples_from_before_the_hashes_are_said_to_be_unverifiable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db");
    // A store as version 1 of the schema left it.
    let old = "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, program_version TEXT NOT NULL,
            applied_at BIGINT NOT NULL);
        INSERT INTO schema_version VALUES (1, '0.1.0', 0);
        INSERT INTO runs VALUES (1, 'old', 'finished', '', '0.1.0', 'm', 'out', 0, 1);
        INSERT INTO policies VALUES (1, 1, 0, 'h', NULL, 0);
        INSERT INTO groups VALUES (1, 1, 1, 0, 1, 1, '{}');
        INSERT INTO samples VALUES (1, 1, 0, 1, 'eos', -0.5, 'x', NULL, x'07000000', x'000000bf');
        INSERT INTO steps VALUES (1, 1, 1, 1, 1, NULL, 0, NULL);";
    let prompt = schema::Prompt::text("q");
    let prompt_row = format!(
        "INSERT INTO prompts VALUES (1, '{}', '{}', 'q', NULL, '{}', 1, x'01000000')",
        prompt.hash(),
        crate::rows::blob::sha256(&[1, 0, 0, 0]),
        serde_json::to_string(&prompt).unwrap()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        use sqlx::{ConnectOptions, Connection};
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        let spine = include_str!("../../migrations/sqlite/0001_spine.sql");
        for sql in [spine, &prompt_row, old] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    });
    let error = Store::open_read_only(&url(&path)).unwrap_err();
    assert!(error.to_string().contains("has schema version 1, and reading needs 4"), "{error}");
    let store = Store::open(&url(&path)).unwrap();
    let found = store.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
    assert_eq!(found.unverifiable, 1);
    assert_eq!(store.step_groups(RunId(1), 1).unwrap().unwrap()[0].scored.group().samples[0].logprobs, [-0.5]);
    // What is appended from now on can be verified.
    let run = begin(&store, "new");
    store.append_step(run, 1, &rich_groups(), None).unwrap();
    assert_eq!(store.verify().unwrap().unverifiable, 1);
}
