//! Learning from preferences: every method runs from a config, learns what it should, and goes on after a stop.

use crate::support::{Sandbox, tiny_model, tiny_sums};
use serde_json::Value;

const COMMON: &str = concat!(tiny_model!(), tiny_sums!());

/// Pairs of a data set.
const PAIRS: &str = "chosen = \"{answer}\"
rejected = \"no idea\"

[rollout]
prompts_per_step = 8
";

/// Pairs of the policy's samples; the answer with more digits is better.
const DRAWN: &str = "
[rollout]
prompts_per_step = 8
group_size = 4
max_new_tokens = 8

[[reward]]
name = \"digit\"
rule.regex = { pattern = \"[0-9]\" }
";

/// Trains `steps` steps of a method into the folder `run`.
fn train(sandbox: &Sandbox, steps: u64, data: &str, algorithm: &str, rate: &str) {
    let optimizer = format!("[optimizer.adamw]\nlearning_rate = {rate}\n\n[checkpoint]\nevery = 2\n");
    sandbox.write("run.toml", format!("steps = {steps}\n\n{COMMON}{data}\n{algorithm}\n\n{optimizer}"));
    sandbox.ok(&["train", "run.toml", "--out", "run"]);
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

#[test]
fn every_offline_method_learns_to_tell_the_pairs_apart() {
    for algorithm in [
        "[algorithm.dpo]",
        "[algorithm.dpo]\nloss = \"robust\"\nlabel_smoothing = 0.1",
        "[algorithm.dpo]\nloss = \"hinge\"",
        "[algorithm.ipo]",
        "[algorithm.simpo]",
        "[algorithm.cpo]",
        "[algorithm.orpo]",
        "[algorithm.sppo]\nbeta = 0.1",
        "[algorithm.anchored]",
        "[algorithm.kto]\ndata = \"pairs\"",
    ] {
        let sandbox = Sandbox::new();
        train(&sandbox, 12, PAIRS, algorithm, "5e-3");
        let rows = sandbox.metrics("run");
        let margin = |row: &Value| number(row, "rewards/chosen") - number(row, "rewards/rejected");
        let (first, last) = (margin(&rows[0]), margin(&rows[11]));
        assert!(last > first + 0.01, "{algorithm}: {first} to {last}");
        assert!(number(&rows[11], "logps/chosen") < 0.0);
        let summary = sandbox.summary("run");
        let (before, after) = (number(&summary, "loss_before"), number(&summary, "loss_after"));
        assert!(after < before, "{algorithm}: held-out loss {before} to {after}");
    }
}

#[test]
fn labels_need_no_pairs() {
    let sandbox = Sandbox::new();
    let labelled = |good: &str, bad: &str| {
        let row = |n| {
            let (completion, label) = if n % 2 == 0 { ("7", good) } else { ("no idea", bad) };
            format!("{{\"prompt\": \"{n}?\", \"completion\": \"{completion}\", \"label\": {label}}}\n")
        };
        (0..16).map(row).collect::<String>()
    };
    sandbox.write("labelled.jsonl", labelled("true", "false"));
    let common = COMMON.split("[prompts").next().unwrap();
    let rest = "[prompts.jsonl]\npath = \"labelled.jsonl\"\n[rollout]\nprompts_per_step = 8\n[algorithm.kto]\n[optimizer.adamw]\nlearning_rate = 5e-3\n";
    sandbox.write("kto.toml", format!("steps = 10\n{common}{rest}"));
    sandbox.ok(&["train", "kto.toml", "--out", "run"]);
    let rows = sandbox.metrics("run");
    let margin = |row: &Value| number(row, "rewards/chosen") - number(row, "rewards/rejected");
    assert!(margin(&rows[9]) > margin(&rows[0]) + 0.01, "{rows:?}");
    assert!(number(&rows[9], "kl") >= 0.0);
    // No policy sampled the rows, so there is no divergence from the one that did.
    assert!(rows.iter().all(|row| row["replay/mismatch_kl"].is_null()), "{rows:?}");

    // Truth values as pandas and Parquet write them are the same; a score is none.
    sandbox.write("labelled.jsonl", labelled("1", "0"));
    sandbox.ok(&["train", "kto.toml", "--out", "numbers"]);
    assert_eq!(number(&sandbox.metrics("numbers")[9], "loss"), number(&rows[9], "loss"));
    sandbox.write("labelled.jsonl", labelled("2", "-1"));
    let refused = sandbox.run(&["train", "kto.toml", "--out", "scores"]);
    let said = "line 1: `label` must be true or false, or 1 or 0, but is 2";
    assert!(refused.code == Some(2) && refused.stderr.contains(said), "{refused:?}");
}

#[test]
fn every_online_method_draws_pairs_and_learns_from_them() {
    for algorithm in [
        "[algorithm.online_dpo]\nties = \"skip\"",
        "[algorithm.online_dpo]\nloss = \"ipo\"",
        "[algorithm.online_ipo]",
        "[algorithm.apo]\nsteps_per_iteration = 3\nties = \"skip\"",
        "[algorithm.apo]\nloss = \"sppo\"\nalpha = 0.0\nsteps_per_iteration = 3",
        "[algorithm.nash_mp]\nbeta = 0.02\neta = 0.2",
        "[algorithm.nash_mp]\nform = \"contrastive\"\nbeta = 0.02\neta = 0.2",
        "[algorithm.nash_md]\nbeta = 0.02",
        "[algorithm.xpo]\nties = \"skip\"",
    ] {
        let sandbox = Sandbox::new();
        train(&sandbox, 30, DRAWN, algorithm, "1e-2");
        let rows = sandbox.metrics("run");
        let mean = |rows: &[Value]| rows.iter().map(|row| number(row, "reward")).sum::<f64>() / rows.len() as f64;
        let (first, last) = (mean(&rows[..6]), mean(&rows[24..]));
        assert!(last > first + 0.15, "{algorithm}: {first} to {last}");
        // Each sample of an opponent is kept beside those of the policy, under the policy that sampled it.
        let opponent = rows[0]["opponent/reward"].is_number();
        let groups = if opponent { 2 } else { 1 };
        assert_eq!(sandbox.query("SELECT count(*) AS n FROM samples")[0]["n"], groups * 30 * 8 * 4, "{algorithm}");
        let drew = "SELECT count(DISTINCT policy_id) AS n FROM groups WHERE step = 3";
        assert_eq!(sandbox.query(drew)[0]["n"], groups, "{algorithm}");
    }
}

#[test]
fn what_moves_beside_the_policy_survives_a_stop() {
    for (algorithm, part) in [
        ("[algorithm.apo]\nalpha = 0.5\nsteps_per_iteration = 3", "iteration_end"),
        ("[algorithm.nash_mp]", "ema"),
        ("[algorithm.nash_md]", "adapter"),
        ("[algorithm.xpo]", "adapter"),
        ("[algorithm.dpo]", ""),
    ] {
        let sandbox = Sandbox::new();
        let data = if part.is_empty() { PAIRS } else { DRAWN };
        train(&sandbox, 8, data, algorithm, "1e-2");
        let whole = sandbox.metrics("run");
        std::fs::rename(sandbox.path("run"), sandbox.path("whole")).unwrap();
        std::fs::rename(sandbox.path("proxrl.db"), sandbox.path("whole.db")).unwrap();
        train(&sandbox, 4, data, algorithm, "1e-2");
        if !part.is_empty() {
            assert!(sandbox.path(&format!("run/checkpoints/step_4/{part}.safetensors")).exists());
        }
        sandbox.ok(&["train", "--resume", "run", "--set", "steps=8"]);
        // A run that was to end at step 4 has another learning-rate schedule and last iteration, but not here.
        assert_eq!(sandbox.metrics("run")[..4], whole[..4], "{algorithm}");
        assert_eq!(sandbox.metrics("run")[4..], whole[4..], "{algorithm}");
    }
}

#[test]
fn an_iteration_says_how_far_it_went_on() {
    let sandbox = Sandbox::new();
    train(&sandbox, 5, DRAWN, "[algorithm.apo]\nalpha = 0.5\nsteps_per_iteration = 2\nmax_loss_increase = 0.0", "1e-2");
    let rows = sandbox.metrics("run");
    let alpha: Vec<Option<f64>> = rows.iter().map(|row| row["apo/alpha"].as_f64()).collect();
    assert_eq!(alpha, [None, Some(0.5), None, Some(0.5), None]);
    assert!(number(&rows[3], "apo/truncation_error") < 1.0);
}

#[test]
fn what_cannot_work_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    let refused = |algorithm: &str, adapter: &str, word: &str| {
        let common = COMMON.replace("adapter.lora", adapter);
        sandbox.write("run.toml", format!("steps = 2\n{common}{DRAWN}\n{algorithm}\n"));
        let done = sandbox.run(&["train", "run.toml"]);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.trim().lines().count() == 1 && done.stderr.contains(word), "{}", done.stderr);
    };
    refused("[algorithm.apo]", "adapter.sora", "gates");
    refused("[algorithm.apo]\nalpha = 1.0", "adapter.lora", "alpha");
    refused("[algorithm.dpo]\nbeta = 0.0", "adapter.lora", "beta");
    refused("[algorithm.nash_mp]\nkappa = 2.0", "adapter.lora", "kappa");
}
