//! The first run of a user: a tiny run learns on every seed, and every verb works on the files that it leaves.

use crate::support::{Sandbox, config};

#[test]
fn the_reward_rises_on_three_seeds() {
    for seed in 0..3 {
        let sandbox = Sandbox::new();
        sandbox.ok(&["train", &config("tiny.toml"), "--set", &format!("seed={seed}"), "--out", "run"]);
        let rewards: Vec<f64> = sandbox.metrics("run").iter().map(|row| row["reward"].as_f64().unwrap()).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..5]), mean(&rewards[15..]));
        assert!(last > first + 0.2, "seed {seed}: {first:.3} to {last:.3} in {rewards:?}");
    }
}

#[test]
fn gradient_checkpointing_changes_no_number() {
    let [kept, again] = ["false", "true"].map(|value| {
        let sandbox = Sandbox::new();
        let change = format!("model.gradient_checkpointing={value}");
        sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=3", "--set", &change, "--out", "run"]);
        sandbox.metrics("run")
    });
    assert!(kept.iter().all(|row| row["grad_norm"].as_f64().unwrap() > 0.0));
    assert_eq!(kept, again);
}

#[test]
fn a_run_leaves_what_the_readme_promises() {
    let sandbox = Sandbox::new();
    let shown = sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=4"]);
    for words in
        ["held-out accuracy", "mean reward", "generated", "active rank", "sqlite://proxrl.db", "proxrl replay stats"]
    {
        assert!(shown.contains(words), "no `{words}` in\n{shown}");
    }
    for file in [
        "config.toml",
        "run.json",
        "metrics.jsonl",
        "summary.json",
        "reward.svg",
        "reward.png",
        "checkpoints/step_4/state.json",
    ] {
        assert!(sandbox.path("runs/tiny").join(file).exists(), "no {file} in {:?}", sandbox.files());
    }
    assert!(sandbox.files().iter().any(|file| file.contains("runs/tiny/tensorboard/events.out.tfevents")));
    let summary = sandbox.summary("runs/tiny");
    for key in [
        "accuracy_before",
        "accuracy_after",
        "reward_first10",
        "reward_last10",
        "generated_tokens",
        "train_seconds",
        "rollout_seconds",
        "reward_seconds",
        "peak_rss_mb",
        "active_rank",
        "samples",
    ] {
        assert!(summary[key].is_number(), "{key} in {summary}");
    }
    assert_eq!(summary["samples"], 4 * 4 * 8);
    let row = &sandbox.metrics("runs/tiny")[3];
    for key in [
        "step",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/digit/mean",
        "rewards/digit/std",
        "entropy",
        "completions/mean_length",
        "completions/clipped_ratio",
        "clip_ratio/region_mean",
        "grad_norm",
        "learning_rate",
        "mismatch_kl",
        "effective_sample_share",
        "num_tokens",
        "adapter/active_rank",
        "loss",
    ] {
        assert!(row[key].is_number(), "{key} in {row}");
    }
    assert!(row["mismatch_kl"].as_f64().unwrap().abs() < 1e-6, "sampler and trainer disagree: {row}");

    // a second run does not touch the first
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=1"]);
    assert!(sandbox.path("runs/tiny-2/summary.json").exists());

    let accuracy = sandbox.ok(&["eval", "runs/tiny", "--json", "--set", "evaluate.samples=4"]);
    let accuracy: serde_json::Value = serde_json::from_str(&accuracy).unwrap();
    assert_eq!(accuracy["eval_accuracy"], summary["accuracy_after"]);
    assert!(accuracy["eval_pass@4"].as_f64().unwrap() >= accuracy["eval_pass@1"].as_f64().unwrap());

    let drawn = |seed: &str| {
        let line = sandbox.ok(&[
            "generate",
            "What is 1+1?",
            "--run",
            "runs/tiny",
            "--json",
            "--seed",
            seed,
            "--max-new-tokens",
            "8",
        ]);
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1")["ids"], drawn("2")["ids"]);
    assert_eq!(drawn("1")["ids"].as_array().unwrap().len(), drawn("1")["logprobs"].as_array().unwrap().len());

    let folder = sandbox.ok(&["export", "runs/tiny", "--format", "peft", "--base", "my/base"]);
    let exported: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sandbox.path(folder.trim()).join("adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(exported["peft_type"], "LORA");
    assert_eq!(exported["r"], 8);
    assert_eq!(exported["base_model_name_or_path"], "my/base");

    let plan = sandbox.ok(&["plan", &config("tiny.toml")]);
    assert!(plan.contains("4 prompts x 8 samples = 32 samples") && plan.contains("[optimizer.adamw]"), "{plan}");
}

#[test]
fn bf16_trains_and_its_sampler_and_trainer_nearly_agree() {
    let sandbox = Sandbox::new();
    let sets = ["steps=3", "model.dtype=bf16"];
    let mut args = vec!["train".to_owned(), config("tiny.toml"), "--out".into(), "run".into()];
    args.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
    sandbox.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let rows = sandbox.metrics("run");
    assert!(rows.iter().any(|row| row["updates/taken"].as_f64().unwrap() > 0.0));
    for row in rows.iter().filter(|row| row["mismatch_kl"].is_number()) {
        assert!(row["mismatch_kl"].as_f64().unwrap() < 0.01, "{row}");
    }
}

#[test]
fn lora_several_epochs_and_a_kl_penalty_run() {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    let start = text.find("[model.adapter.sora]").unwrap();
    let end = text.find("[prompts").unwrap();
    let lora = format!("{}[model.adapter.lora]\nrank = 4\n\n{}", &text[..start], &text[end..]);
    let prox = lora.find("[prox.soft_threshold]").unwrap();
    let checkpoint = lora.find("[checkpoint]").unwrap();
    sandbox.write("lora.toml", format!("{}{}", &lora[..prox], &lora[checkpoint..]));
    let sets =
        ["steps=3", "algorithm.grpo.num_iterations=2", "algorithm.grpo.minibatches=2", "algorithm.grpo.beta=0.05"];
    let mut args = vec!["train", "lora.toml", "--out", "run"];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    sandbox.ok(&args);
    let rows = sandbox.metrics("run");
    assert!(rows[2]["kl"].as_f64().unwrap() > 0.0);
    assert!(rows.iter().all(|row| row["updates/taken"].as_f64().unwrap() <= 4.0));
    let moved = rows.iter().any(|row| (row["ratio/mean"].as_f64().unwrap() - 1.0).abs() > 1e-6);
    assert!(moved, "in the second epoch the policy is no longer the one that drew the samples");
}
