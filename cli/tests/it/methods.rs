//! Every policy-gradient method learns, whatever the seed, with the settings of its own config; and curves of several
//! runs can be plotted in one picture.

use crate::support::{Sandbox, config};
use serde_json::Value;

/// `configs/tiny.toml`, a little shorter, with the `[algorithm.…]` table of another config instead of its own.
fn tiny_with(method: &str) -> String {
    let read = |name: &str| std::fs::read_to_string(config(name)).unwrap();
    let table = |text: &str| {
        let start = text.find("[algorithm.").unwrap();
        let end = text[start..].find("\n[").map_or(text.len(), |length| start + length);
        start..end
    };
    let (mut tiny, own) = (read("tiny.toml"), read(&format!("{method}.toml")));
    tiny.replace_range(table(&tiny), &own[table(&own)]);
    let smaller = [("steps = 20", "steps = 14"), ("held_out = 8", "held_out = 2"), ("every = 5", "every = 100")];
    for (from, to) in smaller {
        assert!(tiny.contains(from), "configs/tiny.toml has no `{from}` any more");
        tiny = tiny.replacen(from, to, 1);
    }
    tiny
}

/// Trains with that config; returns the metrics of the run.
fn train(sandbox: &Sandbox, method: &str, run: &str, sets: &[&str]) -> Vec<Value> {
    sandbox.write("tiny.toml", tiny_with(method));
    let mut args = vec!["train", "tiny.toml", "--out", run, "--set", "tracker.tensorboard=false"];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    sandbox.ok(&args);
    sandbox.metrics(run)
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

/// Asserts that a method learns on three seeds, with the settings of its config and these changes.
fn learns_with(method: &str, sets: &[&str]) {
    for seed in 0..3 {
        let seed = format!("seed={seed}");
        let rows = train(&Sandbox::new(), method, "run", &[sets, &[seed.as_str()]].concat());
        let rewards: Vec<f64> = rows.iter().map(|row| number(row, "rewards/digit/mean")).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..3]), mean(&rewards[11..]));
        assert!(last > first + 0.3, "{method} {sets:?}, {seed}: {first:.3} to {last:.3} in {rewards:?}");
    }
}

fn learns(method: &str) {
    learns_with(method, &[]);
}

#[test]
fn grpo_in_two_minibatches_learns_on_three_seeds() {
    learns("grpo");
}

#[test]
fn dr_grpo_learns_on_three_seeds() {
    learns("dr_grpo");
}

#[test]
fn dapo_learns_on_three_seeds() {
    learns("dapo");
}

#[test]
fn gspo_learns_on_three_seeds() {
    learns("gspo");
}

#[test]
fn gspo_token_learns_on_three_seeds() {
    learns_with("gspo", &["algorithm.gspo.level=token"]);
}

#[test]
fn rloo_learns_on_three_seeds() {
    learns("rloo");
}

#[test]
fn reinforce_pp_learns_on_three_seeds() {
    learns("reinforce_pp");
}

#[test]
fn reinforce_pp_with_a_baseline_learns_on_three_seeds() {
    learns_with("reinforce_pp", &["algorithm.reinforce_pp.baseline=true"]);
}

#[test]
fn cispo_learns_on_three_seeds() {
    learns("cispo");
}

#[test]
fn reinforce_learns_on_three_seeds() {
    learns("reinforce");
}

#[test]
fn dynamic_sampling_asks_on_until_groups_differ_and_counts_what_it_cost() {
    // With two samples a group, many groups are all alike.
    let rows = train(&Sandbox::new(), "dapo", "run", &["steps=3", "rollout.group_size=2"]);
    let mut drawn = 0.0;
    for row in &rows {
        let [rounds, kept, dropped] =
            ["sampling/rounds", "sampling/groups_kept", "sampling/groups_dropped"].map(|key| number(row, key));
        assert!((1.0..=3.0).contains(&rounds) && kept <= 4.0, "{row}");
        assert_eq!(kept + dropped, 4.0 * rounds, "{row}");
        assert!(rounds == 1.0 || dropped > 0.0 && number(row, "sampling/tokens_dropped") > 0.0, "{row}");
        drawn += 8.0 * rounds;
        assert_eq!(number(row, "num_samples"), drawn, "{row}");
    }
    assert!(rows.iter().any(|row| number(row, "sampling/rounds") > 1.0), "{rows:?}");
}

#[test]
fn the_other_forms_of_the_methods_run() {
    let two = |method: &str, sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| format!("algorithm.{method}.{set}")).collect();
        let mut sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        sets.push("steps=2");
        train(&Sandbox::new(), method, "run", &sets).remove(1)
    };
    for row in [
        two("rloo", &["kl_coefficient=0.05", "level=token", "epsilon=0.1"]),
        two("reinforce_pp", &["baseline=true", "kl_coefficient=0.01", "variance=biased"]),
        two("reinforce", &["baseline=running", "kl_coefficient=0.01", "entropy_coefficient=0.001"]),
        two("gspo", &["level=token", "epochs=2"]),
    ] {
        assert!(number(&row, "updates/taken") >= 1.0, "{row}");
    }
    // On fresh samples of an f32 network every weight is 1, whatever the correction.
    for correction in [
        "{ token_truncate = { cap = 2.0 } }",
        "{ sequence_truncate = { cap = 2.0 } }",
        "{ token_mask = { floor = 0.5, cap = 5.0 } }",
        "{ sequence_mask = { cap = 3.0 } }",
        "{ geometric_mask = { floor = 0.999, cap = 1.001 } }",
    ] {
        let row = two("grpo", &[&format!("rollout_correction={correction}"), "normalise_correction=true"]);
        for key in ["rollout_correction/weight", "rollout_correction/mean_weight"] {
            assert!((number(&row, key) - 1.0).abs() < 1e-4, "{correction}: {row}");
        }
    }
}

#[test]
fn the_running_baseline_survives_a_resume() {
    let sets = ["algorithm.reinforce.baseline=running", "checkpoint.every=2"];
    let whole = train(&Sandbox::new(), "reinforce", "run", &["steps=4", sets[0], sets[1]]);
    let sandbox = Sandbox::new();
    train(&sandbox, "reinforce", "run", &["steps=2", sets[0], sets[1]]);
    sandbox.ok(&["train", "--resume", "run", "--set", "steps=4"]);
    assert_eq!(sandbox.metrics("run"), whole);
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (method, set, words) in [
        ("dr_grpo", "length_constant=0", "length_constant"),
        ("cispo", "weight_cap=0", "weight_cap"),
        ("dapo", "max_rounds=0", "max_rounds"),
        ("rloo", "rollout_correction={ token_mask = { floor = 2.0, cap = 1.0 } }", "rollout_correction"),
        ("gspo", "levl=token", "did you mean `level`"),
    ] {
        sandbox.write("tiny.toml", tiny_with(method));
        let done = sandbox.run(&["train", "tiny.toml", "--set", &format!("algorithm.{method}.{set}")]);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words) && done.stderr.contains(method), "{}", done.stderr);
    }
}

#[test]
fn several_runs_are_drawn_into_one_picture() {
    let sandbox = Sandbox::new();
    for (run, seed) in [("a", "seed=0"), ("b", "seed=1")] {
        train(&sandbox, "reinforce", run, &["steps=3", seed]);
    }
    let said = sandbox.ok(&["plot", "plain=a", "plain=b", "first=a", "--x", "samples", "--out", "both.svg"]);
    assert_eq!(said.trim(), "both.svg");
    let svg = std::fs::read_to_string(sandbox.path("both.svg")).unwrap();
    assert!(svg.contains("plain") && svg.contains("first") && svg.contains("reward by samples"), "{svg}");
    for axis in ["step", "tokens", "seconds"] {
        sandbox.ok(&["plot", "a", "--x", axis, "--y", "entropy", "--out", &format!("{axis}.png")]);
        assert!(sandbox.path(&format!("{axis}.png")).exists());
    }
    let done = sandbox.run(&["plot", "a", "--y", "rewrad"]);
    assert!(
        done.code == Some(2) && done.stderr.contains("it has") && done.stderr.contains("reward"),
        "{}",
        done.stderr
    );
}

#[test]
fn methods_are_compared_on_one_page() {
    let sandbox = Sandbox::new();
    sandbox.write("rloo.toml", tiny_with("rloo"));
    sandbox.write("dapo.toml", tiny_with("dapo"));
    let compare = || {
        let script = super::workspace().join("scripts/compare_methods.py");
        let mut command = std::process::Command::new("python3");
        command.arg(script).args(["rloo.toml", "dapo.toml", "--seeds", "0", "1", "--page", "docs/methods.md"]);
        command.args(["--metric", "rewards/digit/mean", "--program", env!("CARGO_BIN_EXE_proxrl")]);
        command.args(["--set", "steps=4", "--set", "dapo:steps=2", "--set", "tracker.tensorboard=false"]);
        let output = command.current_dir(sandbox.path("")).env("OMP_NUM_THREADS", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(compare().matches("+ ").count(), 4);
    let page = std::fs::read_to_string(sandbox.path("docs/methods.md")).unwrap();
    // Four steps of 32 samples; two steps of DAPO sample at least 64.
    let budget = (0..2).map(|seed| sandbox.metrics(&format!("runs/compare/dapo-{seed}")).remove(1));
    let budget = budget.map(|row| number(&row, "num_samples")).fold(128.0, f64::min);
    for words in ["| rloo | ", "| dapo | ", "±", "--seeds 0 1", &format!("{budget} samples |"), "methods-seconds.svg"]
    {
        assert!(page.contains(words), "no `{words}` in\n{page}");
    }
    assert!(sandbox.path("docs/methods-samples.svg").exists() && sandbox.path("docs/methods-seconds.svg").exists());
    assert_eq!(compare().matches("+ ").count(), 0, "what is finished is not run again");
}
