//! Adapters and checkpoints at a URL: a folder, and a bucket behind a small server that speaks S3.

use crate::support::{Sandbox, config};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::{Arc, Mutex};

/// Trains the tiny network. The run shares its adapters and checkpoints at `url`, and its store is a file that all
/// sandboxes reach.
fn train(sandbox: &Sandbox, url: &str, sets: &[&str]) {
    let (share, store) = (format!("share.url={url}"), store_of(sandbox));
    let mut args = vec!["train", "", "--out", "run", "--set", &share, "--set", &store];
    let tiny = config("tiny.toml");
    args[1] = &tiny;
    args.extend(
        ["steps=4", "checkpoint.every=2", "checkpoint.keep=1"].iter().chain(sets).flat_map(|set| ["--set", *set]),
    );
    sandbox.ok(&args);
}

fn store_of(sandbox: &Sandbox) -> String {
    format!("store.url=sqlite://{}", sandbox.path("samples.db").display())
}

/// Another machine has the URL and nothing else of the run: it answers, exports, and goes on as the first one does.
fn another_machine_goes_on(sandbox: &Sandbox, other: &Sandbox, url: &str) {
    train(sandbox, url, &[]);
    let run = format!("{url}/run");
    let answer = ["generate", "--greedy", "--max-new-tokens", "8", "1+1", "--run"];
    let asked = |sandbox: &Sandbox, run: &str| sandbox.ok(&[&answer[..], &[run]].concat());
    assert_eq!(asked(other, &run), asked(sandbox, "run"));
    // What is there is not fetched again, and what is newer is.
    assert_eq!(asked(other, &run), asked(sandbox, "run"));
    other.ok(&["export", &run, "--out", "peft"]);
    assert!(other.path("peft/adapter_model.safetensors").exists());
    let judged = |sandbox: &Sandbox, run: &str| -> Value {
        serde_json::from_str(&sandbox.ok(&["eval", run, "--json"])).unwrap()
    };
    assert_eq!(judged(other, &run), judged(sandbox, "run"));

    sandbox.ok(&["train", "--resume", "run", "--set", "steps=6"]);
    assert_eq!(asked(other, &run), asked(sandbox, "run"));
    // The other machine goes on from there, in a folder of its own.
    let store = store_of(sandbox);
    let go_on = ["train", "--resume", &run, "--out", "run", "--set", "steps=8", "--set", &store];
    let first = sandbox.metrics("run");
    other.ok(&go_on);
    let rows = other.metrics("run");
    assert_eq!(rows[..6], first);
    assert_eq!(rows.len(), 8);
    let again = other.run(&go_on);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
}

#[test]
fn a_config_from_a_url_starts_nothing_that_is_not_trusted() {
    let (sandbox, other) = (Sandbox::new(), Sandbox::new());
    let url = format!("file://{}", sandbox.path("share").display());
    train(&sandbox, &url, &[]);
    let path = sandbox.path("share/run/config.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("[reward.rule.regex]").unwrap();
    let after = rest.split_once("\n[").map_or("", |(_, after)| after);
    let program = "program = \"/bin/sh\"\nargs = [\"-c\", \"touch owned; while read l; do echo 1; done\"]";
    std::fs::write(&path, format!("{before}[reward.rule.command]\n{program}\n[{after}")).unwrap();
    let run = format!("{url}/run");
    for args in [&["eval", &run][..], &["train", "--resume", &run, "--out", "run"]] {
        let done = other.run(args);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains("command: /bin/sh; say --trust"), "{}", done.stderr);
        assert!(!other.path("owned").exists() && !other.path("run").exists());
    }
    other.ok(&["eval", &run, "--trust"]);
    assert!(other.path("owned").exists());
}

#[test]
fn a_second_run_of_the_same_name_is_refused() {
    let (first, second) = (Sandbox::new(), Sandbox::new());
    let url = format!("file://{}", first.path("share").display());
    let share = format!("share.url={url}");
    let args = ["train", &config("tiny.toml"), "--out", "run", "--set", "steps=2", "--set", &share, "--set"];
    first.ok(&[&args[..], &["seed=1"]].concat());
    let config = std::fs::read(first.path("share/run/config.toml")).unwrap();
    let done = second.run(&[&args[..], &["seed=2"]].concat());
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("holds another run of the same name"), "{}", done.stderr);
    assert_eq!(std::fs::read(first.path("share/run/config.toml")).unwrap(), config);
    assert!(first.path("share/run/checkpoints/step_2/state.json").exists());
    // The first one goes on there.
    first.ok(&["train", "--resume", "run", "--set", "steps=4"]);
    assert!(first.path("share/run/checkpoints/step_4/state.json").exists());
}

#[test]
fn a_folder_is_shared() {
    let (sandbox, other, bucket) = (Sandbox::machine(&[]), Sandbox::machine(&[]), Sandbox::new());
    let url = format!("file://{}", bucket.path("a b").display());
    another_machine_goes_on(&sandbox, &other, &url);
    // One checkpoint is kept, here as there.
    let files = bucket.files();
    let checkpoints: Vec<_> = files.iter().filter(|file| file.ends_with("state.json")).collect();
    assert_eq!(checkpoints, ["a b/run/checkpoints/step_8/state.json"]);
    let folders: Vec<_> = std::fs::read_dir(bucket.path("a b/run/checkpoints")).unwrap().collect();
    assert_eq!(folders.len(), 1);
    // Without it the checkpoint is not whole.
    std::fs::remove_file(bucket.path("a b/run/checkpoints/step_8/state.json")).unwrap();
    let done = other.run(&["eval", &format!("{url}/run")]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("there is no checkpoint at"), "{}", done.stderr);
}

#[test]
fn a_bucket_is_shared() {
    let bucket = Bucket::open();
    let (sandbox, other) = (bucket.sandbox(), bucket.sandbox());
    another_machine_goes_on(&sandbox, &other, "s3://bucket/runs");
    let names: Vec<String> = bucket.objects.lock().unwrap().keys().cloned().collect();
    assert!(names.contains(&"runs/run/checkpoints/step_8/state.json".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("step_6")), "{names:?}");
    assert!(bucket.objects.lock().unwrap().keys().all(|name| name.starts_with("runs/run/")));
}

#[test]
fn what_cannot_be_shared_is_said_before_anything_is_drawn() {
    let (sandbox, bucket) = (Sandbox::machine(&[]), Sandbox::new());
    let url = format!("file://{}", bucket.path("shared").display());
    train(&sandbox, &url, &["steps=1"]);
    // Another run of the same name.
    let other = Sandbox::machine(&[]);
    let tiny = config("tiny.toml");
    let refused = |share: &str| {
        let share = format!("share.url={share}");
        let done = other.run(&["train", &tiny, "--out", "run", "--set", &share]);
        assert_eq!(done.code, Some(2), "{share}: {}", done.stderr);
        assert!(!other.path("run/metrics.jsonl").exists());
        let _ = std::fs::remove_dir_all(other.path("run"));
        done.stderr
    };
    assert!(refused(&url).contains("holds another run of the same name"));
    assert!(refused("shared").contains("file:///FOLDER"));
    assert!(refused("ftp://host/a").contains("file:///FOLDER"));
    let done = other.run(&["generate", "--run", "file:///nowhere/run", "1+1"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("there is no checkpoint at file:///nowhere/run"), "{}", done.stderr);
    let done = sandbox.run(&["train", "--resume", "run", "--out", "other"]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("goes on in its own folder"), "{}", done.stderr);
}

#[test]
fn workers_read_policies_from_a_bucket() {
    let bucket = Bucket::open();
    let (sandbox, elsewhere) = (bucket.sandbox(), bucket.sandbox());
    let store = format!("sqlite://{}", sandbox.path("jobs.db").display());
    let remote = config("remote.toml");
    let url = format!("store.url={store}");
    let sets = [
        "steps=3",
        &url,
        "share.url=s3://bucket/runs",
        "collector.remote.without_workers=wait",
        "collector.remote.max_staleness=0",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let trainer = sandbox.start(&[&["train", remote.as_str(), "--out", "run"], &sets[..]].concat());
    while !sandbox.path("jobs.db").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let worker = elsewhere.start(
        &[&["rollout", "work", "--store", &store, "--name", "a", "--config", remote.as_str()], &sets[..]].concat(),
    );
    ended(trainer);
    let published =
        sandbox.ok(&["replay", "query", "--store", &store, "--format", "json", "SELECT adapter FROM publications"]);
    let published: Vec<Value> = serde_json::from_str(&published).unwrap();
    assert!(!published.is_empty());
    assert!(
        published.iter().all(|row| row["adapter"].as_str().unwrap().starts_with("s3://bucket/runs/run/published/"))
    );
    let drawn = sandbox.ok(&[
        "replay",
        "query",
        "--store",
        &store,
        "--format",
        "json",
        "SELECT COUNT(DISTINCT policy_version) AS n FROM sample_view",
    ]);
    assert!(drawn.contains('3'), "{drawn}");
    // Replaced versions are gone.
    let names: Vec<String> = bucket.objects.lock().unwrap().keys().cloned().collect();
    assert!(!names.iter().any(|name| name.ends_with("version_0.safetensors")), "{names:?}");
    let sent = std::process::Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap();
    assert!(sent.success());
    ended(worker);
}

fn ended(mut child: Child) {
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A server that speaks as much of S3 as proxrl asks of it.
struct Bucket {
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    address: String,
}

impl Bucket {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let objects = Arc::new(Mutex::new(BTreeMap::new()));
        let own = Arc::clone(&objects);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = Arc::clone(&own);
                std::thread::spawn(move || while answer(&stream, &objects).is_some() {});
            }
        });
        Self { objects, address }
    }

    /// A sandbox whose environment has this bucket's address and credentials.
    fn sandbox(&self) -> Sandbox {
        Sandbox::machine(&[
            ("AWS_ENDPOINT", &self.address),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "nowhere"),
        ])
    }
}

/// Answers one request; nothing when the client has left.
fn answer(stream: &TcpStream, objects: &Mutex<BTreeMap<String, Vec<u8>>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (mut length, mut signed) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        signed |= header.starts_with("authorization: aws4-hmac-sha256 credential=key/");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, question) = target.split_once('?').unwrap_or((&target, ""));
    let key = path.strip_prefix("/bucket").unwrap_or_default().trim_start_matches('/').to_owned();
    let mut objects = objects.lock().unwrap();
    let (status, content) = match (signed, method.as_str()) {
        (false, _) => ("403 Forbidden", Vec::new()),
        (_, "PUT") => {
            objects.insert(key, body);
            ("200 OK", Vec::new())
        }
        (_, "DELETE") => {
            objects.remove(&key);
            ("204 No Content", Vec::new())
        }
        (_, "GET") if key.is_empty() => ("200 OK", listing(&objects, question).into_bytes()),
        (_, "GET") => match objects.get(&key) {
            Some(content) => ("200 OK", content.clone()),
            None => ("404 Not Found", Vec::new()),
        },
        _ => ("405 Method Not Allowed", Vec::new()),
    };
    drop(objects);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"x\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
        content.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content)).ok()
}

/// The objects and folders directly below the prefix that the query string names.
fn listing(objects: &BTreeMap<String, Vec<u8>>, question: &str) -> String {
    let prefix = question.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap_or_default();
    let prefix = prefix.replace("%2F", "/");
    let mut folders: Vec<String> = Vec::new();
    let mut text = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    for (key, content) in objects {
        let Some(rest) = key.strip_prefix(&prefix) else { continue };
        if let Some((folder, _)) = rest.split_once('/') {
            folders.push(format!("{prefix}{folder}/"));
        } else {
            write!(
                text,
                "<Contents><Key>{key}</Key><Size>{}</Size><ETag>x</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>",
                content.len()
            )
            .unwrap();
        }
    }
    folders.dedup();
    for folder in folders {
        write!(text, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>").unwrap();
    }
    text + "</ListBucketResult>"
}
