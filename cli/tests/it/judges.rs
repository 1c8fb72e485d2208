//! Judges: with each kind of judge, comparisons are learned from and stored, and policies are compared; a failed
//! comparison teaches nothing.

use crate::support::{Sandbox, tiny_model, tiny_sums};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const COMMON: &str = concat!(
    tiny_model!(),
    tiny_sums!(),
    "
[optimizer.adamw]
learning_rate = 1e-2

[checkpoint]
every = 2
"
);

/// Answers of eight tokens, in groups of this size.
fn rollout(group_size: usize) -> String {
    format!("[rollout]\nprompts_per_step = 8\ngroup_size = {group_size}\nmax_new_tokens = 8\n")
}

/// The measured reward, which every judge of these tests contradicts: answers without digits are good.
const PLAIN: &str =
    "[[reward]]\nname = \"plain\"\nrule.regex = { pattern = \"[0-9]\", matched = 0.0, unmatched = 1.0 }\n";

/// A program that prefers the answer with digits.
const FOR_DIGITS: &str = r#"[judge]
command = { program = "awk", args = ['''{ gsub(/\\u[0-9a-f][0-9a-f][0-9a-f][0-9a-f]/, ""); match($0, /"first":"([^"\\]|\\.)*"/); a = substr($0, RSTART + 9, RLENGTH - 9)
    match($0, /"second":"([^"\\]|\\.)*"/); b = substr($0, RSTART + 10, RLENGTH - 10)
    a = a ~ /[0-9]/; b = b ~ /[0-9]/; print 0.5 + (a - b) / 2 }'''] }
"#;

fn train(sandbox: &Sandbox, steps: u64, tables: &[&str]) {
    sandbox.write("run.toml", format!("steps = {steps}\n\n{COMMON}\n{}", tables.join("\n")));
    sandbox.ok(&["train", "run.toml", "--out", "run"]);
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

fn mean(rows: &[Value], name: &str) -> f64 {
    rows.iter().map(|row| number(row, name)).sum::<f64>() / rows.len() as f64
}

fn evaluate(sandbox: &Sandbox, against: &[&str]) -> Value {
    let mut args = vec!["eval", "run", "--json"];
    for name in against {
        args.extend(["--against", name]);
    }
    serde_json::from_str(&sandbox.ok(&args)).unwrap()
}

/// Answers each request for a comparison by what `judge` makes of answers A and B; counts the requests.
fn serve(judge: impl Fn(&str, &str) -> (u16, &'static str) + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (count, judge) = (Arc::new(AtomicUsize::new(0)), Arc::new(judge));
    let counter = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (judge, counter) = (judge.clone(), counter.clone());
            std::thread::spawn(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                answer(stream, &*judge);
            });
        }
    });
    (url, count)
}

fn answer(mut stream: TcpStream, judge: &dyn Fn(&str, &str) -> (u16, &'static str)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut headers = String::new();
    while reader.read_line(&mut headers).is_ok_and(|length| length > 2) {}
    let length = headers.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let asked = body["messages"][1]["content"].as_str().unwrap();
    let between = |name: &str| {
        let (start, end) = (format!("<answer {name}>\n"), format!("\n</answer {name}>"));
        asked.split_once(&start).unwrap().1.split_once(&end).unwrap().0
    };
    let (status, word) = judge(between("A"), between("B"));
    let text = json!({ "choices": [{ "message": { "content": word } }] }).to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    let _ = stream.write_all(format!("{head}{text}").as_bytes());
}

fn endpoint(url: &str) -> String {
    format!("[judge]\nendpoint = {{ url = \"{url}\", model = \"judge\", retries = 1, backoff_s = 0.01 }}\n")
}

fn has_digit(text: &str) -> bool {
    text.contains(|letter: char| letter.is_ascii_digit())
}

#[test]
fn every_online_method_learns_what_its_judge_prefers_and_not_the_reward() {
    for algorithm in [
        "[algorithm.online_dpo]\nties = \"skip\"",
        "[algorithm.online_ipo]",
        "[algorithm.apo]\nsteps_per_iteration = 5\nties = \"skip\"",
        "[algorithm.apo]\nloss = \"sppo\"\nsteps_per_iteration = 5",
        "[algorithm.nash_mp]\nbeta = 0.02\neta = 0.2",
        "[algorithm.nash_mp]\nform = \"contrastive\"\nbeta = 0.02\neta = 0.2",
        "[algorithm.nash_md]\nbeta = 0.02",
        "[algorithm.xpo]\nties = \"skip\"",
    ] {
        let sandbox = Sandbox::new();
        train(&sandbox, 30, &[&rollout(4), PLAIN, FOR_DIGITS, algorithm]);
        let rows = sandbox.metrics("run");
        let (first, last) = (mean(&rows[..4], "reward"), mean(&rows[26..], "reward"));
        assert!(last < first - 0.1, "{algorithm}: {first} to {last}");
        assert_eq!(number(&rows[0], "judge/unjudged_fraction"), 0.0);
        // Groups of four: six pairs of a group, two of neighbours, sixteen with an opponent, four with counterparts.
        let pairs = match algorithm {
            _ if algorithm.contains("online_ipo") || algorithm.contains("contrastive") => 2.0,
            _ if algorithm.contains("nash_md") => 16.0,
            _ if algorithm.contains("xpo") => 4.0,
            _ => 6.0,
        };
        assert_eq!(number(&rows[0], "judge/comparisons"), 8.0 * pairs, "{algorithm}");
    }
}

#[test]
fn comparisons_are_kept_beside_the_samples() {
    let sandbox = Sandbox::new();
    train(&sandbox, 2, &[&rollout(2), FOR_DIGITS, "[algorithm.online_dpo]"]);
    // Nothing else is a reward here, so the win rate is.
    let rows = sandbox.query(
        "SELECT s.text, s.place, w.value AS wins, w.weight, c.win, c.judge, p.value AS beats, p.weight AS uncounted
         FROM samples s JOIN rewards w ON w.sample_id = s.id AND w.name = 'win_rate'
         JOIN comparisons c ON c.sample_id = s.id AND c.rival = 'own' AND c.rival_place = 1 - s.place
         JOIN part_view p ON p.sample_id = s.id AND p.name = 'beats_' || (1 - s.place)",
    );
    assert_eq!(rows.len(), 2 * 8 * 2);
    for two in rows.chunks(2) {
        let wins: Vec<f64> = two.iter().map(|row| number(row, "wins")).collect();
        let digits: Vec<f64> =
            two.iter().map(|row| f64::from(u8::from(has_digit(row["text"].as_str().unwrap())))).collect();
        assert_eq!(wins[0], 0.5 + (digits[0] - digits[1]) / 2.0, "{two:?}");
        assert_eq!(wins[0] + wins[1], 1.0, "{two:?}");
        assert!(two.iter().all(|row| row["win"] == row["wins"] && row["beats"] == row["wins"]), "{two:?}");
        assert!(two.iter().all(|row| row["weight"] == 1.0 && row["uncounted"] == 0.0), "{two:?}");
        assert!(two.iter().all(|row| row["judge"] == "command"), "{two:?}");
    }
    assert_eq!(sandbox.metrics("run")[0]["reward"], 0.5);
}

#[test]
fn an_endpoint_judges_and_nobody_is_asked_twice() {
    // It prefers digits, and where both are alike the first one it reads: that bias must not show.
    let (url, count) = serve(|a, b| (200, if has_digit(b) && !has_digit(a) { "B" } else { "A" }));
    let sandbox = Sandbox::new();
    let tables = [&rollout(4)[..], PLAIN, &endpoint(&url), "[algorithm.online_dpo]\nties = \"skip\""];
    train(&sandbox, 16, &tables);
    let rows = sandbox.metrics("run");
    assert!(mean(&rows[12..], "reward") < mean(&rows[..4], "reward") - 0.1, "{rows:?}");
    assert!(rows.iter().any(|row| number(row, "judge/draws") > 0.0), "two answers alike draw");
    let asked = count.load(Ordering::SeqCst);
    let compared = sandbox.query("SELECT count(*) AS n FROM comparisons WHERE win IS NOT NULL");
    assert_eq!(compared[0]["n"], 16 * 8 * 4 * 3);
    // Both orders of each pair, but for those of one text.
    assert!(asked <= 2 * 16 * 8 * 6 && asked > 16 * 8 * 6, "{asked}");

    // A run that lost its last checkpoint learns from what is in the store.
    std::fs::rename(sandbox.path("run"), sandbox.path("whole")).unwrap();
    std::fs::rename(sandbox.path("proxrl.db"), sandbox.path("whole.db")).unwrap();
    train(&sandbox, 4, &tables);
    let before = count.load(Ordering::SeqCst);
    std::fs::remove_dir_all(sandbox.path("run/checkpoints/step_4")).unwrap();
    sandbox.ok(&["train", "--resume", "run"]);
    assert_eq!(count.load(Ordering::SeqCst), before);
    assert_eq!(sandbox.metrics("run"), rows[..4]);
}

#[test]
fn a_judge_that_fails_teaches_nothing_and_stops_nothing() {
    for (status, word, reason) in [(500, "A", "500"), (200, "As a language model, I", "neither A, B nor tie")] {
        let (url, _) = serve(move |_, _| (status, word));
        let sandbox = Sandbox::new();
        let measured = PLAIN;
        train(&sandbox, 2, &[&rollout(2), measured, &endpoint(&url), "[algorithm.online_dpo]"]);
        let rows = sandbox.metrics("run");
        for row in &rows {
            assert_eq!(number(row, "judge/comparisons") + number(row, "updates/taken"), 0.0, "{row}");
            // Only pairs of equal texts, which are ties without a request, are no failures; they teach nothing either.
            assert_eq!(number(row, "judge/unjudged_fraction"), 1.0, "{row}");
        }
        let failed = sandbox.query("SELECT DISTINCT win, status FROM comparisons");
        assert!(failed.iter().all(|row| row["win"].is_null()), "{failed:?}");
        assert!(failed[0]["status"].as_str().unwrap().contains(reason), "{failed:?}");
    }
}

/// Pairs in a circle: a beats b, b beats c, c beats a.
fn circle() -> String {
    let pair = |(better, worse): (&str, &str)| {
        json!({ "prompt": "Name one.", "chosen": better, "rejected": worse }).to_string() + "\n"
    };
    [("a", "b"), ("b", "c"), ("c", "a")].map(pair).concat().repeat(4)
}

#[test]
fn a_preference_model_knows_circles_and_judges() {
    let sandbox = Sandbox::new();
    sandbox.write("circle.jsonl", circle());
    let common = COMMON.split("[prompts").next().unwrap();
    let learn = |algorithm: &str, folder: &str| {
        let rest = "[prompts.jsonl]\npath = \"circle.jsonl\"\n[rollout]\nprompts_per_step = 12\n[optimizer.adamw]\nlearning_rate = 5e-3\n";
        sandbox.write("model.toml", format!("steps = 30\n{common}{rest}[algorithm.{algorithm}]\n"));
        sandbox.ok(&["train", "model.toml", "--out", folder]);
        mean(&sandbox.metrics(folder)[25..], "accuracy")
    };
    // A number per answer can agree with two pairs of three, and on average not even with them.
    assert!(learn("reward_model", "numbers") <= 0.7);
    assert_eq!(learn("preference_model", "pairs"), 1.0);

    // As judges both compare samples of a policy; one is antisymmetric by construction, the other by its numbers.
    for (path, temperature) in [("pairs", 1.0), ("numbers", 0.5)] {
        let judge = format!("[judge]\nmodel = {{ path = \"{path}\" }}\ntemperature = {temperature}\n");
        train(&sandbox, 2, &[&rollout(2), &judge, "[algorithm.online_ipo]"]);
        let rows = sandbox.metrics("run");
        assert_eq!(number(&rows[1], "judge/comparisons"), 8.0);
        let sums = sandbox.query(
            "SELECT sum(c.win) AS total FROM comparisons c JOIN samples s ON s.id = c.sample_id GROUP BY s.group_id",
        );
        assert!(sums.iter().all(|row| (number(row, "total") - 1.0).abs() < 1e-6), "{sums:?}");
        std::fs::remove_dir_all(sandbox.path("run")).unwrap();
    }
}

#[test]
fn answers_are_compared_with_those_of_other_policies() {
    let sandbox = Sandbox::new();
    let measured = "[evaluate]\nevery = 10\nsamples = 4\nagainst = [\"base\", \"checkpoints\"]\nbeta = 0.01\n";
    let keep = COMMON.replace("every = 2", "every = 10\nkeep = 0");
    let judge = FOR_DIGITS;
    let text = format!("steps = 20\n\n{keep}\n{}{measured}{judge}[algorithm.online_ipo]\nbeta = 0.02\n", rollout(4));
    sandbox.write("run.toml", text);
    sandbox.ok(&["train", "run.toml", "--out", "run"]);
    let rows = sandbox.metrics("run");
    let half_way = &rows[9];
    // The checkpoint of this step is saved after it is measured; that of step 0 is the base model's equal.
    assert!(half_way["eval_win_rate/step_10"].is_null());
    assert!(number(half_way, "eval_win_rate/base") > 0.5, "{half_way}");
    assert!(number(half_way, "eval_kl") > 0.0);

    let found = evaluate(&sandbox, &["base", "checkpoints"]);
    let against_base = number(&found, "eval_win_rate/base");
    assert!(against_base > 0.6, "{found}");
    assert!(number(&found, "eval_win_rate/step_10") > 0.4, "{found}");
    assert!(found["eval_win_rate/step_20"].is_null(), "a policy is not its own rival: {found}");
    assert_eq!(number(&found, "eval_unjudged_comparisons"), 0.0);
    assert!(number(&found, "eval_exploitability") >= 0.0);
    // The same prompts, seeds and judge: the same number, from the command line and from the config.
    assert_eq!(evaluate(&sandbox, &["base"])["eval_win_rate/base"], against_base);

    // Who is worse can be beaten by that much: the first checkpoint by the last one.
    std::fs::rename(sandbox.path("run"), sandbox.path("better")).unwrap();
    sandbox.ok(&["train", "run.toml", "--out", "run", "--set", "steps=1", "--set", "evaluate.every=0"]);
    let worse = evaluate(&sandbox, &["better", "better/checkpoints/step_10"]);
    let rates = ["better", "better_step_10"].map(|name| number(&worse, &format!("eval_win_rate/{name}")));
    assert!(rates[0] < 0.4, "{worse}");
    sandbox.ok(&["eval", "run", "--against", "better", "--set", "evaluate.beta=0.0"]);
    let plain: Value = serde_json::from_str(&sandbox.ok(&[
        "eval",
        "run",
        "--json",
        "--against",
        "better",
        "--against",
        "base",
        "--set",
        "evaluate.beta=0.0",
    ]))
    .unwrap();
    let best = (0.5 - number(&plain, "eval_win_rate/better")).max(0.5 - number(&plain, "eval_win_rate/base"));
    assert!((number(&plain, "eval_exploitability") - best).abs() < 1e-9, "{plain}");

    // Without a judge rewards compare; and the untouched model can be measured, too.
    let rewarded = text_with_reward(&sandbox);
    let base: Value = serde_json::from_str(&sandbox.ok(&["eval", &rewarded, "--json", "--against", "better"])).unwrap();
    assert!(number(&base, "eval_win_rate/better") > 0.5, "digits are bad here: {base}");
}

/// A config whose reward prefers the answers that the judge of the others rejects.
fn text_with_reward(sandbox: &Sandbox) -> String {
    let text = format!("steps = 1\n{COMMON}\n{}{PLAIN}[evaluate]\nsamples = 4\n[algorithm.grpo]\n", rollout(4));
    sandbox.write("rewarded.toml", text).display().to_string()
}

#[test]
fn what_cannot_be_judged_is_refused_in_one_sentence() {
    let sandbox = Sandbox::new();
    sandbox.write("not_a_run/config.toml", "steps = 1");
    let refused = |tables: &str, word: &str| {
        sandbox.write("run.toml", format!("steps = 2\n{COMMON}{}{tables}\n", rollout(2)));
        let done = sandbox.run(&["train", "run.toml", "--out", "run"]);
        assert_eq!(done.code, Some(2), "{tables}: {}", done.stderr);
        assert!(done.stderr.trim().lines().count() == 1 && done.stderr.contains(word), "{tables}: {}", done.stderr);
    };
    let online = "[algorithm.online_dpo]\n";
    refused(
        &format!("{PLAIN}[judge]\nrule.math_answer = {{}}\n[algorithm.grpo]"),
        "algorithm.grpo learns from rewards",
    );
    refused(online, "no [[reward]] is given, and no [judge]");
    refused(&format!("{online}[judge]"), "names no judge");
    refused(&format!("{online}[judge]\nmodel = {{ path = \"nowhere\" }}"), "nowhere");
    refused(
        &format!(
            "{online}[judge]\nendpoint = {{ url = \"http://127.0.0.1:1\", model = \"m\", api_key_env = \"PROXRL_NO_SUCH_KEY\" }}"
        ),
        "PROXRL_NO_SUCH_KEY",
    );
    refused(&format!("{online}{PLAIN}[evaluate]\nagainst = [\"nowhere\"]"), "neither `base`, `checkpoints`, a run");
    refused(&format!("{online}{PLAIN}[evaluate]\nbeta = -1.0"), "evaluate.beta");
    train(&sandbox, 1, &[&rollout(2), PLAIN, online]);
    std::fs::rename(sandbox.path("run"), sandbox.path("other")).unwrap();
    refused(&format!("{online}[judge]\nmodel = {{ path = \"other\" }}"), "compares nothing");
    let smaller = COMMON.replace("hidden_size = 64", "hidden_size = 32");
    sandbox.write("small.toml", format!("steps = 1\n{smaller}{}{PLAIN}{online}", rollout(2)));
    let done = sandbox.run(&["eval", "small.toml", "--against", "other"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("another base model"), "{}", done.stderr);
}
