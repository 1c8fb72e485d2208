//! Learning from old samples: which groups come back, with which rows, and that a killed run samples the same again.

use crate::support::{Sandbox, config};
use serde_json::Value;
use std::collections::HashSet;

/// Writes the tiny config with another algorithm into the sandbox.
fn tiny(sandbox: &Sandbox, algorithm: &str) {
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    sandbox.write("config.toml", text.replace("[algorithm.grpo]", algorithm));
}

const REMIX: &str = "[algorithm.remix]
reincarnate_after = 5
kl_coefficient = 0.01
lambda = { hold = 3, every = 1 }

[algorithm.remix.base.grpo]";

fn remix(sandbox: &Sandbox, sets: &[&str]) {
    tiny(sandbox, REMIX);
    let mut args = vec!["train", "config.toml", "--out", "run"];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    sandbox.ok(&args);
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

#[test]
fn old_groups_take_the_place_of_fresh_ones_until_the_reincarnation() {
    let sandbox = Sandbox::new();
    remix(&sandbox, &["steps=8", "rollout.prompts_per_step=5"]);
    let rows = sandbox.metrics("run");
    assert_eq!(number(&rows[0], "replay/groups"), 0.0, "the first step has no past");
    assert_eq!(number(&rows[0], "replay/fresh_groups"), 5.0);
    for row in &rows[..5] {
        assert_eq!(number(row, "replay/groups") + number(row, "replay/fresh_groups"), 5.0);
        assert!(number(row, "replay/groups") <= 2.0);
        assert_eq!(number(row, "replay/samples"), 8.0 * number(row, "replay/groups"));
    }
    assert!(rows[1..5].iter().any(|row| number(row, "replay/groups") == 2.0), "{rows:?}");
    for row in rows[1..5].iter().filter(|row| number(row, "replay/groups") > 0.0) {
        assert!((1.0..=2.0).contains(&number(row, "replay/age_mean")));
        let share = number(row, "replay/effective_sample_share");
        assert!(share > 0.0 && share < 1.0, "{row}");
        assert!(number(row, "replay/mismatch_kl") > 0.0);
    }
    // After the reincarnation everything is fresh, and learned from once.
    for row in &rows[5..] {
        assert!(row["replay/groups"].is_null() && number(row, "updates/taken") <= 1.0, "{row}");
    }
    // The table of samples and the metrics agree about the number of samples.
    let drawn = sandbox.query("SELECT COUNT(*) AS n FROM samples")[0]["n"].as_u64().unwrap();
    assert_eq!(number(&rows[7], "num_samples") as u64, drawn);
    assert_eq!(sandbox.summary("run")["samples"].as_u64().unwrap(), drawn);
    assert!(drawn < 8 * 5 * 8);
    // The divergence from the reference starts again at its renewal.
    assert!(number(&rows[4], "kl") > number(&rows[5], "kl"), "{rows:?}");
    assert!(number(&rows[4], "kl/previous") > 0.0);
    assert!(number(&rows[4], "ratio/first_quarter_mean") > 0.0);
}

#[test]
fn sampled_divergences_run_too() {
    for kl in ["k3", "weighted_k3"] {
        let sandbox = Sandbox::new();
        remix(&sandbox, &["steps=5", &format!("algorithm.remix.kl={kl}")]);
        let rows = sandbox.metrics("run");
        assert!(number(&rows[4], "kl") > 0.0 && number(&rows[4], "kl/previous") > 0.0, "{kl}: {rows:?}");
    }
}

#[test]
fn remix_learns_on_three_seeds_and_draws_less() {
    for seed in 0..3 {
        let sandbox = Sandbox::new();
        // The learning rate of this config is made for one pass.
        tiny(&sandbox, "[algorithm.remix]\nepochs = 1\nreincarnate_after = 15\n\n[algorithm.remix.base.grpo]");
        sandbox.ok(&["train", "config.toml", "--set", &format!("seed={seed}"), "--out", "run"]);
        let rows = sandbox.metrics("run");
        let mean = |part: &[Value]| part.iter().map(|row| number(row, "reward")).sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rows[..5]), mean(&rows[15..]));
        assert!(last > first + 0.2, "seed {seed}: {first:.3} to {last:.3}");
        assert!(number(&rows[19], "num_samples") < 0.85 * 20.0 * 4.0 * 8.0, "seed {seed}");
    }
}

#[test]
fn a_killed_run_replays_the_same_groups_again() {
    let sets = ["steps=8", "checkpoint.every=3"];
    let expected = Sandbox::new();
    remix(&expected, &sets);
    for delays in [&[500u64][..], &[900], &[700, 800]] {
        let sandbox = Sandbox::new();
        tiny(&sandbox, REMIX);
        let mut start = vec!["train", "config.toml", "--out", "run"];
        start.extend(sets.iter().flat_map(|set| ["--set", *set]));
        sandbox.ok_after_kills(&start, delays);
        assert_eq!(sandbox.metrics("run"), expected.metrics("run"), "killed after {delays:?} ms");
    }
    // Each checkpoint, and so each resumed run, has the policies that the loss compares with.
    for part in ["previous", "reference"] {
        assert!(expected.path("run/checkpoints/step_6").join(format!("{part}.safetensors")).exists(), "{part}");
    }
}

#[test]
fn ppo_replays_single_samples_with_traces_too() {
    let sandbox = Sandbox::new();
    let base = "[algorithm.remix.base.ppo]\ntrace_truncation = 1.0\nlambda = 0.95";
    tiny(&sandbox, &REMIX.replace("[algorithm.remix.base.grpo]", base));
    sandbox.ok(&["train", "config.toml", "--set", "steps=7", "--set", "rollout.group_size=1", "--out", "run"]);
    let rows = sandbox.metrics("run");
    // Four prompts a step, of which two fifths are two: a group of one needs no signal.
    for row in &rows[1..5] {
        assert_eq!((number(row, "replay/groups"), number(row, "replay/fresh_samples")), (2.0, 2.0));
        assert!(number(row, "loss/value") >= 0.0);
    }
    assert!(rows[6]["replay/groups"].is_null());
    assert_eq!(number(&rows[6], "num_samples"), 4.0 + 4.0 * 2.0 + 2.0 * 4.0);
}

/// A finished run of plain GRPO in the sandbox's store.
fn older_run(sandbox: &Sandbox) {
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=6", "--out", "older"]);
}

#[test]
fn a_run_learns_from_another_runs_samples_alone() {
    let sandbox = Sandbox::new();
    older_run(&sandbox);
    let sets = ["--set", "replay.run=older", "--set", "replay.offline=true", "--set", "steps=5"];
    let train = |run: &str| {
        let mut args = vec!["train".to_owned(), config("tiny.toml"), "--out".into(), run.into()];
        args.extend(sets.map(str::to_owned));
        sandbox.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        sandbox.metrics(run)
    };
    let rows = train("new");
    for row in &rows {
        assert_eq!((number(row, "replay/groups"), number(row, "replay/fresh_groups")), (4.0, 0.0));
        assert!(number(row, "updates/taken") > 0.0);
    }
    assert_eq!(sandbox.summary("new")["generated_tokens"], 0);
    // Nothing was added to the store, and the same seed learns the same.
    assert_eq!(sandbox.query("SELECT COUNT(DISTINCT run_id) AS n FROM groups")[0]["n"], 1);
    assert_eq!(rows, train("again"));
    let config = &sandbox.query("SELECT config FROM runs WHERE name = 'new'")[0]["config"];
    assert!(config.as_str().unwrap().contains("run = \"older\""), "the run says whose samples it learned from");
}

#[test]
fn a_run_begins_with_another_runs_samples() {
    let sandbox = Sandbox::new();
    older_run(&sandbox);
    remix(&sandbox, &["steps=4", "replay.run=older"]);
    let rows = sandbox.metrics("run");
    // Four groups a step, of which two are old: of the older run while this one has no past.
    assert_eq!((number(&rows[0], "replay/groups"), number(&rows[0], "replay/fresh_groups")), (2.0, 2.0));
    assert!(number(&rows[0], "replay/mismatch_kl") > 0.0);
    let per_step = sandbox.query(
        "SELECT COUNT(*) AS n FROM groups g JOIN runs r ON r.id = g.run_id WHERE r.name = 'run' GROUP BY g.step",
    );
    assert_eq!(per_step[0]["n"], 2);
}

#[test]
fn another_runs_samples_are_refused_where_they_do_not_fit() {
    let sandbox = Sandbox::new();
    older_run(&sandbox);
    tiny(&sandbox, REMIX);
    let refused = |config: &str, sets: &[&str]| {
        let mut args = vec!["train", config, "--out", "run"];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let done = sandbox.run(&args);
        assert_eq!(done.code, Some(2), "{sets:?}: {}", done.stderr);
        assert!(!sandbox.path("run").exists(), "{sets:?}");
        done.stderr
    };
    let other_model = refused("config.toml", &["replay.run=older", "model.random.hidden_size=32"]);
    assert!(other_model.contains("sampled from another base model"), "{other_model}");
    assert!(refused("config.toml", &["replay.run=nobody"]).contains("nobody"));
    assert!(refused("config.toml", &["replay.run=older", "replay.offline=true"]).contains("reincarnate_after = 0"));
    assert!(refused(&config("tiny.toml"), &["replay.run=older"]).contains("algorithm.grpo replays nothing"));
    sandbox.ok(&["replay", "query", "SELECT 1"]);
    // What top-p cuts off is missing from the stored log-probabilities.
    sandbox.ok(&["train", "config.toml", "--out", "cut", "--set", "steps=1", "--set", "rollout.top_p=0.9"]);
    assert!(refused("config.toml", &["replay.run=cut"]).contains("replay.truncated = true"));
    remix(&sandbox, &["steps=1", "replay.run=cut", "replay.truncated=true"]);
}

/// Trains from `config` with these keys and returns the metrics.
fn train(sandbox: &Sandbox, config: &str, run: &str, sets: &[&str]) -> Vec<Value> {
    let mut args = vec!["train", config, "--out", run];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    sandbox.ok(&args);
    sandbox.metrics(run)
}

#[test]
fn each_rule_draws_what_it_admits() {
    let ages = |sets: &[&str]| {
        let sandbox = Sandbox::new();
        tiny(&sandbox, REMIX);
        let sets = [&["steps=5", "algorithm.remix.replay_window=4", "rollout.prompts_per_step=5"], sets].concat();
        let rows = train(&sandbox, "config.toml", "run", &sets);
        assert!(rows[1..].iter().any(|row| number(row, "replay/groups") > 0.0), "{sets:?}: {rows:?}");
        rows.iter().filter_map(|row| row["replay/age_max"].as_f64()).fold(0.0, f64::max)
    };
    // Without a rule groups of up to four steps ago come back.
    let plain = ages(&[]);
    assert!(plain > 1.0);
    assert_eq!(ages(&["replay.sampler=\"uniform\""]), plain);
    assert_eq!(ages(&["replay.sampler.recent.steps=1"]), 1.0);
    assert_eq!(ages(&["replay.max_staleness=1"]), 1.0);
    assert_eq!(ages(&["replay.sampler.stratified.min_difference=0.5", "replay.max_staleness=1"]), 1.0);
}

#[test]
fn a_killed_run_draws_the_same_groups_and_rows_by_every_rule() {
    let rules: [&[&str]; 2] = [
        &["replay.sampler.recent.steps=1", "replay.fill.rows=2"],
        &["replay.sampler.stratified.min_difference=0.5", "replay.max_staleness=2"],
    ];
    for rule in rules {
        let sets = [&["steps=8", "checkpoint.every=3"], rule].concat();
        let expected = Sandbox::new();
        remix(&expected, &sets);
        let sandbox = Sandbox::new();
        tiny(&sandbox, REMIX);
        let mut start = vec!["train", "config.toml", "--out", "run"];
        start.extend(sets.iter().flat_map(|set| ["--set", *set]));
        sandbox.ok_after_kills(&start, &[700, 800]);
        assert_eq!(sandbox.metrics("run"), expected.metrics("run"), "{rule:?}");
    }
}

#[test]
fn old_rows_join_the_groups_whose_rewards_are_all_alike() {
    let sandbox = Sandbox::new();
    // Few prompts, so that each is asked again.
    let tiny = config("tiny.toml");
    let few = ["prompts.arithmetic.max=2", "prompts.arithmetic.held_out=1"];
    let plain = train(&sandbox, &tiny, "plain", &few);
    let sets = [&few[..], &["replay.fill.rows=2"]].concat();
    let sandbox = Sandbox::new();
    let rows = train(&sandbox, &tiny, "filled", &sets);
    assert_eq!(number(&rows[0], "replay/filled_groups"), 0.0, "the first step has no past");
    let sum = |key: &str| rows.iter().map(|row| number(row, key)).sum::<f64>();
    let (groups, samples) = (sum("replay/filled_groups"), sum("replay/filled_samples"));
    assert!(groups > 0.0 && (groups..=2.0 * groups).contains(&samples), "{groups} groups, {samples} samples");
    // Nothing more was sampled, and something else was learned.
    assert_eq!(number(&rows[19], "num_samples"), number(&plain[19], "num_samples"));
    assert_ne!(number(&rows[19], "reward"), number(&plain[19], "reward"));
}

#[test]
fn a_later_scoring_changes_what_is_learned() {
    let sandbox = Sandbox::new();
    older_run(&sandbox);
    sandbox.write("brief.toml", crate::replay::OTHER_REWARD);
    sandbox.ok(&["replay", "rescore", "--reward", "brief.toml", "--run", "older"]);
    let offline = |run: &str, sets: &[&str]| {
        let sets = [&["replay.run=older", "replay.offline=true", "steps=3"], sets].concat();
        train(&sandbox, &config("tiny.toml"), run, &sets)
    };
    let (first, corrected) = (offline("first", &[]), offline("corrected", &["replay.scoring=1"]));
    // A digit is worth 1 or 0; the later reward falls below 0 with the distance from three tokens.
    assert!(first.iter().all(|row| number(row, "reward") > 0.0), "{first:?}");
    assert!(corrected.iter().all(|row| number(row, "reward") < 0.0), "{corrected:?}");
    let hash = |run: &str| {
        sandbox.query(&format!(
            "SELECT c.hash FROM checkpoints c JOIN runs r ON r.id = c.run_id WHERE r.name = '{run}' ORDER BY c.step DESC"
        ))[0]["hash"]
            .clone()
    };
    assert_ne!(hash("first"), hash("corrected"), "another adapter");
    assert_eq!(offline("latest", &["replay.scoring=latest"]), corrected);
    assert_eq!(offline("named", &["replay.scoring=training"]), first);
    let config = &sandbox.query("SELECT config FROM runs WHERE name = 'corrected'")[0]["config"];
    assert!(config.as_str().unwrap().contains("scoring = 1"), "the run says by which scoring it learned");
}

#[test]
fn replay_settings_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new();
    older_run(&sandbox);
    let refused = |sets: &[&str]| {
        let tiny = config("tiny.toml");
        let mut args = vec!["train", &tiny, "--out", "run"];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let done = sandbox.run(&args);
        assert_eq!(done.code, Some(2), "{sets:?}: {}", done.stderr);
        assert!(!sandbox.path("run").exists(), "{sets:?}");
        done.stderr
    };
    let offline = ["replay.run=older", "replay.offline=true"];
    let with = |set: &'static str| [&offline[..], &[set]].concat();
    assert!(refused(&with("replay.scoring=9")).contains("the store holds no scoring 9"));
    assert!(refused(&with("replay.scoring=newest")).contains("`newest` is no scoring"));
    assert!(refused(&with("replay.sampler.recent.steps=0")).contains("replay.sampler.recent.steps must be at least 1"));
    assert!(
        refused(&with("replay.sampler.stratified.min_difference=-1.0")).contains("min_difference must be 0 or more")
    );
    assert!(refused(&with("replay.sampler=\"newest\"")).contains("newest"));
    assert!(refused(&with("replay.fill.rows=1")).contains("replay.offline samples none"));
    assert!(refused(&["replay.fill.rows=0"]).contains("replay.fill.rows must be at least 1"));
    assert!(refused(&["replay.offline=true"]).contains("name that run in replay.run"));
    assert!(refused(&["replay.max_staleness=3"]).contains("algorithm.grpo replays nothing"));
}

/// Large groups of a tiny network at a low temperature, so that a few first tokens are likely.
fn props(sandbox: &Sandbox, props: &str, sets: &[&str]) -> Vec<Value> {
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    sandbox.write("config.toml", format!("{text}\n[behavior.props]\n{props}\n"));
    let mut args = vec!["train", "config.toml", "--out", "run"];
    args.extend(
        ["rollout.temperature=0.2", "rollout.group_size=32"].iter().chain(sets).flat_map(|set| ["--set", *set]),
    );
    sandbox.ok(&args);
    sandbox.metrics("run")
}

#[test]
fn slices_correct_each_others_sampling_error_on_three_seeds() {
    for seed in 0..3 {
        let sandbox = Sandbox::new();
        let rows = props(&sandbox, "", &[&format!("seed={seed}"), "optimizer.adamw.learning_rate=1e-4"]);
        let mean = |key: &str| rows.iter().map(|row| number(row, key)).sum::<f64>() / rows.len() as f64;
        let (error, independent) = (mean("behavior/sampling_error"), mean("behavior/sampling_error_iid"));
        assert!(error < independent, "seed {seed}: {error:.4} against {independent:.4}");
        // The root of each of four prompts is all that is looked at, and every sample has its group's 32 siblings.
        assert!(rows.iter().all(|row| row["behavior/prefixes"] == 4.0));
        assert_eq!(sandbox.query("SELECT COUNT(*) AS n FROM samples")[0]["n"], 20 * 4 * 32);
        // What the head changed is in the stored log-probabilities.
        assert!(mean("mismatch_kl") > 1e-4);
    }
}

#[test]
fn props_learns_resumes_and_goes_with_remix() {
    let sandbox = Sandbox::new();
    // Temperature 1 and the learning rate of the config: it must learn as without slices.
    let sets = ["rollout.temperature=1.0", "rollout.group_size=8"];
    let rows = props(&sandbox, "slices = 2", &sets);
    let mean = |part: &[Value]| part.iter().map(|row| number(row, "reward")).sum::<f64>() / part.len() as f64;
    assert!(mean(&rows[15..]) > mean(&rows[..5]) + 0.2);

    let sandbox = Sandbox::new();
    let rows = props(&sandbox, "adapts = 'adapter'", &["steps=3"]);
    assert!(rows.iter().all(|row| row["behavior/sampling_error"].is_number()));
    let again = Sandbox::new();
    props(&again, "adapts = 'adapter'", &["steps=2", "checkpoint.every=1"]);
    // The step after the checkpoint was sampled, but not learned from, when the run ended.
    std::fs::remove_dir_all(again.path("run/checkpoints/step_2")).unwrap();
    again.ok(&["train", "--resume", "run", "--set", "steps=3"]);
    assert_eq!(again.metrics("run"), rows);

    let sandbox = Sandbox::new();
    tiny(&sandbox, &format!("{REMIX}\n\n[behavior.props]\nslices = 2"));
    sandbox.ok(&["train", "config.toml", "--set", "steps=4", "--out", "run"]);
    let rows = sandbox.metrics("run");
    assert!(rows[1..].iter().any(|row| number(row, "replay/groups") > 0.0));
    assert!(rows.iter().all(|row| row["behavior/sampling_error_iid"].is_number()));
}

#[test]
fn props_settings_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    sandbox.write("config.toml", format!("{text}\n[behavior.props]\n"));
    let refused = |set: &str| {
        let done = sandbox.run(&["train", "config.toml", "--set", set, "--out", "run"]);
        assert_eq!(done.code, Some(2), "{set}: {}", done.stderr);
        done.stderr
    };
    assert!(refused("behavior.props.slices=1").contains("behavior.props.slices is 1"));
    assert!(refused("rollout.group_size=3").contains("from 2 to rollout.group_size, 3"));
    assert!(refused("behavior.props.epsilon=1.0").contains("behavior.props.epsilon"));
}

#[test]
fn what_remix_cannot_use_is_refused_in_a_sentence() {
    let sandbox = Sandbox::new();
    tiny(&sandbox, REMIX);
    let refused = |set: &str| {
        let done = sandbox.run(&["train", "config.toml", "--set", set, "--out", "run"]);
        assert_eq!(done.code, Some(2), "{set}: {}", done.stderr);
        done.stderr
    };
    assert!(refused("algorithm.remix.replay_share=1.0").contains("replay_share must be at least 0 and below 1"));
    assert!(refused("algorithm.remix.base.grpo.beta=0.1").contains("a KL term of its own"));
    assert!(refused("algorithm.remix.replay_window=0").contains("replay_window must be at least 1"));
    let seen: HashSet<String> = sandbox.files().into_iter().filter(|file| file.starts_with("run")).collect();
    assert!(seen.is_empty(), "{seen:?}");
}
