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
