//! Learning from data sets: supervised fine-tuning, reward models, and runs that start from them.

use crate::support::{Done, Sandbox, tiny_model};

const MODEL: &str = tiny_model!();

const ARITHMETIC: &str = "[prompts.arithmetic]
operations = [\"+\"]
max = 6
held_out = 8
rejected = \"no idea\"
";

const SFT: &str = "[rollout]
prompts_per_step = 8

[algorithm.sft]

[optimizer.adamw]
learning_rate = 1e-2
";

const REWARD_MODEL: &str = "[rollout]
prompts_per_step = 8

[algorithm.reward_model]

[optimizer.adamw]
learning_rate = 5e-3
";

const GRPO: &str = "[rollout]
prompts_per_step = 4
group_size = 8
max_new_tokens = 8

[algorithm.grpo]

[optimizer.adamw]
learning_rate = 1e-2
";

const DIGIT: &str = "[[reward]]
name = \"digit\"
rule.regex = { pattern = \"[0-9]\" }
";

/// Writes a config of these tables.
fn config(sandbox: &Sandbox, name: &str, steps: u64, tables: &[&str]) {
    sandbox.write(name, format!("steps = {steps}\n\n{}", tables.join("\n")));
}

/// Trains into the folder `out`; returns the summary that the run prints at its end.
fn train(sandbox: &Sandbox, name: &str, out: &str, sets: &[&str]) -> String {
    let mut args = vec!["train", name, "--out", out];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    sandbox.ok(&args)
}

fn column(sandbox: &Sandbox, run: &str, name: &str) -> Vec<f64> {
    let number = |row: &serde_json::Value| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"));
    sandbox.metrics(run).iter().map(number).collect()
}

fn refused(done: &Done, words: &[&str]) {
    assert_eq!(done.code, Some(2), "{}\n{}", done.stdout, done.stderr);
    assert_eq!(done.stderr.trim().lines().count(), 1, "{}", done.stderr);
    for word in words {
        assert!(done.stderr.contains(word), "no `{word}` in {}", done.stderr);
    }
}

#[test]
fn supervised_learning_imitates_on_three_seeds() {
    for seed in 0..3 {
        let sandbox = Sandbox::new();
        config(&sandbox, "sft.toml", 40, &[MODEL, ARITHMETIC, SFT]);
        let shown = train(&sandbox, "sft.toml", "run", &[&format!("seed={seed}"), "evaluate.every=20"]);
        for words in ["held-out loss", "mean loss", "320 completions of the data set", "proxrl eval run", "loss.svg"] {
            assert!(shown.contains(words), "no `{words}` in\n{shown}");
        }
        assert!(!shown.contains("reward"), "{shown}");
        let loss = column(&sandbox, "run", "loss");
        // A random network spreads its guesses over 259 tokens: ln 259 = 5.6.
        assert!(loss[0] > 4.0 && loss[39] < 2.0, "seed {seed}: {loss:?}");
        let summary = sandbox.summary("run");
        let (before, after) = (summary["loss_before"].as_f64().unwrap(), summary["loss_after"].as_f64().unwrap());
        assert!(after < before - 2.0, "seed {seed}: {before} to {after}");
        assert_eq!((&summary["samples"], &summary["generated_tokens"]), (&320.into(), &0.into()));
        let row = &sandbox.metrics("run")[19];
        for key in ["mean_token_accuracy", "entropy", "num_tokens", "eval_loss", "eval_perplexity", "examples/cut"] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
        assert!((row["eval_perplexity"].as_f64().unwrap().ln() - row["eval_loss"].as_f64().unwrap()).abs() < 1e-9);
        assert!(row["reward"].is_null() && row["perf/generated_tokens_per_second"].is_null(), "{row}");
        assert!(sandbox.path("run/loss.png").exists() && !sandbox.path("run/reward.svg").exists());
        assert_eq!(sandbox.query("SELECT count(*) AS n FROM samples")[0]["n"], 0);
        let measured: serde_json::Value = serde_json::from_str(&sandbox.ok(&["eval", "run", "--json"])).unwrap();
        assert_eq!(measured["eval_loss"], summary["loss_after"]);
    }
}

#[test]
fn temperature_is_one_whatever_the_rollouts_is() {
    let sandbox = Sandbox::new();
    config(&sandbox, "sft.toml", 2, &[MODEL, ARITHMETIC, SFT]);
    train(&sandbox, "sft.toml", "plain", &[]);
    train(&sandbox, "sft.toml", "hot", &["rollout.temperature=0.3"]);
    assert_eq!(column(&sandbox, "plain", "loss"), column(&sandbox, "hot", "loss"));
}

#[test]
fn reinforcement_goes_on_from_supervised_learning() {
    let sandbox = Sandbox::new();
    config(&sandbox, "sft.toml", 60, &[MODEL, ARITHMETIC, SFT, DIGIT]);
    config(&sandbox, "grpo.toml", 3, &[MODEL, ARITHMETIC, GRPO, DIGIT]);
    let shown = train(&sandbox, "sft.toml", "sft", &[]);
    assert!(shown.contains("held-out accuracy"), "a reward judges the held-out answers:\n{shown}");
    train(&sandbox, "grpo.toml", "cold", &[]);
    let sets = ["model.adapter_from=sft", "algorithm.grpo.beta=0.1", "checkpoint.keep=0"];
    train(&sandbox, "grpo.toml", "warm", &sets);

    let adapter = |path: &str| std::fs::read(sandbox.path(path).join("adapter.safetensors")).unwrap();
    assert_eq!(adapter("warm/checkpoints/step_0"), adapter("sft/checkpoints/step_60"));
    assert_ne!(adapter("warm/checkpoints/step_3"), adapter("sft/checkpoints/step_60"));
    assert_eq!(sandbox.summary("warm")["accuracy_before"], sandbox.summary("sft")["accuracy_after"]);
    // The answers that it imitated are one or two digits and their end; an untrained network hardly ever ends.
    let length = |run: &str| column(&sandbox, run, "completions/mean_length")[0];
    let (cold, warm) = (length("cold"), length("warm"));
    assert!(warm < cold - 2.0, "{cold} tokens cold, {warm} warm");
    let (cold, warm) = (column(&sandbox, "cold", "reward")[0], column(&sandbox, "warm", "reward")[0]);
    assert!(warm > cold + 0.1, "{cold} cold, {warm} warm");
    // The penalty pulls towards where training began, not towards the untouched network.
    let kl = column(&sandbox, "warm", "kl");
    assert!(kl[0].abs() < 1e-6 && kl[2] > 0.0, "{kl:?}");

    // A run that stops and goes on has the same reference.
    train(&sandbox, "grpo.toml", "parts", &[&sets[..], &["steps=2"]].concat());
    sandbox.ok(&["train", "--resume", "parts", "--set", "steps=3"]);
    assert_eq!(sandbox.metrics("parts"), sandbox.metrics("warm"));
}

#[test]
fn a_reward_model_ranks_on_three_seeds_and_judges_for_others() {
    for seed in 0..3 {
        let sandbox = Sandbox::new();
        let seed = format!("seed={seed}");
        config(&sandbox, "rm.toml", 30, &[MODEL, ARITHMETIC, REWARD_MODEL]);
        let shown = train(&sandbox, "rm.toml", "rm", &[&seed]);
        assert!(shown.contains("held-out accuracy") && !shown.contains("greedy"), "{shown}");
        let summary = sandbox.summary("rm");
        // The head starts at zero, where no pair is told apart.
        assert_eq!(summary["accuracy_before"], 0.0);
        assert_eq!(summary["accuracy_after"], 1.0, "{seed}");
        let loss = column(&sandbox, "rm", "loss");
        assert!((loss[0] - 2f64.ln()).abs() < 1e-6 && loss[29] < 0.2, "{seed}: {loss:?}");
        let row = &sandbox.metrics("rm")[29];
        for key in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
        assert!(row["min_reward"].as_f64() < row["max_reward"].as_f64());
        for file in ["adapter.safetensors", "critic.safetensors"] {
            assert!(sandbox.path("rm/checkpoints/step_30").join(file).exists());
        }
        let measured: serde_json::Value = serde_json::from_str(&sandbox.ok(&["eval", "rm", "--json"])).unwrap();
        assert_eq!(measured["eval_accuracy"], 1.0);

        config(&sandbox, "grpo.toml", 20, &[MODEL, ARITHMETIC, GRPO, "[[reward]]\nmodel = { path = \"rm\" }\n"]);
        train(&sandbox, "grpo.toml", "run", &[&seed]);
        let rewards = column(&sandbox, "run", "rewards/model/mean");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&rewards[15..]) > mean(&rewards[..5]) + 0.1, "{seed}: {rewards:?}");
        assert_eq!(column(&sandbox, "run", "samples/unjudged"), [0.0; 20]);
    }
}

#[test]
fn a_reward_model_judges_over_another_base_too() {
    let sandbox = Sandbox::new();
    config(&sandbox, "rm.toml", 5, &[MODEL, ARITHMETIC, REWARD_MODEL]);
    train(&sandbox, "rm.toml", "rm", &[]);
    config(&sandbox, "grpo.toml", 1, &[MODEL, ARITHMETIC, GRPO, "[[reward]]\nmodel = { path = \"rm\" }\n"]);
    train(&sandbox, "grpo.toml", "other", &["model.random.seed=9"]);
    let row = &sandbox.metrics("other")[0];
    assert!(row["reward_std"].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!(row["samples/unjudged"], 0.0);
}

#[test]
fn files_are_read_in_every_layout_and_a_run_resumes() {
    let sandbox = Sandbox::new();
    let lines: Vec<String> = (0..7)
        .map(|n| {
            let turn = |role: &str, content: String| serde_json::json!({"role": role, "content": content});
            serde_json::json!({"messages": [turn("user", format!("{n}?")), turn("assistant", format!("It is {n}."))]})
                .to_string()
        })
        .collect();
    sandbox.write("chats.jsonl", lines.join("\n"));
    config(&sandbox, "sft.toml", 6, &[MODEL, "[prompts.jsonl]\npath = \"chats.jsonl\"\nheld_out_count = 2\n", SFT]);
    let sets = ["rollout.prompts_per_step=3", "checkpoint.every=2"];
    train(&sandbox, "sft.toml", "whole", &sets);
    train(&sandbox, "sft.toml", "parts", &[&sets[..], &["steps=3"]].concat());
    sandbox.ok(&["train", "--resume", "parts", "--set", "steps=6"]);
    assert_eq!(sandbox.metrics("parts"), sandbox.metrics("whole"));
    // Three of five rows in each step.
    assert!((column(&sandbox, "whole", "epoch")[5] - 18.0 / 5.0).abs() < 1e-12);
    assert_eq!(sandbox.summary("whole")["held_out"], 2);

    // `It is N.` and its end are ten tokens; the limit leaves room for four of them.
    let prompt = "<|im_start|>user\nN?<|im_end|>\n<|im_start|>assistant\n".len() - 3 * 12 + 6;
    train(&sandbox, "sft.toml", "cut", &[&format!("algorithm.sft.max_length={}", prompt + 4), "steps=1"]);
    let row = &sandbox.metrics("cut")[0];
    assert!(
        row["examples/cut"].as_f64().unwrap() > 0.0 && row["completions/max_length"].as_f64().unwrap() <= 7.0,
        "{row}"
    );

    sandbox.write(
        "pairs.jsonl",
        "{\"chosen\": \"Q: 1? A: yes\", \"rejected\": \"Q: 1? A: no, never\", \"margin\": 0.5}\n",
    );
    config(&sandbox, "rm.toml", 2, &[MODEL, "[prompts.jsonl]\npath = \"pairs.jsonl\"\n", REWARD_MODEL]);
    train(&sandbox, "rm.toml", "pairs", &[]);
    // −log σ(0 − 0 − 0.5) = 0.974077
    assert!((column(&sandbox, "pairs", "loss")[0] - 0.974_077).abs() < 1e-5);
    sandbox.write(
        "prompted.jsonl",
        "{\"prompt\": \"1?\", \"chosen\": \"yes\", \"rejected\": \"no, never\", \"margin\": 0.5}\n",
    );
    train(&sandbox, "rm.toml", "prompted", &["prompts.jsonl.path=prompted.jsonl"]);
    assert!((column(&sandbox, "prompted", "loss")[0] - 0.974_077).abs() < 1e-5);
    // `4.` and its end are three tokens of a completion; the tokens of its prompt are not learned.
    sandbox.write("answers.jsonl", "{\"prompt\": \"What is 2+2?\", \"completion\": \"4.\"}\n");
    let sets = ["prompts.jsonl.path=answers.jsonl", "prompts.jsonl.held_out_count=0", "steps=1"];
    train(&sandbox, "sft.toml", "answers", &sets);
    assert_eq!(column(&sandbox, "answers", "completions/mean_length"), [3.0]);
    train(&sandbox, "rm.toml", "dropped", &["algorithm.reward_model.max_length=12", "steps=1"]);
    let row = &sandbox.metrics("dropped")[0];
    assert_eq!((&row["examples/dropped"], &row["updates/taken"]), (&8.0.into(), &0.0.into()));
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let sandbox = Sandbox::new();
    let jsonl = "[prompts.jsonl]\npath = \"rows.jsonl\"\n";
    sandbox.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}\n");
    config(&sandbox, "sft.toml", 2, &[MODEL, jsonl, SFT]);
    refused(&sandbox.run(&["train", "sft.toml"]), &["rows.jsonl: line 2", "no column `completion`"]);
    config(&sandbox, "rm.toml", 2, &[MODEL, jsonl, REWARD_MODEL]);
    refused(&sandbox.run(&["train", "rm.toml"]), &["rows.jsonl: line 1", "no column `chosen`"]);
    config(&sandbox, "short.toml", 2, &[MODEL, ARITHMETIC, SFT]);
    let short = ["train", "short.toml", "--set", "algorithm.sft.max_length=1"];
    refused(&sandbox.run(&short), &["algorithm.sft.max_length must be at least 2"]);
    config(&sandbox, "none.toml", 2, &[MODEL, ARITHMETIC, GRPO]);
    refused(&sandbox.run(&["train", "none.toml"]), &["no [[reward]] is given"]);

    config(&sandbox, "sft.toml", 1, &[MODEL, ARITHMETIC, SFT]);
    train(&sandbox, "sft.toml", "sft", &[]);
    let judge = |table: &str, words: &[&str]| {
        config(&sandbox, "grpo.toml", 1, &[MODEL, ARITHMETIC, GRPO, &format!("[[reward]]\n{table}\n")]);
        refused(&sandbox.run(&["train", "grpo.toml"]), words);
    };
    judge("model = { path = \"sft\" }", &["sft is a run of algorithm.sft", "algorithm.reward_model"]);
    judge("model = { path = \"nowhere\" }", &["nowhere holds no config.toml"]);
    judge("model = { path = \"sft\" }\nrule.math_answer = {}", &["sft is a run of algorithm.sft"]);
    judge("weight = 1.0", &["needs a `rule` or a `model`"]);

    config(&sandbox, "grpo.toml", 1, &[MODEL, ARITHMETIC, GRPO, DIGIT]);
    let from = |sets: &[&str], words: &[&str]| {
        let mut args = vec!["train", "grpo.toml"];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        refused(&sandbox.run(&args), words);
    };
    from(&["model.adapter_from=nowhere"], &["nowhere holds no config.toml"]);
    from(
        &["model.adapter_from=sft", "model.adapter.lora.rank=4"],
        &["model.adapter_from", "same [model.adapter] table"],
    );
    from(&["model.adapter_from=sft", "model.random.seed=9"], &["not the one that was saved"]);
}

#[test]
fn a_plan_says_what_is_read() {
    let sandbox = Sandbox::new();
    config(&sandbox, "sft.toml", 4, &[MODEL, ARITHMETIC, SFT]);
    let shown = sandbox.ok(&["plan", "sft.toml"]);
    assert!(shown.contains("8 rows of the data set") && shown.contains("max_length = 1024"), "{shown}");
}

#[test]
fn a_prompt_that_opens_the_section_itself_is_met_by_a_key() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"prompt\": \"2+2? <think>\"}\n{\"prompt\": \"3+3? <think>\"}\n");
    let prompts = "[prompts.jsonl]\npath = \"rows.jsonl\"\nas = \"text\"\n";
    let format = |opening: &str| format!("[[reward]]\nrule.format = {{ tags = [\"think\", \"answer\"]{opening} }}\n");
    config(&sandbox, "grpo.toml", 1, &[MODEL, prompts, GRPO, &format("")]);
    let done = sandbox.run(&["train", "grpo.toml", "--out", "run"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    let key = "set rule.format.opening = \"<think>\"";
    assert!(done.stderr.contains("reward `format`") && done.stderr.contains(key), "{}", done.stderr);
    config(&sandbox, "grpo.toml", 1, &[MODEL, prompts, GRPO, &format(", opening = \"<think>\"")]);
    train(&sandbox, "grpo.toml", "run", &[]);
}

#[test]
fn an_answer_of_many_digits_keeps_them() {
    let sandbox = Sandbox::new();
    let numbers = ["30414093201713378043612608166064768844377641568960512000000000000", "-9223372036854775809", "0.1"];
    let row = |number: &&str| format!("{{\"prompt\": \"q\", \"completion\": \"{number}\", \"answer\": {number}}}\n");
    sandbox.write("rows.jsonl", numbers.iter().map(row).collect::<Vec<_>>().concat());
    config(&sandbox, "math.toml", 1, &[MODEL, ARITHMETIC, GRPO, "[[reward]]\nrule.math_answer = {}\n"]);
    sandbox.ok(&["replay", "import", "rows.jsonl", "--config", "math.toml", "--as", "text"]);
    sandbox.ok(&["replay", "rescore", "--reward", "math.toml"]);
    let query = "SELECT answer, reward FROM sample_view ORDER BY answer";
    let rows = sandbox.ok(&["replay", "query", "--scoring", "latest", "--format", "json", query]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let right = |number: &str| rows.iter().any(|row| row["answer"] == number && row["reward"] == 1.0);
    assert!(rows.len() == 3 && numbers.iter().all(|number| right(number)), "{rows:?}");
}
