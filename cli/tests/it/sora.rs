//! Sparse adapters from the command line: gates close, ranks are cut away, and a resumed run is the same run.

use crate::support::{Sandbox, config};
use std::fs;

fn tiny() -> String {
    fs::read_to_string(config("tiny.toml")).unwrap()
}

/// The tiny config with other constraints instead of its own.
fn with_prox(tables: &str) -> String {
    let text = tiny();
    let start = text.find("[prox.soft_threshold]").unwrap();
    let end = text.find("[checkpoint]").unwrap();
    format!("{}{tables}\n\n{}", &text[..start], &text[end..])
}

#[test]
fn a_budget_is_kept_and_a_pruned_run_resumes_in_its_smaller_shape() {
    let sandbox = Sandbox::new();
    let set = ["steps=10", "checkpoint.every=5", "prox.rank_budget.ranks=40", "prune.every=4"];
    let mut call = vec!["train".to_owned(), config("tiny.toml"), "--out".into(), "run".into()];
    call.extend(set.iter().flat_map(|change| ["--set".to_owned(), (*change).to_owned()]));
    sandbox.ok(&call.iter().map(String::as_str).collect::<Vec<_>>());

    let metrics = sandbox.metrics("run");
    let series = |key: &str| metrics.iter().map(|row| row[key].as_f64().unwrap()).collect::<Vec<_>>();
    let (open, computed) = (series("adapter/rank_total"), series("adapter/rank_computed"));
    // 14 layers of 8 ranks; the budget is reached after 60 % of the run.
    assert_eq!(computed[..3], [112.0; 3]);
    assert!(open[9] <= 40.0, "{open:?}");
    for step in [3, 7] {
        assert_eq!(computed[step], open[step], "step {} prunes", step + 1);
    }
    let last = metrics.last().unwrap();
    assert!((last["adapter/active_rank"].as_f64().unwrap() - open[9] / 14.0).abs() < 1e-9);
    assert!(last["adapter/rank/q_proj"].as_f64().unwrap() <= last["adapter/rank_max"].as_f64().unwrap());
    assert!(sandbox.path("run/ranks.svg").exists());
    assert!(fs::read(sandbox.path("run/ranks.png")).unwrap().starts_with(b"\x89PNG"));

    // As if killed between the checkpoints of step 5, which is pruned, and step 10.
    fs::remove_dir_all(sandbox.path("run/checkpoints/step_10")).unwrap();
    sandbox.ok(&["train", "--resume", "run"]);
    assert_eq!(sandbox.metrics("run"), metrics);
    sandbox.ok(&["eval", "run"]);
}

#[test]
fn every_constraint_trains_as_the_config_names_it() {
    let sandbox = Sandbox::new();
    let constraints = [
        "[prox.soft_threshold]\nform = \"published\"\nscale = \"constant\"\nthreshold = 0.5\nl1_coefficient = 10.0",
        "[prox.soft_threshold]\nthreshold = 1.0\n[prox.stages]\ncount = 2\nlast = 20.0\nspacing = \"geometric\"",
        "[prox.mcp]\nthreshold = 4.0",
        "[prox.scad]\nthreshold = 4.0",
        "[prox.group_sparse]\nthreshold = 4.0\ncost = \"parameters\"",
        "[prox.group_sparse]\nthreshold = 4.0\ngroup = \"module\"",
        "[prox.mcp]\nthreshold = 4.0\n[prox.norm_bound]\nbound = 0.5",
    ];
    for (number, tables) in constraints.iter().enumerate() {
        sandbox.write("prox.toml", with_prox(tables));
        let out = format!("run-{number}");
        let sets = ["steps=4", "optimizer.adamw.gate.learning_rate=0.2"].map(|set| ["--set", set]).concat();
        sandbox.ok(&[&["train", "prox.toml", "--out", &out], &sets[..]].concat());
        let open = sandbox.metrics(&out)[3]["adapter/rank_total"].as_f64().unwrap();
        assert!(open < 112.0, "{tables}: {open} of 112 ranks are open");
    }
}

#[test]
fn gates_are_asked_for_where_there_are_none() {
    let sandbox = Sandbox::new();
    let refused = |text: String, words: &str| {
        sandbox.write("wrong.toml", text);
        let done = sandbox.run(&["train", "wrong.toml"]);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
    };
    let lora = |text: String| text.replace("[model.adapter.sora]", "[model.adapter.lora]");
    refused(lora(tiny()), "[prox] closes gates, but this adapter has none");
    refused(lora(with_prox("[prune]\nevery = 2")), "[prune] cuts");
    refused(with_prox("[prox.mcp]\n[prox.scad]"), "both `mcp` and `scad`");
    refused(with_prox("[prox.mcp]\nknee = 1e-6"), "its bend is only");
    refused(with_prox("[prox.soft_treshold]"), "did you mean `soft_threshold`?");
    // That of earlier versions would close every gate at once.
    refused(with_prox("[prox.soft_threshold]\nthreshold = 10.0"), "set optimizer.adamw.gate.rule = \"adam\"");
}

#[test]
fn a_threshold_that_decides_alone_under_adam_is_told() {
    let sandbox = Sandbox::new();
    sandbox.write("old.toml", with_prox("[prox.soft_threshold]\nthreshold = 10.0"));
    let sets = ["optimizer.adamw.gate={ rule = \"adam\" }", "steps=2"].map(|set| ["--set", set]).concat();
    let done = sandbox.run(&[&["train", "old.toml", "--out", "run"], &sets[..]].concat());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("closes gates whatever they are worth"), "{}", done.stderr);
}

#[test]
fn groups_are_drawn_stratified_and_the_store_says_so() {
    let sandbox = Sandbox::new();
    let tiny = config("tiny.toml");
    sandbox.ok(&["train", &tiny, "--out", "run", "--set", "steps=2", "--set", "rollout.stratify=1"]);
    let rows = sandbox.query("SELECT DISTINCT settings FROM groups");
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["settings"].to_string().contains("stratify"), "{rows:?}");
    // What is recorded is still the policy's probability.
    let metrics = sandbox.metrics("run");
    assert!(metrics.iter().all(|row| row["mismatch_kl"].as_f64().is_none_or(|kl| kl < 1e-6)), "{metrics:?}");
}
