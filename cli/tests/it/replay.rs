//! Queries and maintenance of the store through `proxrl replay`.

use crate::support::{Sandbox, config};
use serde_json::Value;

/// A sandbox with a run of some steps, called `tiny`.
pub(crate) fn sandbox_with_run(steps: u64) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&["train", &config("tiny.toml"), "--set", &format!("steps={steps}"), "--out", "run"]);
    sandbox
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["replay"].into_iter().chain(args.iter().copied()).chain(["--format", "json"]).collect();
    serde_json::from_str(&sandbox.ok(&args)).unwrap()
}

/// A config with another reward than the tiny run's.
pub(crate) const OTHER_REWARD: &str = "steps = 1\n[[reward]]\nname = \"brief\"\nrule.length = { target = 3 }\n";

#[test]
fn questions_about_a_run() {
    let sandbox = sandbox_with_run(4);
    let stats = json(&sandbox, &["stats"]);
    assert_eq!(stats.len(), 4);
    assert_eq!((&stats[0]["age"], &stats[3]["age"]), (&3.into(), &0.into()));
    assert!(stats[0]["ess"].as_f64().is_some_and(|ess| (0.0..=1.0001).contains(&ess)), "{}", stats[0]);
    let top = json(&sandbox, &["top", "-n", "3"]);
    let bottom = json(&sandbox, &["bottom", "-n", "3", "--part", "digit"]);
    assert_eq!((top.len(), bottom.len()), (3, 3));
    assert!(top[0]["reward"].as_f64() >= bottom[0]["digit"].as_f64());
    let audit = json(&sandbox, &["audit"]);
    let names: Vec<&str> = audit.iter().map(|row| row["question"].as_str().unwrap()).collect();
    assert!(names.contains(&"length_drift") && names.contains(&"near_duplicate_winners"), "{names:?}");
    assert!(audit.iter().all(|row| ["ok", "look", "unknown"].contains(&row["verdict"].as_str().unwrap())));
    // Every table can be read in a hundred columns.
    for question in ["ls", "stats", "top", "bottom", "verify"] {
        let text = sandbox.ok(&["replay", question]);
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 100, "{question} is {widest} wide:\n{text}");
    }
    // What is wrong with a question is one line and exit code 2.
    for (args, words) in [
        (vec!["top", "--part", "nope"], "there are digit"),
        (vec!["stats", "--scoring", "3"], "the store holds no scoring 3"),
        (vec!["diff", "run", "other"], "holds no run `other`"),
    ] {
        let done = sandbox.run(&["replay"].into_iter().chain(args).collect::<Vec<_>>());
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
    }
}

#[test]
fn answers_for_scripts_are_the_same_to_the_byte() {
    let sandbox = sandbox_with_run(1);
    let sql = "SELECT 1 AS n, 0.1 AS x, NULL AS void, 'a \"b\", c' AS text, x'00ff' AS bytes UNION ALL \
        SELECT 2, 1e300, 'y', 'two\r\nlines', x'' ORDER BY n";
    let answer = |format: &str| sandbox.ok(&["replay", "query", sql, "--format", format]);
    let large = format!("1{}", "0".repeat(300));
    assert_eq!(
        answer("csv"),
        format!("n,x,void,text,bytes\r\n1,0.1,,\"a \"\"b\"\", c\",00ff\r\n2,{large},y,\"two\r\nlines\",\r\n")
    );
    assert_eq!(
        answer("json"),
        "[\n  {\"n\":1,\"x\":0.1,\"void\":null,\"text\":\"a \\\"b\\\", c\",\"bytes\":\"00ff\"},\n  \
            {\"n\":2,\"x\":1e+300,\"void\":\"y\",\"text\":\"two\\r\\nlines\",\"bytes\":\"\"}\n]\n"
    );
}

#[test]
fn two_runs_side_by_side() {
    let sandbox = sandbox_with_run(2);
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=2", "--set", "seed=1", "--out", "other"]);
    let rows = json(&sandbox, &["diff", "run", "other"]);
    let row = |what: &str| rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no {what}"));
    assert_eq!((&row("config seed")["run (1)"], &row("config seed")["other (2)"]), (&"0".into(), &"1".into()));
    assert_eq!(row("samples")["difference"], 0);
    assert!(row("metric entropy")["difference"].is_number());
    assert!(rows.iter().all(|row| row["what"] != "config steps"));
}

#[test]
fn a_second_judgement_of_the_same_samples() {
    let sandbox = sandbox_with_run(2);
    sandbox.write("brief.toml", OTHER_REWARD);
    let drawn = sandbox.query("SELECT COUNT(*) AS n FROM samples");
    let done = json(&sandbox, &["rescore", "--reward", "brief.toml", "--run", "run"]);
    assert_eq!((&done[0]["scoring"], &done[0]["samples"]), (&1.into(), &drawn[0]["n"]));
    assert_eq!(sandbox.query("SELECT COUNT(*) AS n FROM samples"), drawn);
    let lengths = json(&sandbox, &["query", "--scoring", "latest", "SELECT length, reward FROM sample_view"]);
    for row in &lengths {
        // 0 at three tokens, and one third less for each token away from there.
        let expected = -((row["length"].as_f64().unwrap() - 3.0).abs() / 3.0).min(1.0);
        assert!((row["reward"].as_f64().unwrap() - expected).abs() < 1e-6, "{row}");
    }
    let mean = |args: &[&str]| json(&sandbox, args)[0]["reward_mean"].as_f64().unwrap();
    assert!(mean(&["stats", "--scoring", "1"]) <= 0.0 && mean(&["stats"]) >= 0.0);
    assert_eq!(json(&sandbox, &["top", "-n", "1", "--scoring", "1", "--part", "brief"]).len(), 1);
    assert_eq!(json(&sandbox, &["scorings"])[0]["status"], "finished");
    // The run goes on as if nothing had been asked.
    assert_eq!(json(&sandbox, &["verify"]).iter().filter(|row| row["wrong"] != 0).count(), 0);
    let none = sandbox.write("none.toml", "steps = 1\n");
    let refused = sandbox.run(&["replay", "rescore", "--reward", none.to_str().unwrap()]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("no [[reward]] table"), "{}", refused.stderr);
    let missing = sandbox.run(&["replay", "rescore", "--reward", "brief.toml", "--store", "sqlite://none.db"]);
    assert_eq!(missing.code, Some(2));
    assert!(!sandbox.path("none.db").exists());
}

#[test]
fn what_a_run_exports_comes_back_with_the_same_logprobs() {
    // The first step is sampled from the untouched model, which also computes the log-probabilities of an import.
    let sandbox = sandbox_with_run(1);
    sandbox.ok(&["replay", "export", "samples.jsonl", "--where", "step = 1"]);
    let tiny = config("tiny.toml");
    let done = json(&sandbox, &["import", "samples.jsonl", "--config", &tiny, "--name", "again"]);
    assert_eq!((&done[0]["samples"], &done[0]["run"]), (&32.into(), &"again".into()));
    let same = "SELECT COUNT(*) AS n, SUM(ABS(a.logprob_sum - b.logprob_sum) < 1e-3) AS same FROM samples a
        JOIN groups ga ON ga.id = a.group_id AND ga.run_id = 1
        JOIN samples b ON b.token_ids = a.token_ids JOIN groups gb ON gb.id = b.group_id AND gb.run_id = 2
        JOIN prompts qa ON qa.id = ga.prompt_id JOIN prompts qb ON qb.id = gb.prompt_id
        WHERE qa.token_ids = qb.token_ids";
    let counts = &sandbox.query(same)[0];
    assert_eq!(counts["n"], counts["same"], "{counts}");
    assert!(counts["n"].as_u64().unwrap() >= 32, "{counts}");
    let marks = sandbox.query("SELECT r.kind, r.status, p.origin FROM runs r JOIN policies p ON p.run_id = r.id");
    assert_eq!(marks[0]["origin"], "drawn");
    assert_eq!((&marks[1]["kind"], &marks[1]["origin"]), (&"import".into(), &"imported".into()));
    assert_eq!(marks[1]["status"], "finished");
    let wrong = sandbox.run(&["replay", "import", "samples.csv", "--config", &tiny, "--store", "sqlite://new.db"]);
    assert_eq!(wrong.code, Some(2));
    assert!(!sandbox.path("new.db").exists());
}

#[test]
fn long_work_draws_a_bar_on_a_terminal_alone() {
    let sandbox = sandbox_with_run(2);
    sandbox.write("brief.toml", OTHER_REWARD);
    sandbox.ok(&["replay", "export", "samples.jsonl", "--where", "step = 1"]);
    let tiny = config("tiny.toml");
    let rescore = ["replay", "rescore", "--reward", "brief.toml"];
    let import = ["replay", "import", "samples.jsonl", "--config", &tiny];
    // Two steps of 32 samples are graded; one of them is imported.
    for (args, message, all) in [(&rescore[..], "judging", "64/64"), (&import, "importing", "32/32")] {
        let shown = sandbox.ok_in_terminal(args);
        assert!(shown.contains(message) && shown.contains(all), "{args:?}: {shown:?}");
        let piped = sandbox.run(args).stderr;
        assert!(!piped.contains(message) && !piped.contains(all), "{args:?}: {piped:?}");
    }
}

#[test]
fn stored_samples_become_pairs_that_train() {
    let sandbox = sandbox_with_run(3);
    let done = &json(&sandbox, &["pairs", "pairs.jsonl", "--per-prompt", "2"])[0];
    let text = std::fs::read_to_string(sandbox.path("pairs.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(done["pairs"].as_u64().unwrap() as usize, rows.len());
    assert!(rows.len() >= 2 && rows.len() as u64 <= 2 * done["prompts"].as_u64().unwrap(), "{done}");
    for row in &rows {
        let sample = |side: &str| {
            let id = &row[format!("{side}_id")];
            sandbox.query(&format!(
                "SELECT s.text, v.reward, v.question FROM samples s JOIN sample_view v ON v.sample_id = s.id WHERE s.id = {id}"
            ))
            .remove(0)
        };
        let (chosen, rejected) = (sample("chosen"), sample("rejected"));
        assert_eq!((&row["chosen"][0]["content"], &row["chosen"][0]["role"]), (&chosen["text"], &"assistant".into()));
        assert_eq!(row["rejected"][0]["content"], rejected["text"]);
        assert_eq!((&row["prompt"][0]["content"], &chosen["question"]), (&rejected["question"], &rejected["question"]));
        let margin = chosen["reward"].as_f64().unwrap() - rejected["reward"].as_f64().unwrap();
        assert!(margin > 0.0 && row["margin"] == margin, "{row}");
    }
    let none = &json(&sandbox, &["pairs", "none.jsonl", "--margin", "5"])[0];
    assert_eq!((&none["pairs"], &none["prompts"]), (&0.into(), &0.into()));
    assert!(none["prompts_without"].as_u64().unwrap() > 0);
    for wrong in
        [&["pairs", "pairs.csv"][..], &["pairs", "a.jsonl", "--margin=-1"], &["pairs", "a.jsonl", "--where", "x"]]
    {
        assert_eq!(sandbox.run(&[&["replay"], wrong].concat()).code, Some(2), "{wrong:?}");
    }

    let tiny = std::fs::read_to_string(config("tiny.toml")).unwrap();
    let dpo = tiny.replace("[algorithm.grpo]", "[algorithm.dpo]").replace("max_new_tokens = 12", "max_new_tokens = 4");
    let source = dpo.find("[prompts.arithmetic]").unwrap()..dpo.find("[rollout]").unwrap();
    let mut dpo = dpo;
    dpo.replace_range(source, "[prompts.jsonl]\npath = \"pairs.jsonl\"\n\n");
    sandbox.write("dpo.toml", dpo);
    sandbox.ok(&["train", "dpo.toml", "--set", "steps=4", "--out", "dpo"]);
    assert!(sandbox.metrics("dpo")[0]["rewards/accuracies"].is_number());
}

#[test]
fn a_store_is_verified_and_pruned() {
    let sandbox = sandbox_with_run(6);
    assert!(json(&sandbox, &["verify"]).iter().all(|row| row["wrong"] == 0));
    let rehearsed = json(&sandbox, &["prune", "--keep-steps", "2", "--dry-run"]);
    assert_eq!((&rehearsed[0]["steps"], &rehearsed[0]["last"]), (&4.into(), &4.into()));
    assert_eq!(sandbox.query("SELECT COUNT(*) AS n FROM samples")[0]["n"], 6 * 32);
    let done = sandbox.run(&["replay", "prune", "--keep-steps", "2"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("freed the samples of 4 steps"), "{}", done.stderr);
    assert_eq!(sandbox.query("SELECT COUNT(*) AS n FROM samples")[0]["n"], 2 * 32);
    assert_eq!(sandbox.query("SELECT COUNT(metrics) AS n FROM steps")[0]["n"], 6);
    assert!(json(&sandbox, &["verify"]).iter().all(|row| row["wrong"] == 0));
    assert_eq!(sandbox.run(&["replay", "prune"]).code, Some(2));

    // A flipped bit inside a text is no broken page, and is found all the same.
    let path = sandbox.path("proxrl.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let row = &sandbox.query("SELECT id, text FROM samples WHERE length(text) > 4 ORDER BY id DESC LIMIT 1")[0];
    let text = row["text"].as_str().unwrap().as_bytes();
    let at = bytes.windows(text.len()).position(|window| window == text).expect("the text stands in the file");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let done = sandbox.run(&["replay", "verify", "--format", "csv"]);
    assert_eq!(done.code, Some(1), "{}\n{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("hashes of samples,1,sample "), "{}", done.stdout);
    assert!(done.stderr.contains("1 rows are wrong"), "{}", done.stderr);
}

#[test]
fn a_reward_model_judges_what_is_stored() {
    let sandbox = sandbox_with_run(1);
    let tiny = std::fs::read_to_string(config("tiny.toml")).unwrap();
    let model: Vec<&str> = tiny.lines().skip_while(|line| *line != "[model]").take(3).collect();
    let rest = "[prompts.arithmetic]\nheld_out = 4\nrejected = \"no idea\"\n[algorithm.reward_model]\n";
    sandbox.write("rm.toml", format!("steps = 2\n{}\n{rest}", model.join("\n")));
    sandbox.ok(&["train", "rm.toml", "--out", "rm"]);
    sandbox.write("by_model.toml", "[[reward]]\nmodel = { path = \"rm\" }\n");
    let done = json(&sandbox, &["rescore", "--reward", "by_model.toml", "--run", "run"]);
    assert_eq!((&done[0]["samples"], &done[0]["unjudged"]), (&32.into(), &0.into()), "{}", done[0]);
    let judged = "SELECT COUNT(DISTINCT reward) AS different FROM sample_view WHERE run_id = 1";
    let different = json(&sandbox, &["query", judged, "--scoring", "latest"])[0]["different"].as_u64().unwrap();
    assert!(different > 16, "{different} different scores of 32 samples");
    let unsound: Vec<Value> = json(&sandbox, &["verify"]).into_iter().filter(|row| row["wrong"] != 0).collect();
    assert!(unsound.is_empty(), "{unsound:?}");
}
