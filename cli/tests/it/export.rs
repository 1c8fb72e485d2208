//! An exported model answers as the run does.

use crate::support::{Sandbox, config};
use serde_json::Value;
use std::fs;

/// The tiny run on a checkpoint of the model crate's fixtures instead of a random network.
fn trained(sandbox: &Sandbox, base: &str, steps: &str) {
    let text = fs::read_to_string(config("tiny.toml")).unwrap();
    let base = super::workspace().join("model/testdata").join(base);
    let model = format!("path = \"{}\"", base.display());
    let random = text.lines().find(|line| line.starts_with("random")).unwrap().to_owned();
    sandbox.write("base.toml", text.replace(&random, &model));
    sandbox.ok(&["train", "base.toml", "--set", steps, "--set", "prune.every=2", "--out", "run"]);
}

/// Ids and log-probabilities of a greedy answer.
fn answer(sandbox: &Sandbox, who: [&str; 2]) -> (Value, Vec<f64>) {
    let call = ["generate", "1+2=", "--raw", "--greedy", "--json", "--max-new-tokens", "6", who[0], who[1]];
    let json: Value = serde_json::from_str(&sandbox.ok(&call)).unwrap();
    let logprobs = json["logprobs"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect();
    (json["ids"].clone(), logprobs)
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn merged_models_and_adapters_answer_as_the_run_they_came_from() {
    for base in ["qwen2.gguf", "llama"] {
        let sandbox = Sandbox::new();
        trained(&sandbox, base, "steps=3");
        let (ids, logprobs) = answer(&sandbox, ["--run", "run"]);
        let checkpoint = super::workspace().join("model/testdata").join(base).display().to_string();
        let (_, untrained) = answer(&sandbox, ["--model", &checkpoint]);
        assert!(difference(&logprobs, &untrained) > 1e-3, "training changed nothing");

        for (format, out) in [("hf", "run/export/hf"), ("gguf", "run/export/model.gguf")] {
            let printed = sandbox.ok(&["export", "run", "--format", format, "--type", "f32"]);
            assert_eq!(printed.trim(), out);
            let (merged_ids, merged) = answer(&sandbox, ["--model", out]);
            assert_eq!(merged_ids, ids, "{base} as {format}");
            assert!(difference(&merged, &logprobs) < 1e-4, "{base} as {format}");
        }
        sandbox.ok(&["export", "run", "--format", "gguf", "--type", "q8_0", "--out", "small.gguf"]);
        let sizes = ["run/export/model.gguf", "small.gguf"].map(|file| fs::metadata(sandbox.path(file)).unwrap().len());
        assert!(sizes[1] < sizes[0], "{sizes:?}");

        // An exported adapter can be gone on from; at a rate of zero it stays what it is.
        for format in ["peft", "peft-padded"] {
            let out = sandbox.ok(&["export", "run", "--format", format]);
            let text = fs::read_to_string(sandbox.path("base.toml")).unwrap();
            let (start, end) = (text.find("[model.adapter.sora]").unwrap(), text.find("[prompts").unwrap());
            let adapter = format!("[model.adapter.peft]\npath = \"{}\"\n\n", out.trim());
            let text = format!("{}{adapter}{}", &text[..start], &text[end..]);
            let (start, end) = (text.find("[prox").unwrap(), text.find("[checkpoint]").unwrap());
            sandbox.write("on.toml", format!("{}{}", &text[..start], &text[end..]));
            sandbox.ok(&[
                "train",
                "on.toml",
                "--set",
                "steps=1",
                "--set",
                "optimizer.adamw.learning_rate=0",
                "--out",
                format,
            ]);
            let (again, kept) = answer(&sandbox, ["--run", format]);
            assert_eq!(again, ids, "{base} as {format}");
            assert!(difference(&kept, &logprobs) < 1e-4, "{base} as {format}");
        }
    }
}

#[test]
fn what_cannot_be_exported_is_said() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=1", "--out", "run"]);
    let refused = |args: &[&str], words: &str| {
        let done = sandbox.run(&[&["export", "run"], args].concat());
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
    };
    refused(&["--format", "hf"], "--format peft");
    refused(&["--format", "gguf"], "random network");
    refused(&["--format", "peft", "--type", "f16"], "--type is for merged models");
    trained_on_nothing(&sandbox);
}

/// A folder of an adapter that is not there is named before anything is trained.
fn trained_on_nothing(sandbox: &Sandbox) {
    let text = fs::read_to_string(config("tiny.toml")).unwrap();
    let (start, end) = (text.find("[model.adapter.sora]").unwrap(), text.find("[prompts").unwrap());
    let text = format!("{}[model.adapter.peft]\npath = \"absent\"\n{}", &text[..start], &text[end..]);
    let (start, end) = (text.find("[prox").unwrap(), text.find("[checkpoint]").unwrap());
    sandbox.write("absent.toml", format!("{}{}", &text[..start], &text[end..]));
    let done = sandbox.run(&["train", "absent.toml"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("absent/adapter_config.json"), "{}", done.stderr);
}
