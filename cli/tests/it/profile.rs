//! `--profile` writes a trace that the viewers of Chrome traces read, with the phases of the loop inside their steps.

use crate::support::{Sandbox, config};
use serde_json::Value;

/// An event of a trace.
#[derive(Debug)]
struct Event {
    name: String,
    start: f64,
    end: f64,
    args: Value,
}

impl Event {
    fn holds(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// The complete events of a trace file, which must be a list in JSON.
fn events(sandbox: &Sandbox, file: &str) -> Vec<Event> {
    let text = std::fs::read_to_string(sandbox.path(file)).unwrap();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let complete = list.iter().filter(|event| event["ph"] == "X");
    complete
        .map(|event| {
            let start = event["ts"].as_f64().unwrap();
            let name = event["name"].as_str().unwrap().to_owned();
            Event { name, start, end: start + event["dur"].as_f64().unwrap(), args: event["args"].clone() }
        })
        .collect()
}

#[test]
fn a_run_writes_its_phases_as_a_trace() {
    let sandbox = Sandbox::new();
    let tiny = config("tiny.toml");
    sandbox.ok(&["train", &tiny, "--out", "run", "--set", "steps=2", "--profile", "trace.json"]);
    let events = events(&sandbox, "trace.json");
    let named = |name: &str| events.iter().filter(|event| event.name == name).collect::<Vec<_>>();

    let steps = named("step");
    assert_eq!(steps.iter().map(|step| step.args["number"].clone()).collect::<Vec<_>>(), [1, 2]);
    // Each phase of a step lies in one of the two steps, and once or more in each.
    for phase in ["collect", "reward", "append", "forward", "backward", "optimizer"] {
        for step in &steps {
            assert!(named(phase).iter().any(|event| step.holds(event)), "step {} lacks {phase}", step.args);
        }
        for event in named(phase) {
            assert_eq!(steps.iter().filter(|step| step.holds(event)).count(), 1, "{event:?} is in no step");
        }
    }
    // Passes of the sampler are in a collection, or answer held-out prompts.
    for event in named("prefill").into_iter().chain(named("decode")) {
        let around = named("collect").into_iter().chain(named("evaluate")).filter(|outer| outer.holds(event)).count();
        assert_eq!(around, 1, "{event:?}");
    }
    assert!(named("decode").iter().all(|event| event.args["rows"].as_u64().is_some_and(|rows| rows > 0)));
    assert_eq!(named("load").len(), 1);
    // Before the first step and after the last one.
    assert_eq!((named("evaluate").len(), named("checkpoint").len()), (2, 2));
    // Two events are one inside the other, or one after the other.
    for (place, one) in events.iter().enumerate() {
        for other in &events[place + 1..] {
            let apart = one.end <= other.start || other.end <= one.start;
            assert!(apart || one.holds(other) || other.holds(one), "{one:?} and {other:?} cross");
        }
    }
}

#[test]
fn reference_scores_are_a_phase() {
    let sandbox = Sandbox::new();
    sandbox.write("pairs.jsonl", "{\"prompt\": \"1+1?\", \"chosen\": \"2\", \"rejected\": \"3\"}\n");
    let changes = ["algorithm={dpo={}}", "prompts={jsonl={path=\"pairs.jsonl\"}}", "steps=1", "reward=[]"];
    let mut args = vec!["train".to_owned(), config("tiny.toml"), "--out".into(), "run".into()];
    args.extend(changes.iter().flat_map(|change| ["--set".to_owned(), (*change).to_owned()]));
    args.extend(["--profile".to_owned(), "trace.json".to_owned()]);
    sandbox.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let events = events(&sandbox, "trace.json");
    assert!(events.iter().any(|event| event.name == "score"), "{events:?}");
    assert!(!events.iter().any(|event| event.name == "collect"));
}

#[test]
fn a_profile_that_cannot_be_written_is_refused_before_the_run() {
    let sandbox = Sandbox::new();
    let done = sandbox.run(&["train", &config("tiny.toml"), "--out", "run", "--profile", "no/such/folder/trace.json"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("no/such/folder/trace.json") && done.stderr.contains("--profile"), "{}", done.stderr);
    assert!(!sandbox.path("run").exists());
}
