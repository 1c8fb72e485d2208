//! Guards through the program: the effect of each action on a run, and the same alarms after a kill and a resume.

use crate::resume::{kill_when_logged, samples};
use crate::support::{Sandbox, config};
use serde_json::Value;

/// An entropy floor that no tiny network reaches: an alarm in every second step.
const FLOOR: [&str; 2] = ["guard.entropy_floor.limit=100.0", "guard.entropy_floor.window=2"];

fn run(sandbox: &Sandbox, sets: &[&str]) -> crate::support::Done {
    let config = config("tiny.toml");
    let args: Vec<&str> = train(&config, sets);
    sandbox.run(&args)
}

fn train<'a>(config: &'a str, sets: &'a [&'a str]) -> Vec<&'a str> {
    ["train", config, "--out", "run"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
}

fn alarms(sandbox: &Sandbox) -> Vec<Value> {
    let text = std::fs::read_to_string(sandbox.path("run/alarms.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The metrics without those that guards add.
fn unguarded(sandbox: &Sandbox) -> Vec<Value> {
    let mut rows = sandbox.metrics("run");
    for row in &mut rows {
        row.as_object_mut().unwrap().retain(|key, _| !key.starts_with("guard/"));
    }
    rows
}

#[test]
fn a_warning_names_samples_and_changes_nothing() {
    let (plain, warned) = (Sandbox::new(), Sandbox::new());
    assert_eq!(run(&plain, &["steps=5"]).code, Some(0));
    assert!(!plain.path("run/alarms.jsonl").exists());
    let done = run(&warned, &["steps=5", FLOOR[0], FLOOR[1]]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(unguarded(&warned), plain.metrics("run"));
    assert_eq!(samples(&warned), samples(&plain));
    assert_eq!(done.stderr.matches("guard.entropy_floor: the entropy is").count(), 2, "{}", done.stderr);
    assert!(done.stderr.contains("below the floor of 100 (steps 3 to 4); see samples"), "{}", done.stderr);

    let raised: Vec<f64> =
        warned.metrics("run").iter().map(|row| row["guard/entropy_floor"].as_f64().unwrap()).collect();
    assert_eq!(raised, [0.0, 1.0, 0.0, 1.0, 0.0]);
    let alarms = alarms(&warned);
    assert_eq!(alarms.len(), 2);
    assert_eq!((&alarms[1]["step"], &alarms[1]["since"]), (&4.into(), &3.into()));
    assert_eq!((&alarms[1]["guard"], &alarms[1]["action"]), (&"entropy_floor".into(), &"warn".into()));
    // The samples are those of that step, the surest first.
    let named: Vec<i64> =
        alarms[1]["samples"].as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect();
    let drawn = warned.query("SELECT s.id FROM samples s JOIN groups g ON g.id = s.group_id WHERE g.step = 4");
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, drawn.iter().map(|row| row["id"].as_i64().unwrap()).collect::<Vec<_>>());
    let shown = warned.ok(&["replay", "show", &named[0].to_string()]);
    assert!(!shown.is_empty());
}

#[test]
fn a_stop_saves_says_how_to_go_on_and_can_be_resumed() {
    let sandbox = Sandbox::new();
    let done = run(&sandbox, &["steps=5", FLOOR[0], FLOOR[1], "guard.entropy_floor.action=stop"]);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for words in ["stopped by guard.entropy_floor after step 2", "everything is saved", "proxrl train --resume run"] {
        assert!(done.stderr.contains(words), "no `{words}` in {}", done.stderr);
    }
    assert!(sandbox.path("run/checkpoints/step_2/state.json").exists());
    assert_eq!(sandbox.query("SELECT status FROM runs")[0]["status"], "failed");

    sandbox.ok(&["train", "--resume", "run", "--set", "guard.entropy_floor.action=warn"]);
    let whole = Sandbox::new();
    assert_eq!(run(&whole, &["steps=5", FLOOR[0], FLOOR[1]]).code, Some(0));
    assert_eq!(sandbox.metrics("run"), whole.metrics("run"));
    assert_eq!(samples(&sandbox), samples(&whole));
}

#[test]
fn a_roll_back_restores_the_policy_and_halves_the_learning_rate() {
    let sandbox = Sandbox::new();
    let sets = ["steps=5", "checkpoint.every=1", "checkpoint.keep=0", "guard.entropy_floor.action=roll_back"];
    let done = run(&sandbox, &[&sets[..], &FLOOR[..]].concat());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    // Alarms in steps 2 and 4, whose windows begin with steps 1 and 3.
    assert!(done.stderr.contains("rolled back to what was learned by step 0"), "{}", done.stderr);
    assert!(done.stderr.contains("rolled back to what was learned by step 2; the learning rate is multiplied by 0.25"));
    let file = |step: u32, name: &str| {
        std::fs::read(sandbox.path(&format!("run/checkpoints/step_{step}/{name}.safetensors"))).unwrap()
    };
    for name in ["adapter", "optimizer"] {
        assert_eq!(file(2, name), file(0, name), "{name}");
        assert_eq!(file(4, name), file(2, name), "{name}");
        assert_ne!(file(1, name), file(0, name), "{name}");
    }
    let rows = sandbox.metrics("run");
    assert_eq!(rows.len(), 5);
    let rate = |step: usize| rows[step - 1]["learning_rate"].as_f64().unwrap();
    assert_eq!((rate(3), rate(5)), (rate(1) * 0.5, rate(1) * 0.25));
    assert_eq!(sandbox.query("SELECT COUNT(DISTINCT step) AS steps FROM groups")[0]["steps"], 5);
}

#[test]
fn a_roll_back_takes_the_reference_along_and_no_stage_back() {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    let (before, after) = text.split_once("[algorithm.grpo]").unwrap();
    let remix = "[algorithm.remix]\nreincarnate_after = 2\nkl_coefficient = 0.1\nlambda = { hold = 1, every = 1 }\n";
    let after = after.split_once("\n[").map_or("", |(_, rest)| rest);
    sandbox.write("remix.toml", format!("{before}{remix}\n[{after}"));
    let action = "guard.entropy_floor.action=roll_back";
    let sets = ["steps=5", "checkpoint.every=1", "checkpoint.keep=0", action, FLOOR[0], "guard.entropy_floor.window=3"];
    let done = sandbox.run(&train("remix.toml", &sets));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("rolled back to what was learned by step 0"), "{}", done.stderr);
    let rows = sandbox.metrics("run");
    let column = |name: &str| rows.iter().map(|row| row[name].as_f64().unwrap()).collect::<Vec<_>>();
    for (lambda, expected) in column("remix/lambda").iter().zip([1.0, 0.9, 0.8, 0.7, 0.6]) {
        assert!((lambda - expected).abs() < 1e-9, "{lambda} and {expected}");
    }
    // In step 4 the policy is the base model again, and so is its reference; step 4 makes a new one.
    let kl = column("kl");
    assert!(kl[1] > 0.0 && kl[3].abs() < 1e-6 && kl[4].abs() < 1e-6, "{kl:?}");
    assert!(sandbox.path("run/checkpoints/step_4/reference.safetensors").exists());
}

#[test]
fn a_killed_run_rolls_back_again_to_the_same_place() {
    let config = config("tiny.toml");
    let every = "checkpoint.every=2";
    let sets = ["steps=7", every, "guard.entropy_floor.action=roll_back", FLOOR[0], FLOOR[1]];
    let expected = Sandbox::new();
    expected.ok(&train(&config, &sets));
    assert_eq!(alarms(&expected).len(), 3);
    for lines in [1, 2, 3, 5] {
        let sandbox = Sandbox::new();
        kill_when_logged(&sandbox, &train(&config, &sets), lines);
        sandbox.ok(&["train", "--resume", "run"]);
        assert_eq!(sandbox.metrics("run"), expected.metrics("run"), "killed after {lines} steps");
        assert_eq!(samples(&sandbox), samples(&expected), "killed after {lines} steps");
        assert_eq!(alarms(&sandbox), alarms(&expected), "killed after {lines} steps");
    }
}

#[test]
fn an_update_that_is_no_number_stores_and_saves_nothing() {
    let sandbox = Sandbox::new();
    let done = run(&sandbox, &["steps=4", "optimizer.adamw.eps=0.0"]);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("the update of step 1 made `"), "{}", done.stderr);
    assert_eq!(sandbox.query("SELECT max(step) AS last FROM groups")[0]["last"], 1);
    assert!(!sandbox.path("run/checkpoints/step_1").exists());
    // With a number to divide by, the same run goes on.
    sandbox.ok(&["train", "--resume", "run", "--set", "optimizer.adamw.eps=1e-8"]);
    assert_eq!(sandbox.metrics("run").len(), 4);
}

#[test]
fn the_worst_of_several_alarms_decides_and_text_is_watched() {
    let sandbox = Sandbox::new();
    let sets = [
        "steps=3",
        "guard.repeated_text.limit=0.0",
        "guard.repeated_text.ngram=1",
        "guard.repeated_text.repetition=0.0",
        "guard.repeated_text.window=1",
        "guard.duplicate_text.window=1",
        "guard.kl_ceiling.window=1",
        "guard.length_drift.window=1",
    ];
    let stop = ["guard.entropy_floor.action=stop", "guard.entropy_floor.window=1", FLOOR[0]];
    let done = run(&sandbox, &[&sets[..], &stop[..]].concat());
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("stopped by guard.entropy_floor after step 1"), "{}", done.stderr);
    let row = &sandbox.metrics("run")[0];
    assert_eq!((&row["guard/repeated_text"], &row["guard/entropy_floor"]), (&1.0.into(), &1.0.into()));
    assert_eq!((&row["guard/kl_ceiling"], &row["guard/duplicate_text"]), (&0.0.into(), &0.0.into()));
    assert!(row["completions/repeated_share"].as_f64().unwrap() > 0.0);
    assert!(row["completions/duplicate_share"].is_number());
    assert_eq!(alarms(&sandbox).len(), 2);
}

#[test]
fn a_guard_that_could_never_speak_is_refused() {
    let sandbox = Sandbox::new();
    let done = run(&sandbox, &["guard.kl_ceiling.metric=kl"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("guard.kl_ceiling.metric is kl, which is never measured"), "{}", done.stderr);
    let done = run(&sandbox, &["guard.entropy_flor.limit=1.0"]);
    assert!(done.stderr.contains("did you mean `entropy_floor`"), "{}", done.stderr);
}
