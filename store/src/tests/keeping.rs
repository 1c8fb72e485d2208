//! Maintenance: `verify` names broken rows, `prune` removes old steps and keeps those that a run needs.

use super::{begin, count, execute, group, is_postgres, new_store, realistic_step, rich_groups};
use crate::replay::{ReplaySampler, ReplaySource};
use crate::{Error, Prune, RunId, RunStatus, Store, Value};
use schema::Seed;

/// Runs a statement with the engine's constraints switched off.
fn spoil(store: &Store, sql: &str) {
    let sql = if is_postgres() {
        let sql = sql.replace("x'00'", "'\\x00'").replace("zeroblob(36)", "decode(repeat('00', 36), 'hex')");
        format!("SET session_replication_role = replica; ALTER TABLE samples DROP CONSTRAINT samples_check; {sql}")
    } else {
        format!("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; {sql}")
    };
    execute(store, sql);
}

/// The failed checks of `verify`, each with the rows at fault.
fn wrong(store: &Store) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let checks = store.verify().unwrap().checks.rows;
    checks.iter().filter(|row| row[1] != Value::Integer(0)).map(|row| (text(&row[0]), text(&row[2]))).collect()
}

#[test]
fn a_store_as_it_was_written_is_sound() {
    let (_folder, store) = new_store();
    let run = begin(&store, "sound");
    store.append_step(run, 1, &rich_groups(), None).unwrap();
    store.append_step(run, 2, &[], None).unwrap();
    let found = store.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
    assert_eq!((found.wrong, found.unverifiable), (0, 0));
}

#[test]
fn what_is_broken_is_named() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("UPDATE samples SET text = 'other' WHERE id = 2", &[("hashes of samples", "sample 2")]),
        ("UPDATE samples SET logprobs = zeroblob(36) WHERE id = 1", &[("hashes of samples", "sample 1")]),
        (
            "UPDATE samples SET token_ids = x'00' WHERE id = 2",
            &[("lengths of samples", "sample 2"), ("hashes of samples", "sample 2")],
        ),
        ("UPDATE prompts SET json = replace(json, 'brief', 'long') WHERE id = 1", &[("hashes of prompts", "prompt 1")]),
        (
            "DELETE FROM samples WHERE id = 4",
            &[
                ("rewards without a sample", "rewards of sample 4"),
                ("groups without samples", "group 2"),
                ("steps whose counts are not theirs", "step 3 of run 1"),
            ],
        ),
        (
            "DELETE FROM groups WHERE id = 2",
            &[
                ("samples without a group", "sample 4"),
                ("steps whose counts are not theirs", "step 3 of run 1"),
                ("policies without samples", "policy version 2 of run 1"),
                ("prompts that nobody asked", "prompt 2"),
            ],
        ),
        ("DELETE FROM steps", &[("groups of no step", "group 1, group 2")]),
        ("UPDATE steps SET tokens = 1", &[("steps whose counts are not theirs", "step 3 of run 1")]),
        (
            "UPDATE rewards SET value = NULL WHERE sample_id = 4",
            &[("judged without a value, or the reverse", "scoring 0 of sample 4")],
        ),
        ("UPDATE rewards SET scoring = 5 WHERE sample_id = 4", &[("rewards of no scoring", "scoring 5 of sample 4")]),
    ];
    for (sql, expected) in cases {
        let (_folder, store) = new_store();
        let run = begin(&store, "broken");
        store.append_step(run, 3, &rich_groups(), None).unwrap();
        spoil(&store, sql);
        let expected: Vec<(String, String)> =
            expected.iter().map(|(check, rows)| ((*check).to_owned(), (*rows).to_owned())).collect();
        assert_eq!(wrong(&store), expected, "{sql}");
    }
}

/// A finished run of `steps` steps, of two groups of two samples each.
fn finished(store: &Store, name: &str, steps: u64) -> RunId {
    let run = begin(store, name);
    for step in 1..=steps {
        store.append_step(run, step, &realistic_step(step, 2, 2, 50), None).unwrap();
    }
    store.finish_run(run, RunStatus::Finished).unwrap();
    run
}

fn steps_left(store: &Store, run: RunId) -> Vec<i64> {
    let sql = format!("SELECT DISTINCT step FROM groups WHERE run_id = {run} ORDER BY step");
    store
        .query(&sql)
        .unwrap()
        .rows
        .iter()
        .map(|row| if let Value::Integer(step) = row[0] { step } else { -1 })
        .collect()
}

#[test]
fn old_steps_go_and_leave_their_metrics() {
    let (_folder, store) = new_store();
    let run = finished(&store, "old", 10);
    let mut metrics = schema::Metrics::new();
    metrics.set("reward", 0.5);
    store.finish_step(run, 1, &metrics).unwrap();
    let rule = Prune { keep_steps: Some(3), ..Prune::default() };
    let rehearsed = store.rehearse_prune(&rule).unwrap();
    assert_eq!((rehearsed.steps, rehearsed.samples, rehearsed.still_needed), (7, 28, 0));
    assert_eq!(steps_left(&store, run).len(), 10);
    let pruned = store.prune(&rule).unwrap();
    assert_eq!((pruned.steps, pruned.samples), (7, 28));
    assert!(pruned.bytes_after < pruned.bytes_before, "{pruned:?}");
    assert_eq!(pruned.runs.to_csv(), "run,run_id,steps,first,last,samples,tokens\r\nold,1,7,1,7,28,1400\r\n");
    assert_eq!(steps_left(&store, run), [8, 9, 10]);
    assert_eq!((count(&store, "samples"), count(&store, "rewards"), count(&store, "prompts")), (12, 12, 6));
    assert_eq!(store.metrics(run).unwrap()[0].1.get("reward"), Some(0.5));
    assert!(store.verify().unwrap().is_sound());
    // Replay no longer finds them, and reading them back says why.
    assert_eq!(ReplaySampler::Uniform.draw(&ReplaySource::of(&store, run, 11), 99, &Seed::new(1)).unwrap().len(), 6);
    assert!(matches!(store.step_groups(run, 1).unwrap_err(), Error::Pruned { step: 1, .. }));
    assert!(matches!(store.append_step(run, 1, &[], None).unwrap_err(), Error::StepExists { .. }));
    // Once more is nothing more.
    let again = store.prune(&rule).unwrap();
    assert_eq!((again.steps, again.swept, again.bytes_after), (0, 0, pruned.bytes_after));
}

#[test]
fn a_run_that_may_go_on_keeps_what_it_needs() {
    let (_folder, store) = new_store();
    let run = begin(&store, "going on");
    for step in 1..=30 {
        store.append_step(run, step, &[group("q", step, &[Some(1.0)])], None).unwrap();
    }
    let rule = Prune { keep_steps: Some(1), ..Prune::default() };
    // Without a checkpoint the run starts over and asks for everything.
    let pruned = store.rehearse_prune(&rule).unwrap();
    assert_eq!((pruned.steps, pruned.still_needed), (0, 29));
    // From its checkpoint at 25 it asks for 26 to 30, and its replay may reach back 16 steps: to step 9.
    store.checkpoint(run, 20, "a", "h").unwrap();
    store.checkpoint(run, 25, "b", "h").unwrap();
    let pruned = store.prune(&rule).unwrap();
    assert_eq!((pruned.steps, pruned.still_needed), (8, 21));
    assert_eq!(steps_left(&store, run), (9..=30).collect::<Vec<_>>());
    store.finish_run(run, RunStatus::Finished).unwrap();
    assert_eq!(store.prune(&rule).unwrap().steps, 21);
}

#[test]
fn versions_sizes_and_runs_choose_too() {
    let (_folder, store) = new_store();
    let (one, two) = (finished(&store, "one", 6), finished(&store, "two", 6));
    // The samples of step n come from version n.
    let versions = Prune { run: Some(two), below_policy: Some(5), ..Prune::default() };
    assert_eq!(store.prune(&versions).unwrap().steps, 4);
    assert_eq!((steps_left(&store, one).len(), steps_left(&store, two)), (6, vec![5, 6]));
    assert!(store.verify().unwrap().is_sound());
    // By size the oldest go first: those of run one.
    let bytes = store.rehearse_prune(&versions).unwrap().bytes_before;
    let size = Prune { max_bytes: Some(bytes.div_ceil(2)), ..Prune::default() };
    let pruned = store.rehearse_prune(&size).unwrap();
    assert_eq!((pruned.steps, pruned.bytes_after), (4, bytes / 2));
    store.prune(&size).unwrap();
    assert_eq!((steps_left(&store, one), steps_left(&store, two)), (vec![5, 6], vec![5, 6]));
    assert!(store.prune(&Prune::default()).unwrap_err().is_input());
}

/// Prunes a step as a pruning did that swept at its end, and was killed before that.
fn leave_unswept(store: &Store, step: u64) {
    let of_step = format!("WHERE run_id = 1 AND step = {step}");
    execute(
        store,
        format!(
            "DELETE FROM rewards WHERE sample_id IN (SELECT s.id FROM samples s JOIN groups g ON g.id = s.group_id
                WHERE g.run_id = 1 AND g.step = {step});
            DELETE FROM samples WHERE group_id IN (SELECT id FROM groups {of_step});
            DELETE FROM groups {of_step};
            UPDATE steps SET groups = 0, samples = 0, tokens = 0, pruned_at = 1 {of_step}"
        ),
    );
}

#[test]
fn rows_that_wait_for_a_sweep_are_no_damage_and_the_next_pruning_takes_them() {
    let (_folder, store) = new_store();
    finished(&store, "old", 4);
    leave_unswept(&store, 1);
    leave_unswept(&store, 2);
    // Two prompts and one policy of each.
    let found = store.verify().unwrap();
    assert_eq!((found.wrong, found.unswept), (0, 6), "{}", found.checks);
    let rule = Prune { keep_steps: Some(2), ..Prune::default() };
    let pruned = store.prune(&rule).unwrap();
    assert_eq!((pruned.steps, pruned.swept), (0, 6));
    assert_eq!((count(&store, "prompts"), count(&store, "policies")), (4, 2));
    let found = store.verify().unwrap();
    assert_eq!((found.wrong, found.unswept), (0, 0));
}

#[test]
fn a_pruning_that_is_broken_off_leaves_nothing_to_sweep() {
    let (_folder, store) = new_store();
    let run = finished(&store, "old", 4);
    // The step after the first cannot be marked.
    let refuse = if is_postgres() {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''refused''; END';
        CREATE TRIGGER refuse BEFORE UPDATE ON steps FOR EACH ROW WHEN (NEW.step = 2) EXECUTE FUNCTION refuse()"
    } else {
        "CREATE TRIGGER refuse BEFORE UPDATE ON steps WHEN NEW.step = 2 BEGIN SELECT RAISE(ABORT, 'refused'); END"
    };
    execute(&store, refuse);
    let error = store.prune(&Prune { keep_steps: Some(1), ..Prune::default() }).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(steps_left(&store, run), [2, 3, 4]);
    assert_eq!((count(&store, "prompts"), count(&store, "policies")), (6, 3));
    let found = store.verify().unwrap();
    assert_eq!((found.wrong, found.unswept), (0, 0), "{}", found.checks);
}

#[test]
fn a_prompt_that_another_run_asked_too_stays() {
    let (_folder, store) = new_store();
    let (old, new) = (finished(&store, "old", 2), begin(&store, "new"));
    store.append_step(new, 1, &realistic_step(1, 2, 2, 50), None).unwrap();
    let rule = Prune { run: Some(old), keep_steps: Some(1), ..Prune::default() };
    assert_eq!(store.prune(&rule).unwrap().steps, 1);
    // Two prompts of the step that is left, and two that both runs asked; a policy of each run.
    assert_eq!((count(&store, "prompts"), count(&store, "policies")), (4, 2));
    assert!(store.verify().unwrap().is_sound());
}

#[test]
fn a_pruning_and_a_training_take_turns() {
    let (folder, store) = new_store();
    finished(&store, "old", 12);
    let run = begin(&store, "new");
    std::thread::scope(|scope| {
        // It asks the questions that the pruning sweeps.
        scope.spawn(|| {
            let writer = Store::open(folder.url()).unwrap();
            for step in 1..=12 {
                writer.append_step(run, step, &realistic_step(step, 2, 2, 50), None).unwrap();
            }
        });
        let rule = Prune { keep_steps: Some(0), ..Prune::default() };
        let steps: u64 = (0..3).map(|_| store.prune(&rule).unwrap().steps).sum();
        assert_eq!(steps, 12);
    });
    assert_eq!((steps_left(&store, run).len(), count(&store, "samples")), (12, 48));
    let found = store.verify().unwrap();
    assert!(found.is_sound(), "{}", found.checks);
}
