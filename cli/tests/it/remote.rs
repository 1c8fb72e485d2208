//! Workers sample for trainers, on a file and on a server; each job is done once, whichever process dies.

use crate::cluster::{Cluster, new_place};
use crate::support::{Sandbox, config};
use serde_json::Value;
use std::process::Child;
use std::time::{Duration, Instant};

const FILE: &str = "sqlite://proxrl.db";

/// Changes to `remote.toml`: a store, and short leases.
struct Setting {
    url: String,
    staleness: u64,
    steps: u64,
    without: &'static str,
}

impl Setting {
    fn new(url: &str) -> Self {
        Self { url: url.to_owned(), staleness: 0, steps: 6, without: "wait" }
    }

    fn changes(&self) -> Vec<String> {
        let changes = [
            format!("store.url={}", self.url),
            format!("steps={}", self.steps),
            format!("collector.remote.max_staleness={}", self.staleness),
            format!("collector.remote.without_workers={}", self.without),
            "collector.remote.lease_s=1.0".into(),
            "collector.remote.patience_s=0.5".into(),
            "checkpoint.every=3".into(),
        ];
        changes.into_iter().flat_map(|change| ["--set".into(), change]).collect()
    }

    fn train(&self) -> Vec<String> {
        let start = ["train".into(), config("remote.toml"), "--out".into(), "run".into()];
        start.into_iter().chain(self.changes()).collect()
    }

    fn work(&self, name: &str) -> Vec<String> {
        let words = ["rollout", "work", "--store", &self.url, "--name", name, "--config"].map(str::to_owned);
        words.into_iter().chain([config("remote.toml")]).chain(self.changes()).collect()
    }
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn query(sandbox: &Sandbox, url: &str, sql: &str) -> Vec<Value> {
    let answer = sandbox.ok(&["replay", "query", "--store", url, "--format", "json", "--", sql]);
    serde_json::from_str(&answer).unwrap()
}

/// Every sample, with what identifies it.
fn samples(sandbox: &Sandbox, url: &str) -> Vec<Value> {
    let sql = "SELECT step, place, policy_version, policy_hash, token_ids, logprobs, question FROM sample_view \
        ORDER BY step, group_id, place";
    let mut rows = query(sandbox, url, sql);
    // The numbers of groups follow the order in which they came.
    rows.sort_by_key(|row| format!("{:9} {} {}", row["step"], row["question"], row["place"]));
    rows
}

/// Ends a worker as a supervisor would, and waits until it has left.
fn terminate(mut worker: Child) {
    let sent = std::process::Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(worker.wait().unwrap().code(), Some(0));
}

/// Asserts that every job of a run was done once, and that nothing else is in the store.
fn each_once(sandbox: &Sandbox, url: &str, steps: u64) {
    let jobs =
        &query(sandbox, url, "SELECT COUNT(*) AS jobs, COUNT(CASE WHEN state = 'done' THEN 1 END) AS done FROM jobs")
            [0];
    let asked = 4 * steps;
    assert_eq!((&jobs["jobs"], &jobs["done"]), (&asked.into(), &asked.into()), "{jobs}");
    let drawn = "SELECT COUNT(*) AS samples, COUNT(DISTINCT s.group_id) AS groups, COUNT(r.sample_id) AS rewards
        FROM samples s LEFT JOIN rewards r ON r.sample_id = s.id";
    let drawn = &query(sandbox, url, drawn)[0];
    let expected = [("samples", 8 * asked), ("groups", asked), ("rewards", 8 * asked)];
    for (name, number) in expected {
        assert_eq!(drawn[name], number, "{drawn}");
    }
    let verified = sandbox.ok(&["replay", "verify", "--store", url, "--format", "json"]);
    let checks: Vec<Value> = serde_json::from_str(&verified).unwrap();
    assert!(checks.iter().all(|row| row["wrong"] == 0), "{verified}");
}

/// Two workers sample instead of the trainer: the samples are those that it would have produced.
fn two_workers_draw_what_the_trainer_would_have(url: &str) {
    let alone = Sandbox::new();
    alone.ok(&["train", &config("tiny.toml"), "--set", "steps=6", "--set", "checkpoint.every=3", "--out", "run"]);
    let (sandbox, setting) = (Sandbox::new(), Setting::new(url));
    let mut trainer = sandbox.start(&words(&setting.train()));
    // Workers need a store, which the trainer makes.
    while !sandbox.path("run/run.json").exists() {
        assert!(trainer.try_wait().unwrap().is_none(), "the trainer ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let workers: Vec<Child> = ["a", "b"].iter().map(|name| sandbox.start(&words(&setting.work(name)))).collect();
    assert!(trainer.wait().unwrap().success());
    workers.into_iter().for_each(terminate);
    each_once(&sandbox, url, 6);
    let ids = |rows: Vec<Value>| -> Vec<(Value, Value)> {
        rows.into_iter().map(|row| (row["token_ids"].clone(), row["policy_version"].clone())).collect()
    };
    assert_eq!(ids(samples(&sandbox, url)), ids(samples(&alone, FILE)));
    let by = query(&sandbox, url, "SELECT DISTINCT worker FROM jobs WHERE worker NOT IN ('a', 'b')");
    assert!(by.is_empty(), "{by:?}");
    assert!(query(&sandbox, url, "SELECT * FROM workers").is_empty(), "who left is forgotten");
}

#[test]
fn two_workers_on_a_file() {
    two_workers_draw_what_the_trainer_would_have(FILE);
}

#[test]
fn two_workers_on_a_server() {
    let Some(cluster) = Cluster::start() else { return };
    two_workers_draw_what_the_trainer_would_have(&new_place(&cluster.base_url()));
}

/// Kills the trainer and two workers again and again, and starts them anew, until all steps are done.
fn whoever_dies(url: &str, steps: u64, staleness: u64) {
    let sandbox = Sandbox::new();
    let setting = Setting { staleness, steps, ..Setting::new(url) };
    let begin = setting.train();
    let (work, resume) = (["a", "b"].map(|name| setting.work(name)), ["train", "--resume", "run"]);
    let start_trainer = || {
        // Killed before it had a run, there is nothing to resume.
        let begun = sandbox.path("run/run.json").exists();
        if !begun {
            let _ = std::fs::remove_dir_all(sandbox.path("run"));
        }
        let fresh = words(&begin);
        sandbox.start(if begun { &resume } else { &fresh })
    };
    let mut trainer = start_trainer();
    let mut workers: Vec<Option<Child>> = vec![None, None];
    let begun = Instant::now();
    let mut kills = 0;
    loop {
        assert!(begun.elapsed() < Duration::from_mins(4), "after {kills} kills");
        // No two waits are alike, and none has to do with how long a step takes.
        std::thread::sleep(Duration::from_millis(150 + 97 * (kills % 11)));
        if let Some(status) = trainer.try_wait().unwrap() {
            if status.success() {
                break;
            }
            trainer = start_trainer();
        }
        for (worker, work) in workers.iter_mut().zip(&work) {
            let gone = worker.as_mut().is_none_or(|worker| worker.try_wait().unwrap().is_some());
            if gone && sandbox.path("run/run.json").exists() {
                *worker = Some(sandbox.start(&words(work)));
            }
        }
        if kills < 18 {
            let victim = match kills % 3 {
                0 => &mut trainer,
                number => match &mut workers[number as usize - 1] {
                    Some(worker) => worker,
                    None => continue,
                },
            };
            victim.kill().unwrap();
            victim.wait().unwrap();
            kills += 1;
        }
    }
    for worker in workers.iter_mut().flatten() {
        let _ = worker.kill();
        worker.wait().unwrap();
    }
    assert!(kills >= 6, "only {kills} kills");
    each_once(&sandbox, url, steps);
    assert_eq!(sandbox.metrics("run").len() as u64, steps);
    let stale = "SELECT COUNT(*) AS n FROM sample_view WHERE policy_version >= step OR policy_version < step - 1 - ";
    assert_eq!(query(&sandbox, url, &format!("{stale}{staleness}"))[0]["n"], 0);
}

#[test]
fn whoever_dies_every_job_is_done_once_on_a_file() {
    whoever_dies(FILE, 30, 0);
}

#[test]
fn whoever_dies_every_job_is_done_once_on_a_server() {
    let Some(cluster) = Cluster::start() else { return };
    whoever_dies(&new_place(&cluster.base_url()), 50, 2);
}

#[test]
fn workers_draw_ahead_within_the_bound() {
    let (sandbox, setting) = (Sandbox::new(), Setting { staleness: 2, steps: 12, ..Setting::new(FILE) });
    let mut trainer = sandbox.start(&words(&setting.train()));
    while !sandbox.path("run/run.json").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let worker = sandbox.start(&words(&setting.work("a")));
    assert!(trainer.wait().unwrap().success());
    terminate(worker);
    each_once(&sandbox, FILE, 12);
    let ages = query(
        &sandbox,
        FILE,
        "SELECT MAX(step - 1 - policy_version) AS most, MIN(step - 1 - policy_version) AS least FROM sample_view",
    );
    let (least, most) = (ages[0]["least"].as_i64().unwrap(), ages[0]["most"].as_i64().unwrap());
    assert!(0 <= least && (1..=2).contains(&most), "{ages:?}");
    let metrics = sandbox.metrics("run");
    assert!(metrics.iter().any(|step| step["sampling/staleness_max"].as_f64().unwrap() > 0.0));
    // The samples of a policy carry its hash: each version has one.
    let hashes = query(&sandbox, FILE, "SELECT version FROM policies GROUP BY version HAVING COUNT(DISTINCT hash) > 1");
    assert!(hashes.is_empty(), "{hashes:?}");
}

#[test]
fn without_a_worker_the_trainer_says_so_and_draws_or_stops() {
    let sandbox = Sandbox::new();
    let setting = Setting { without: "draw", steps: 2, ..Setting::new(FILE) };
    let done = sandbox.run(&words(&setting.train()));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let said = "no worker is alive: drawing here until there is one; start one with `proxrl rollout work --store";
    assert_eq!(done.stderr.matches(said).count(), 1, "{}", done.stderr);
    each_once(&sandbox, FILE, 2);

    let sandbox = Sandbox::new();
    let stop = Setting { without: "stop", steps: 2, ..Setting::new(FILE) };
    let done = sandbox.run(&words(&stop.train()));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.stderr.contains("without_workers is \"stop\""), "{}", done.stderr);
    sandbox.ok(&["train", "--resume", "run", "--set", "collector.remote.without_workers=draw"]);
    each_once(&sandbox, FILE, 2);
}

#[test]
fn what_a_worker_cannot_do_is_said() {
    let sandbox = Sandbox::new();
    let setting = Setting::new("sqlite://none.db");
    let none = sandbox.run(&words(&setting.work("a")));
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    assert!(
        none.stderr.contains("there is no store at none.db") && !sandbox.path("none.db").exists(),
        "{}",
        none.stderr
    );

    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=1", "--out", "run"]);
    let mut other = Setting::new(FILE).work("a");
    other.extend(["--set", "model.random.layers=3", "--run", "run"].map(str::to_owned));
    let other = sandbox.run(&words(&other));
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(other.stderr.contains("trains another base model"), "{}", other.stderr);

    for (table, words) in [
        ("[collector.remote]\nlease_s = 0.0", "lease_s must be between 0.1 and 86400"),
        ("[collector.remote]\nprompts_per_job = 0", "prompts_per_job must be at least 1"),
        ("[collector.remote]\n[behavior.props]", "draws from the policy that is trained alone"),
    ] {
        let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
        sandbox.write("wrong.toml", format!("{text}\n{table}\n"));
        let done = sandbox.run(&["train", "wrong.toml", "--out", "wrong"]);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(words), "{}", done.stderr);
    }
}
