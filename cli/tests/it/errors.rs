//! Wrong input gets one sentence and exit code 2, and leaves nothing behind.

use crate::support::{Sandbox, config};

/// Asserts that the call fails with exit code 2, an error on one line with these words, and no new file.
fn refused(sandbox: &Sandbox, args: &[&str], words: &[&str]) {
    let before = sandbox.files();
    let done = sandbox.run(args);
    assert_eq!(done.code, Some(2), "{args:?}\n{}\n{}", done.stdout, done.stderr);
    assert_eq!(done.stderr.trim().lines().count(), 1, "{}", done.stderr);
    assert!(done.stderr.starts_with("error: "), "{}", done.stderr);
    for word in words {
        assert!(done.stderr.contains(word), "no `{word}` in {}", done.stderr);
    }
    assert_eq!(sandbox.files(), before, "files were left behind");
}

fn tiny() -> String {
    std::fs::read_to_string(config("tiny.toml")).unwrap()
}

/// The tiny config with one table replaced.
fn with_table(header: &str, table: &str) -> String {
    let text = tiny();
    let start = text.find(header).unwrap_or_else(|| panic!("no {header}"));
    let end = text[start + 1..].find("\n[").map_or(text.len(), |end| start + 1 + end + 1);
    format!("{}{table}\n{}", &text[..start], &text[end..])
}

#[test]
fn a_config_that_is_wrong() {
    let sandbox = Sandbox::new();
    let train = |name: &str, words: &[&str]| refused(&sandbox, &["train", name], words);
    train("missing.toml", &["missing.toml"]);
    sandbox.write("key.toml", tiny().replace("group_size", "group_sise"));
    train("key.toml", &["key.toml:", "[rollout]", "unknown key `group_sise`", "did you mean `group_size`?"]);
    sandbox.write("type.toml", tiny().replace("group_size = 8", "group_size = \"eight\""));
    train("type.toml", &["type.toml:", "eight"]);
    sandbox.write("syntax.toml", tiny().replace("[rollout]", "[rollout"));
    train("syntax.toml", &["syntax.toml:"]);
    sandbox.write("rule.toml", tiny().replace("rule.regex", "rule.regx"));
    train("rule.toml", &["rule.toml:", "did you mean `regex`?"]);
    let tiny = config("tiny.toml");
    let set = |change: &str, words: &[&str]| refused(&sandbox, &["train", &tiny, "--set", change], words);
    set("rollout.group_size=1", &["group_size is 1", "at least 2"]);
    set("rollout.temperature=0", &["temperature is 0"]);
    assert!(sandbox.ok(&["plan", &tiny, "--set", "rollout.num_generations=4"]).contains("group_size = 4"));
    set("rollout.tempreature=0.5", &["--set rollout.tempreature=0.5", "did you mean `temperature`?"]);
    set("optimizer.adamw.learning_rate=-1", &["learning_rate"]);
    set("model.device=\"gpu\"", &["device `gpu` is not known"]);
    set("steps=0", &["steps must be at least 1"]);
}

#[test]
fn a_model_that_is_missing_or_broken() {
    let sandbox = Sandbox::new();
    let with_model = |path: &str| with_table("[model]", &format!("[model]\ndevice = \"cpu\"\npath = \"{path}\"\n"));
    sandbox.write("absent.toml", with_model("no/such/model"));
    refused(&sandbox, &["train", "absent.toml"], &["no/such/model"]);

    let fixtures = super::workspace().join("model/testdata");
    let llama = fixtures.join("llama");
    for file in std::fs::read_dir(&llama).unwrap().flatten() {
        sandbox.write(&format!("cut/{}", file.file_name().display()), std::fs::read(file.path()).unwrap());
        sandbox.write(&format!("mute/{}", file.file_name().display()), std::fs::read(file.path()).unwrap());
    }
    let weights = std::fs::read(sandbox.path("cut/model.safetensors")).unwrap();
    sandbox.write("cut/model.safetensors", &weights[..weights.len() / 2]);
    sandbox.write("cut.toml", with_model("cut"));
    refused(&sandbox, &["train", "cut.toml"], &["model.safetensors"]);

    for file in ["config.json", "generation_config.json"] {
        if let Ok(text) = std::fs::read_to_string(sandbox.path("mute").join(file)) {
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json["eos_token_id"] = 1_000_000.into();
            sandbox.write(&format!("mute/{file}"), json.to_string());
        }
    }
    let words = std::fs::read_to_string(sandbox.path("mute/tokenizer_config.json")).unwrap();
    let mut words: serde_json::Value = serde_json::from_str(&words).unwrap();
    words.as_object_mut().unwrap().remove("eos_token");
    sandbox.write("mute/tokenizer_config.json", words.to_string());
    sandbox.write("mute.toml", with_model("mute"));
    refused(&sandbox, &["train", "mute.toml"], &["end-of-sequence"]);

    let gguf = std::fs::read_dir(&fixtures).unwrap().flatten().map(|entry| entry.path());
    let gguf = gguf.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).min().unwrap();
    let bytes = std::fs::read(gguf).unwrap();
    sandbox.write("cut.gguf", &bytes[..bytes.len() / 2]);
    sandbox.write("gguf.toml", with_model("cut.gguf"));
    refused(&sandbox, &["train", "gguf.toml"], &["cut.gguf"]);
    refused(&sandbox, &["generate", "hi", "--model", "cut.gguf"], &["cut.gguf"]);
}

#[test]
fn data_that_is_empty_or_lacks_a_column() {
    let sandbox = Sandbox::new();
    let with_data = |path: &str| with_table("[prompts.arithmetic]", &format!("[prompts.jsonl]\npath = \"{path}\"\n"));
    sandbox.write("empty.jsonl", "");
    sandbox.write("empty.toml", with_data("empty.jsonl"));
    refused(&sandbox, &["train", "empty.toml"], &["empty.jsonl"]);
    sandbox.write("column.jsonl", "{\"promt\": \"What is 1+1?\", \"answer\": \"2\"}\n");
    sandbox.write("column.toml", with_data("column.jsonl"));
    refused(&sandbox, &["train", "column.toml"], &["column.jsonl", "prompt", "promt"]);
    sandbox.write("json.jsonl", "{\"prompt\": \"What is 1+1?\", \"answer\": \"2\"}\n{\"prompt\": \n");
    sandbox.write("json.toml", with_data("json.jsonl"));
    refused(&sandbox, &["train", "json.toml"], &["json.jsonl", "2"]);
    sandbox.write("gone.toml", with_data("gone.jsonl"));
    refused(&sandbox, &["train", "gone.toml"], &["gone.jsonl"]);
}

#[test]
fn places_that_cannot_be_written() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "not a folder");
    let tiny = config("tiny.toml");
    refused(&sandbox, &["train", &tiny, "--out", "file/run"], &["file/run", "--out"]);
    refused(&sandbox, &["train", &tiny, "--set", "store.url=\"sqlite://no/such/folder/a.db\""], &["no/such/folder"]);
    refused(&sandbox, &["train", &tiny, "--set", "store.url=\"sqlite://file\""], &["file"]);
    refused(&sandbox, &["train", "--resume", "nowhere"], &["nowhere"]);
    refused(&sandbox, &["replay", "ls"], &["proxrl.db"]);
}

#[test]
fn a_store_from_a_newer_version() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=1", "--out", "run"]);
    let store = sandbox.path("proxrl.db");
    newer(&store);
    let again = sandbox.run(&["train", &config("tiny.toml"), "--set", "steps=1", "--out", "other"]);
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(again.stderr.contains("newer"), "{}", again.stderr);
    assert!(!sandbox.path("other").exists(), "{:?}", sandbox.files());
}

#[test]
fn a_checkpoint_over_another_base_model() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=1", "--out", "run"]);
    let other = ["--set", "model.random.seed=9"];
    for verb in [["eval", "run"].as_slice(), &["train", "--resume", "run"]] {
        refused(&sandbox, &[verb, &other].concat(), &["not the one that was saved", "base model"]);
    }
}

/// Marks the store as written by a later version of the program.
fn newer(store: &std::path::Path) {
    let sql = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
               db.execute('INSERT INTO schema_version SELECT 1000, program_version, applied_at FROM schema_version LIMIT 1'); db.commit()";
    let status = std::process::Command::new("python3").args(["-c", sql]).arg(store).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_reader_that_has_seen_enough() {
    let sandbox = Sandbox::new();
    for args in [&["plan", &config("tiny.toml")][..], &["doctor"], &["completions", "bash"]] {
        let mut call = sandbox.start_speaking(args);
        // `| head -0`: the other end is closed before anything is printed.
        drop(call.stdout.take());
        let code = call.wait().unwrap().code();
        let said = std::fs::read_to_string(sandbox.path("stderr")).unwrap();
        assert_eq!((code, said.as_str()), (Some(0), ""), "{args:?}");
    }
}
