//! Dependencies between rooms: the arrows of `ARCHITECTURE.md`, checked against cargo's resolution.
//!
//! `schema`, `reward` and `store` stay free of libtorch, so that their tests need none and a grader or a query tool can
//! be built without it; `rollout`, `reward` and `store` do not know each other, so that only `trainer` introduces them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::workspace;

/// Each room and the rooms it may depend on directly.
const ROOMS: &[(&str, &[&str])] = &[
    ("schema", &[]),
    ("model", &["schema"]),
    ("rollout", &["schema", "model"]),
    ("reward", &["schema"]),
    ("store", &["schema"]),
    ("trainer", &["schema", "model", "rollout", "reward", "store"]),
    ("bench", &["schema", "model", "rollout", "store", "trainer"]),
    ("cli", &["schema", "model", "rollout", "reward", "store", "trainer", "bench"]),
];

/// The rooms that must not depend on libtorch, directly or indirectly.
const WITHOUT_LIBTORCH: &[&str] = &["schema", "reward", "store"];

/// The front door: the program, and the benchmarks behind one of its verbs, with their own options.
const FRONT_DOOR: &[&str] = &["bench", "cli"];

/// Crates for the front door: libraries return typed errors and neither parse arguments nor plot.
const ONLY_IN_FRONT: &[&str] = &["anyhow", "clap", "tracing-subscriber"];

/// Crates of the terminal: they belong to the only room that prints.
const ONLY_IN_CLI: &[&str] = &["clap_complete", "comfy-table", "ctrlc", "indicatif"];

#[test]
fn every_room_is_known_and_every_arrow_is_drawn() {
    let graph = Graph::read();
    let rooms: BTreeSet<&str> = graph.members.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(
        rooms, known,
        "the workspace's members and the table ROOMS in architecture.rs differ: bring them together"
    );

    let mut wrong = Vec::new();
    for (room, allowed) in ROOMS {
        for other in graph.direct(room) {
            if let Some(other) = graph.room_of(other)
                && !allowed.contains(&other)
            {
                wrong.push(format!(
                    "{room}/Cargo.toml depends on {other}, which `{room}` must not know: pass the value in from trainer or \
                     cli, or move the type to schema"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn libtorch_stays_out_of_the_rooms_that_do_not_compute() {
    let graph = Graph::read();
    let mut wrong = Vec::new();
    for room in WITHOUT_LIBTORCH {
        for library in ["tch", "torch-sys"] {
            if let Some(path) = graph.path(room, library) {
                wrong.push(format!("{room}/Cargo.toml: {library} is reached by {}", path.join(" -> ")));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\ntensors belong to model, rollout, trainer, bench and cli", wrong.join("\n"));
    // The search itself must be able to find something.
    assert!(graph.path("trainer", "torch-sys").is_some(), "trainer no longer reaches torch-sys: is the search broken?");
}

#[test]
fn front_door_crates_stay_in_the_front_door() {
    let graph = Graph::read();
    let mut wrong = Vec::new();
    for room in graph.members.keys().map(String::as_str) {
        for name in graph.direct(room).iter().map(|dependency| graph.name(dependency)) {
            if ONLY_IN_FRONT.contains(&name) && !FRONT_DOOR.contains(&room) {
                wrong.push(format!("{room}/Cargo.toml: {name} belongs to cli; libraries return their own `Error`"));
            }
            if ONLY_IN_CLI.contains(&name) && room != "cli" {
                wrong.push(format!("{room}/Cargo.toml: {name} belongs to cli, the only room that prints"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The packages that cargo resolved for this machine, with normal and build dependencies (a test may use what it likes).
struct Graph {
    /// Package id of each room, by the room's folder name.
    members: BTreeMap<String, String>,
    /// Package name by package id.
    names: BTreeMap<String, String>,
    /// Direct dependencies by package id.
    edges: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn read() -> Self {
        let metadata = cargo_metadata();
        let names =
            entries(&metadata["packages"]).map(|package| (text(&package["id"]), text(&package["name"]))).collect();
        let members = entries(&metadata["workspace_members"])
            .map(|id| {
                let package =
                    entries(&metadata["packages"]).find(|package| package["id"] == *id).expect("a member is a package");
                let manifest = text(&package["manifest_path"]);
                let folder = manifest.rsplit('/').nth(1).expect("a manifest lies in a folder");
                (folder.to_owned(), text(id))
            })
            .collect();
        let edges = entries(&metadata["resolve"]["nodes"])
            .map(|node| {
                let shipped = entries(&node["deps"])
                    .filter(|dependency| entries(&dependency["dep_kinds"]).any(|kind| kind["kind"] != "dev"))
                    .map(|dependency| text(&dependency["pkg"]));
                (text(&node["id"]), shipped.collect())
            })
            .collect();
        Self { members, names, edges }
    }

    fn name(&self, id: &str) -> &str {
        &self.names[id]
    }

    fn direct(&self, room: &str) -> &[String] {
        &self.edges[&self.members[room]]
    }

    fn room_of(&self, id: &str) -> Option<&str> {
        self.members.iter().find(|(_, member)| *member == id).map(|(room, _)| room.as_str())
    }

    /// The shortest way from a room to a package called `target`, as package names.
    fn path(&self, room: &str, target: &str) -> Option<Vec<&str>> {
        let start = self.members[room].as_str();
        let mut came_from = BTreeMap::from([(start, None)]);
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(id) = queue.pop_front() {
            if self.name(id) == target {
                let mut path: Vec<&str> =
                    std::iter::successors(Some(id), |id| came_from[id]).map(|id| self.name(id)).collect();
                path.reverse();
                return Some(path);
            }
            for next in &self.edges[id] {
                came_from.entry(next.as_str()).or_insert_with(|| {
                    queue.push_back(next);
                    Some(id)
                });
            }
        }
        None
    }
}

/// The metadata that cargo resolves for this machine only: the sources for other systems may not be here, and there may be no network.
fn cargo_metadata() -> Value {
    let version = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))
        .arg("-vV")
        .output()
        .expect("rustc runs");
    let version = String::from_utf8(version.stdout).expect("rustc prints text");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", host])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

fn entries(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().expect("cargo metadata holds a list here").iter()
}

fn text(value: &Value) -> String {
    value.as_str().expect("cargo metadata holds a string here").to_owned()
}
