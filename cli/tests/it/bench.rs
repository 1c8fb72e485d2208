//! `proxrl bench` measures every part and reports it. Speeds are not tested.

use crate::support::Sandbox;
use serde_json::Value;

const NETWORK: &str =
    "model.random={family=\"llama\", hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64}";

/// Arguments of a bench of a tiny random network, with `words` behind the verb.
fn bench(words: &[&str]) -> Vec<String> {
    let small = ["--set", "model.path=", "--set", NETWORK, "--set", "model.device=cpu", "--repetitions", "2"];
    let sizes =
        ["--batches", "1,4", "--lengths", "16,32", "--tokens", "64", "--prompt-tokens", "16", "--new-tokens", "6"];
    ["bench"].iter().chain(words).chain(&small).chain(&sizes).map(|word| (*word).to_owned()).collect()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn every_part_is_measured_in_a_process_of_its_own() {
    let sandbox = Sandbox::new();
    let report: Value = serde_json::from_str(&sandbox.ok(&words(&bench(&["--json"])))).unwrap();
    let figures = report["figures"].as_array().unwrap();
    let keys: Vec<&str> = figures.iter().map(|figure| figure["key"].as_str().unwrap()).collect();
    for key in [
        "decode/1",
        "decode/4",
        "prefill/4x16",
        "prefill/1x64",
        "score/4x16",
        "train/4x16",
        "train/2x32",
        "train/ragged",
        "grpo/step",
        "grpo/token",
        "grpo/collect",
        "grpo/decode",
        "grpo/backward",
        "dpo/step",
        "dpo/score",
        "startup/first_step",
    ] {
        assert!(keys.contains(&key), "no {key} in {keys:?}");
    }
    for figure in figures {
        let number = |key: &str| figure[key].as_f64().unwrap_or(f64::NAN);
        assert!(
            number("low") > 0.0 && number("low") <= number("median") && number("median") <= number("high"),
            "{figure}"
        );
        let peak = figure["key"].as_str().unwrap().ends_with("/peak_memory");
        assert!(peak || figure["values"].as_array().unwrap().len() == 2, "{figure}");
    }
    for part in ["decode", "prefill", "score", "train", "grpo", "dpo", "startup"] {
        assert!(keys.contains(&format!("{part}/peak_memory").as_str()), "{part}");
    }
    // 4 prompts of 8 samples, and rows whose lengths sum to the tokens.
    let work = |key: &str| &figures.iter().find(|figure| figure["key"] == key).unwrap()["work"];
    assert_eq!(work("grpo/step")["samples"], 32.0);
    assert_eq!(work("train/2x32")["tokens"], 64.0);
    assert!(report["machine"]["gflop_per_s"].as_f64().unwrap() > 0.0);
    assert!(sandbox.files().is_empty(), "files were left behind: {:?}", sandbox.files());
}

#[test]
fn a_part_alone_is_a_table() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok(&words(&bench(&["growth"])));
    assert!(text.contains("in groups of 8") && text.contains("train, a row of 512"), "{text}");
    assert!(text.contains("GFLOP/s") && text.contains("peak memory of growth"), "{text}");
}

#[test]
fn sizes_that_cannot_be_measured_are_refused() {
    let sandbox = Sandbox::new();
    for (option, value, said) in [
        ("--repetitions", "0", "--repetitions"),
        ("--batches", "0", "--batches"),
        ("--lengths", "1", "--lengths"),
        ("--new-tokens", "2", "--new-tokens"),
        ("--set", "rollout.group_sise=2", "did you mean `group_size`?"),
        ("--config", "missing.toml", "missing.toml"),
        ("--model", "no/such/model", "no/such/model"),
    ] {
        let done = sandbox.run(&["bench", "decode", option, value]);
        assert_eq!(done.code, Some(2), "{option} {value}: {}", done.stderr);
        assert!(done.stderr.contains(said), "{option} {value}: {}", done.stderr);
    }
}
