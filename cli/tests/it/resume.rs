//! A run that was killed and resumed is the run that was never killed.

use crate::support::{Sandbox, config};
use std::time::Duration;

const STEPS: &str = "steps=8";
const EVERY: &str = "checkpoint.every=3";

fn uninterrupted() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", STEPS, "--set", EVERY, "--out", "run"]);
    sandbox
}

/// Every sample of the store, with what identifies it.
pub(crate) fn samples(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    sandbox.query(
        "SELECT g.step, g.place AS prompt, s.place, hex(s.token_ids) AS ids, hex(s.logprobs) AS logprobs \
         FROM samples s JOIN groups g ON g.id = s.group_id ORDER BY 1, 2, 3",
    )
}

/// Starts a run in the folder `run` and kills it when so many steps are logged.
pub(crate) fn kill_when_logged(sandbox: &Sandbox, args: &[&str], steps: usize) {
    let mut child = sandbox.start(args);
    let logged = || std::fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    while logged() < steps && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills the run after each of the delays, resumes it after each, and lets the last one finish.
fn killed_after(delays_ms: &[u64], expected: &Sandbox) {
    let sandbox = Sandbox::new();
    let config = config("tiny.toml");
    let start = ["train", &config, "--set", STEPS, "--set", EVERY, "--out", "run"];
    sandbox.ok_after_kills(&start, delays_ms);
    assert_eq!(sandbox.metrics("run"), expected.metrics("run"), "killed after {delays_ms:?} ms");
    assert_eq!(samples(&sandbox), samples(expected), "killed after {delays_ms:?} ms");
    let key = |sandbox: &Sandbox| sandbox.summary("run")["accuracy_after"].clone();
    assert_eq!(key(&sandbox), key(expected));
}

#[test]
fn kill_and_resume_equals_never_killed_bit_for_bit() {
    let expected = uninterrupted();
    assert_eq!(expected.metrics("run").len(), 8);
    assert_eq!(samples(&expected).len(), 8 * 4 * 8);
    for delays in [&[150u64][..], &[400], &[700], &[1000], &[1400], &[300, 500, 900], &[600, 600, 600, 600]] {
        killed_after(delays, &expected);
    }
}

#[test]
fn an_interrupt_finishes_the_step_saves_and_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.start(&["train", &config("tiny.toml"), "--set", "steps=100000", "--out", "run"]);
    let logged = || std::fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    while logged() < 3 {
        std::thread::sleep(Duration::from_millis(20));
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
    }
    let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let steps = logged();
    assert!(sandbox.path(&format!("run/checkpoints/step_{steps}/state.json")).exists());
    assert_eq!(sandbox.query("SELECT status FROM runs")[0]["status"], "interrupted");

    let goal = format!("steps={}", steps + 2);
    sandbox.ok(&["train", "--resume", "run", "--set", &goal]);
    assert_eq!(logged(), steps + 2);
    assert_eq!(sandbox.query("SELECT status FROM runs")[0]["status"], "finished");
}

#[test]
fn a_finished_run_can_be_resumed_without_doing_anything_again() {
    let sandbox = uninterrupted();
    let before = sandbox.metrics("run");
    sandbox.ok(&["train", "--resume", "run"]);
    assert_eq!(sandbox.metrics("run"), before);
    assert_eq!(samples(&sandbox).len(), 8 * 4 * 8);
}

#[test]
fn a_run_folder_is_never_written_over() {
    let sandbox = uninterrupted();
    let again = sandbox.run(&["train", &config("tiny.toml"), "--set", STEPS, "--out", "run"]);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("run is not empty; go on with its run by --resume run"), "{}", again.stderr);
}

/// A run of two steps in the folder `run`.
fn short(seed: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=2", "--set", seed, "--out", "run"]);
    sandbox
}

fn resume(sandbox: &Sandbox, run: &str, sets: &[&str]) -> crate::support::Done {
    let sets = sets.iter().flat_map(|set| ["--set", *set]);
    sandbox.run(&["train", "--resume", run].into_iter().chain(sets).collect::<Vec<_>>())
}

#[test]
fn a_run_goes_on_in_its_own_store_wherever_it_is_resumed() {
    let (own, other) = (short("seed=1"), short("seed=2"));
    let before = (samples(&other), other.query("SELECT * FROM runs"));
    let run = own.path("run").display().to_string();
    let done = resume(&other, &run, &["steps=4"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!((samples(&other), other.query("SELECT * FROM runs")), before);
    assert_eq!(own.metrics("run").len(), 4);
    assert_eq!(own.query("SELECT max(step) AS last FROM groups")[0]["last"], 4);
    // Another run of the same number is not taken for it.
    let foreign = format!("store.url=sqlite://{}", other.path("proxrl.db").display());
    let done = resume(&own, "run", &["steps=6", &foreign]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("does not hold the run in run") && done.stderr.contains("store.url=URL"));
    // The same store in another place is.
    std::fs::rename(own.path("proxrl.db"), own.path("moved.db")).unwrap();
    let done = resume(&own, "run", &["steps=6"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    let done = resume(&own, "run", &["steps=6", "store.url=sqlite://moved.db"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(own.metrics("run").len(), 6);
}

#[test]
fn a_run_folder_without_a_moment_in_run_json_is_known_by_its_config() {
    let (own, other) = (short("seed=1"), short("seed=2"));
    for sandbox in [&own, &other] {
        // As version 0.1.0 wrote it.
        sandbox.write("run/run.json", "{\n  \"run\": 1,\n  \"store\": \"sqlite://proxrl.db\"\n}");
        let path = sandbox.path("run/config.toml");
        let absolute = format!("sqlite://{}", sandbox.path("proxrl.db").display());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&absolute), "{text}");
    }
    let done = resume(&own, "run", &["steps=3"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(own.metrics("run").len(), 3);
    let foreign = format!("store.url=sqlite://{}", other.path("proxrl.db").display());
    assert_eq!(resume(&own, "run", &["steps=4", &foreign]).code, Some(2));
}

#[test]
fn a_run_is_trained_by_one_process() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.start(&["train", &config("tiny.toml"), "--set", "steps=100000", "--out", "run"]);
    let logged = || std::fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    while logged() < 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = resume(&sandbox, "run", &[]);
    assert!(child.try_wait().unwrap().is_none(), "the first one goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    assert!(second.stderr.contains("another process is training the run in run"), "{}", second.stderr);
    // A process that was killed holds nothing.
    assert_eq!(resume(&sandbox, "run", &["steps=1"]).code, Some(0));
}

#[test]
fn a_killed_beginning_is_begun_again() {
    let sandbox = Sandbox::new();
    // All that a process leaves that is killed before its config has a name.
    sandbox.write("run/run.json", "{\"store\": \"sqlite://proxrl.db\", \"started_at\": 1}");
    sandbox.write("run/config.partial", "steps");
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=2", "--out", "run"]);
    assert!(!sandbox.path("run/config.partial").exists());
    // Killed between its row in the store and the number in run.json.
    let known = std::fs::read_to_string(sandbox.path("run/run.json")).unwrap();
    let unknown: String = known.lines().filter(|line| !line.contains("\"run\"")).collect();
    sandbox.write("run/run.json", unknown);
    assert_eq!(resume(&sandbox, "run", &["steps=3"]).code, Some(0));
    assert_eq!(std::fs::read_to_string(sandbox.path("run/run.json")).unwrap(), known);
    assert_eq!(sandbox.query("SELECT count(*) AS n FROM runs")[0]["n"], 1);
    // Without it nothing says which samples are the run's.
    std::fs::remove_file(sandbox.path("run/run.json")).unwrap();
    let done = resume(&sandbox, "run", &["steps=4"]);
    assert!(done.code == Some(2) && done.stderr.contains("has checkpoints but no run.json"), "{}", done.stderr);
}

#[test]
fn a_damaged_optimizer_is_noticed_and_the_way_back_is_told() {
    let sandbox = Sandbox::new();
    let sets = ["--set", "steps=4", "--set", "checkpoint.every=2"];
    sandbox.ok(&[&["train", &config("tiny.toml"), "--out", "run"][..], &sets].concat());
    let whole = sandbox.metrics("run");
    let path = sandbox.path("run/checkpoints/step_4/optimizer.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let done = resume(&sandbox, "run", &["steps=6"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("step_4/optimizer.safetensors is damaged"), "{}", done.stderr);
    assert!(done.stderr.contains("to go on from step 2 instead, remove the folder run/checkpoints/step_4"));
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step_4")).unwrap();
    assert_eq!(resume(&sandbox, "run", &[]).code, Some(0));
    assert_eq!(sandbox.metrics("run"), whole);
}

#[test]
fn a_screen_that_takes_nothing_ends_no_training() {
    let sandbox = Sandbox::new();
    let done = sandbox.run_unseen(&["train", &config("tiny.toml"), "--set", "steps=3", "--out", "run"]);
    assert_eq!(done.code, Some(0), "{}", done.stdout);
    assert_eq!(sandbox.metrics("run").len(), 3);
    assert_eq!(sandbox.query("SELECT status FROM runs")[0]["status"], "finished");
}

#[test]
fn a_checkpoint_that_was_not_announced_is_announced_by_the_resume() {
    let (expected, sandbox) = (uninterrupted(), uninterrupted());
    // Killed after its last checkpoint had its name.
    let curve = sandbox.path("run/reward.svg");
    std::fs::remove_file(&curve).unwrap();
    std::fs::create_dir(sandbox.path("run/checkpoints/.step_3.old")).unwrap();
    let done = resume(&sandbox, "run", &[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(std::fs::read(&curve).unwrap(), std::fs::read(expected.path("run/reward.svg")).unwrap());
    assert!(!sandbox.path("run/checkpoints/.step_3.old").exists());
}

#[test]
fn a_run_goes_on_only_with_the_rows_that_it_began_with() {
    let row = |row: usize| format!("{{\"prompt\": \"question {row}\"}}\n");
    let rows = |count: usize| (0..count).map(row).collect::<Vec<_>>().concat();
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", rows(7));
    let prompts = "[prompts.jsonl]\npath = \"rows.jsonl\"\n\n[rollout]";
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    let (start, end) =
        (text.find("[prompts.arithmetic]").unwrap(), text.find("[rollout]").unwrap() + "[rollout]".len());
    sandbox.write("config.toml", text.replacen(&text[start..end], prompts, 1));
    sandbox.ok(&["train", "config.toml", "--set", "steps=2", "--out", "run"]);
    sandbox.write("rows.jsonl", rows(8));
    let done = resume(&sandbox, "run", &["steps=4"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("rows.jsonl changed since this run began"), "{}", done.stderr);
    assert_eq!(sandbox.metrics("run").len(), 2);
    // The same rows elsewhere are the same.
    sandbox.write("rows.jsonl", "");
    sandbox.write("moved.jsonl", rows(7));
    let done = resume(&sandbox, "run", &["steps=4", "prompts.jsonl.path=moved.jsonl"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(sandbox.metrics("run").len(), 4);
}
