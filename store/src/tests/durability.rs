//! A killed writer leaves whole steps, and readers never wait for a writer.

use super::{begin, count, execute, is_postgres, new_run, new_store, realistic_step, step_groups};
use crate::{NewJob, RunId, Store, Value};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const CHILD: &str = "PROXRL_STORE_TEST_WRITER";
const GROUPS: usize = 12;
const SAMPLES: usize = 4;

#[test]
fn killed_while_writing() {
    // The test starts itself as the process that it kills.
    if let Ok(url) = std::env::var(CHILD) {
        append_forever(&url);
    }
    let (folder, store) = new_store();
    let run = begin(&store, "victim");
    drop(store);
    let mut appended = 0;
    for trial in 0..6 {
        appended = write_and_kill(folder.url(), Duration::from_micros(700 * trial)).unwrap_or(appended);
        let store = Store::open(folder.url()).unwrap();
        let found = store.verify().unwrap();
        assert!(found.is_sound(), "{}", found.checks);
        let steps = count(&store, "steps");
        // Every step reported as appended is there; at most the step in flight may be there besides.
        assert!(
            (appended + 1..=appended + 2).contains(&(steps as u64)),
            "{steps} steps, {appended} was the last reported"
        );
        assert_eq!(count(&store, "groups"), steps * GROUPS as i64);
        assert_eq!(count(&store, "samples"), steps * (GROUPS * SAMPLES) as i64);
        assert_eq!(count(&store, "rewards"), steps * (GROUPS * SAMPLES) as i64);
        let last = steps as u64 - 1;
        assert_eq!(step_groups(&store, run, last).unwrap().unwrap(), realistic_step(last, GROUPS, SAMPLES, 20));
    }
}

fn append_forever(url: &str) -> ! {
    let store = Store::open(url).unwrap();
    let run = store.find_run("victim").unwrap().id;
    let first = count(&store, "steps") as u64;
    for step in first.. {
        store.append_step(run, step, &realistic_step(step, GROUPS, SAMPLES, 20), None).unwrap();
        println!("appended {step}");
    }
    unreachable!("it is killed long before the numbers end")
}

/// Lets a writer append three steps and some of a fourth, kills it, and says which step it reported last.
fn write_and_kill(url: &str, delay: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::durability::killed_while_writing", "--nocapture"])
        .env(CHILD, url)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let reported = |line: String| line.rsplit_once("appended ").and_then(|(_, step)| step.parse().ok());
    let third: Option<u64> = lines.by_ref().filter_map(reported).nth(2);
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    if is_postgres() {
        // The server may still be doing what the dead process asked for last.
        std::thread::sleep(Duration::from_millis(200));
    }
    // What it wrote to the pipe before it died counts as reported too.
    lines.filter_map(reported).last().or(third)
}

#[test]
fn eight_readers_see_whole_steps_while_another_connection_writes() {
    let (folder, store) = new_store();
    let url = folder.url();
    let run = begin(&store, "busy");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let reader = Store::open_read_only(url).unwrap();
                    let mut seen = 0;
                    while !done.load(Ordering::Relaxed) {
                        let counts =
                            reader.query("SELECT (SELECT COUNT(*) FROM steps), (SELECT COUNT(*) FROM samples)");
                        let [Value::Integer(steps), Value::Integer(samples)] = counts.unwrap().rows[0][..] else {
                            panic!("two counts")
                        };
                        assert_eq!(samples, steps * (GROUPS * SAMPLES) as i64);
                        assert!(steps >= seen, "{steps} steps after {seen}");
                        seen = steps;
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    seen
                })
            })
            .collect();
        for step in 0..20 {
            store.append_step(run, step, &realistic_step(step, GROUPS, SAMPLES, 20), None).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 20);
        }
    });
    let found = store.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
}

#[test]
fn two_writers_take_turns() {
    let (folder, store) = new_store();
    let url = folder.url();
    let runs = [begin(&store, "one"), begin(&store, "two")];
    std::thread::scope(|scope| {
        for run in runs {
            scope.spawn(move || {
                let writer = Store::open(url).unwrap();
                for step in 0..10 {
                    writer.append_step(run, step, &realistic_step(step, 2, 2, 5), None).unwrap();
                }
            });
        }
    });
    assert_eq!((count(&store, "steps"), count(&store, "samples")), (20, 80));
    // Both asked the same questions.
    assert_eq!(count(&store, "prompts"), 20);
}

/// Makes each of these changes of a table fail as it is committed, and not before.
fn refuse_commits(store: &Store, changes: &[&str]) {
    execute(
        store,
        "CREATE TABLE nobody (id BIGINT PRIMARY KEY);
        CREATE TABLE wishes (id BIGINT REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED)",
    );
    if is_postgres() {
        execute(
            store,
            "CREATE FUNCTION wish() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO wishes VALUES (1); RETURN NEW; END'",
        );
    }
    for (number, change) in changes.iter().enumerate() {
        let act = if is_postgres() {
            "FOR EACH ROW EXECUTE FUNCTION wish()"
        } else {
            "BEGIN INSERT INTO wishes VALUES (1); END"
        };
        execute(store, format!("CREATE TRIGGER refuse_{number} AFTER {change} {act}"));
    }
}

#[test]
fn a_commit_that_fails_is_an_error_and_leaves_nothing() {
    let (_folder, store) = new_store();
    let run = begin(&store, "there");
    store.enqueue(run, 1, &[NewJob { place: 0, groups: 1, min_version: 0, request: "draw".into() }]).unwrap();
    refuse_commits(&store, &["INSERT ON runs", "INSERT ON scorings", "UPDATE ON jobs"]);
    let all = [
        store.begin_run(&new_run("lost")).map(drop),
        store.begin_import(&new_run("lost")).map(drop),
        store.begin_scoring(Some(run), "").map(drop),
        store.claim("a", "abc", None, Duration::from_secs(9)).map(drop),
    ];
    for (number, outcome) in all.into_iter().enumerate() {
        let error = outcome.expect_err(&format!("write {number} was not committed"));
        assert!(error.to_string().to_lowercase().contains("foreign key"), "{error}");
        assert!(!error.is_input(), "{error}");
    }
    assert_eq!((count(&store, "runs"), count(&store, "scorings")), (1, 0));
    assert_eq!(count(&store, "jobs WHERE state = 'ready'"), 1);
}

#[test]
fn a_scoring_of_a_run_that_is_not_there_is_an_error() {
    let (_folder, store) = new_store();
    assert!(store.begin_scoring(Some(RunId(99)), "").is_err());
    assert_eq!(count(&store, "scorings"), 0);
}
