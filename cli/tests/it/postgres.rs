//! The store on a `PostgreSQL` server: training, resuming, queries, and the migration of a file to it.

use crate::cluster::{Cluster, new_place};
use crate::support::{Sandbox, config};
use serde_json::Value;

fn json(sandbox: &Sandbox, url: &str, args: &[&str]) -> Vec<Value> {
    let args: Vec<&str> = ["replay", "--store", url, "--format", "json"].iter().chain(args).copied().collect();
    serde_json::from_str(&sandbox.ok(&args)).unwrap()
}

const SAMPLES: &str = "SELECT sample_id, step, place, policy_hash, token_ids, reward, finish, text, question \
    FROM sample_view ORDER BY sample_id";

#[test]
fn a_run_on_a_server_is_the_run_on_a_file() {
    let Some(cluster) = Cluster::start() else { return };
    let url = new_place(&cluster.base_url());
    let (tiny, on_file) = (config("tiny.toml"), Sandbox::new());
    on_file.ok(&["train", &tiny, "--set", "steps=5", "--set", "checkpoint.every=2", "--out", "run"]);

    let sandbox = Sandbox::new();
    // A password that no server asks for is used, and shown nowhere.
    let secret = url.replace("postgres://postgres@", "postgres://postgres:hush@");
    let store = format!("store.url={secret}");
    let train = ["train", &tiny, "--set", &store, "--set", "steps=3", "--set", "checkpoint.every=2", "--out", "run"];
    let first = sandbox.ok(&train);
    assert!(first.contains("postgres://postgres@localhost/postgres?host="), "{first}");
    sandbox.ok(&["train", "--resume", "run", "--set", "steps=5"]);
    for file in ["run/config.toml", "run/run.json", "run/summary.json"] {
        let text = std::fs::read_to_string(sandbox.path(file)).unwrap();
        assert!(!text.contains("hush"), "{file}: {text}");
    }
    assert!(
        !first.contains("hush")
            && json(&sandbox, &url, &["query", "SELECT config FROM runs"])[0]["config"]
                .as_str()
                .is_some_and(|it| !it.contains("hush"))
    );

    assert_eq!(sandbox.metrics("run"), on_file.metrics("run"));
    assert_eq!(json(&sandbox, &url, &["query", SAMPLES]), json(&on_file, "sqlite://proxrl.db", &["query", SAMPLES]));
    let stats = json(&sandbox, &url, &["stats"]);
    assert_eq!(stats, json(&on_file, "sqlite://proxrl.db", &["stats"]));
    for question in [&["ls"][..], &["top", "-n", "3"], &["bottom", "--part", "digit"], &["audit"], &["show", "1"]] {
        let rows = json(&sandbox, &url, question);
        assert_eq!(rows.len(), json(&on_file, "sqlite://proxrl.db", question).len(), "{question:?}");
    }
    sandbox.ok(&["replay", "export", "samples.jsonl", "--store", &url, "--where", "reward > 0"]);
    sandbox.write("brief.toml", crate::replay::OTHER_REWARD);
    let judged = json(&sandbox, &url, &["rescore", "--reward", "brief.toml"]);
    assert_eq!(judged[0]["samples"], 5 * 32);
    assert!(json(&sandbox, &url, &["top", "--scoring", "latest", "--part", "brief"]).len() == 10);
    let pruned = json(&sandbox, &url, &["prune", "--keep-steps", "2"]);
    assert_eq!(pruned[0]["steps"], 3);
    assert!(json(&sandbox, &url, &["verify"]).iter().all(|row| row["wrong"] == 0));
    let refused = sandbox.run(&["replay", "query", "--store", &url, "WITH x AS (SELECT 1) DELETE FROM samples"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn a_file_moves_to_a_server() {
    let Some(cluster) = Cluster::start() else { return };
    let (sandbox, url) = (crate::replay::sandbox_with_run(3), new_place(&cluster.base_url()));
    let moved = sandbox.run(&["replay", "migrate", "sqlite://proxrl.db", &url, "--format", "json"]);
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    let tables: Vec<Value> = serde_json::from_str(&moved.stdout).unwrap();
    let rows = |name: &str| tables.iter().find(|row| row["table"] == name).unwrap()["rows"].clone();
    assert_eq!((rows("samples"), rows("rewards"), rows("steps")), (96.into(), 96.into(), 3.into()));
    assert!(tables.iter().all(|row| row["sha256"].as_str().unwrap().len() == 64));
    assert!(moved.stderr.contains("each table is equal in both"), "{}", moved.stderr);
    assert_eq!(json(&sandbox, &url, &["query", SAMPLES]), sandbox.query(SAMPLES));
    assert!(json(&sandbox, &url, &["verify"]).iter().all(|row| row["wrong"] == 0));
    // A second time it would not be a copy.
    let again = sandbox.run(&["replay", "migrate", "sqlite://proxrl.db", &url]);
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(again.stderr.contains("holds runs already"), "{}", again.stderr);
    // Every question of the handbook has an answer there too.
    let page = std::fs::read_to_string(crate::workspace().join("docs/replay.md")).unwrap();
    for block in page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().trim()) {
        sandbox.ok(&["replay", "query", "--store", &url, "--", block]);
    }
}

#[test]
fn a_server_that_is_not_there_is_one_sentence() {
    let sandbox = Sandbox::new();
    let url = "postgres://me:hush@127.0.0.1:1/db";
    for args in [&["replay", "ls", "--store", url][..], &["replay", "migrate", url, "sqlite://a.db"]] {
        let done = sandbox.run(args);
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        assert!(done.stderr.contains("cannot connect to the store postgres://me@127.0.0.1:1/db"), "{}", done.stderr);
        assert!(!done.stderr.contains("hush"), "{}", done.stderr);
    }
    assert!(sandbox.files().is_empty());
}
