//! Several processes that train one policy.

use crate::support::{Sandbox, config};

#[cfg(feature = "distributed")]
mod together {
    use super::*;
    use serde_json::Value;
    use std::net::TcpListener;
    use std::process::Child;

    /// A sandbox for one of `size` processes that meet at `port`.
    fn member(rank: usize, size: usize, port: u16) -> Sandbox {
        let (rank, size, port) = (rank.to_string(), size.to_string(), port.to_string());
        Sandbox::machine(&[
            ("RANK", &rank),
            ("WORLD_SIZE", &size),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port),
            ("GLOO_SOCKET_IFNAME", "lo"),
        ])
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// The sandboxes and the processes of one run.
    fn start(size: usize, arguments: &[&str]) -> Vec<(Sandbox, Child)> {
        let port = free_port();
        let members = (0..size).map(|rank| member(rank, size, port));
        members
            .map(|sandbox| {
                let child = sandbox.start(arguments);
                (sandbox, child)
            })
            .collect()
    }

    fn finish(mut team: Vec<(Sandbox, Child)>) -> Vec<Sandbox> {
        for (_, child) in &mut team {
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        team.into_iter().map(|(sandbox, _)| sandbox).collect()
    }

    fn train<'a>(tiny: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
        let begin = ["train", tiny, "--out", "run"];
        begin.into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
    }

    fn number(row: &Value, name: &str) -> f64 {
        row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"))
    }

    /// The samples of a run, in order.
    fn samples(sandbox: &Sandbox) -> Vec<Value> {
        sandbox.query("SELECT step, place, token_ids, question FROM sample_view ORDER BY step, group_id, place")
    }

    #[test]
    fn two_processes_learn_what_one_does() {
        let tiny = config("tiny.toml");
        // One step: later ones would sample from policies that differ in the last digits.
        let sets = ["steps=1", "checkpoint.every=1", "rollout.prompts_per_step=5", "algorithm.grpo.beta=0.1"];
        let alone = Sandbox::new();
        alone.ok(&train(&tiny, &sets));
        let team = finish(start(2, &train(&tiny, &sets)));
        assert_eq!(samples(&team[0]), samples(&alone));
        let adapter = |sandbox: &Sandbox| {
            sandbox.ok(&["export", "run", "--out", "peft"]);
            std::fs::read(sandbox.path("peft/adapter_model.safetensors")).unwrap()
        };
        let (one, two) = (adapter(&alone), adapter(&team[0]));
        assert_eq!(one.len(), two.len());
        let head = 8 + u64::from_le_bytes(one[..8].try_into().unwrap()) as usize;
        assert_eq!(one[..head], two[..head]);
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            bytes[head..].chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        let apart = numbers(&one).iter().zip(numbers(&two)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart <= 1e-6, "{apart}");
        let (one, two) = (alone.metrics("run").remove(0), team[0].metrics("run").remove(0));
        for name in ["loss", "grad_norm", "entropy", "kl", "tokens/trained", "num_samples", "clip_ratio/high_max"] {
            let (a, b) = (number(&one, name), number(&two, name));
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{name}: {a}, {b}");
        }
        // Rank 0 alone has a run.
        assert!(!team[1].files().iter().any(|file| file.contains("run") || file.contains("proxrl.db")));
    }

    #[test]
    fn a_team_learns_and_goes_on_where_another_stopped() {
        let tiny = config("tiny.toml");
        let team = finish(start(3, &train(&tiny, &["steps=12"])));
        let rows = team[0].metrics("run");
        // In the same folder, on the same store, with another number of processes.
        let port = free_port();
        let folder = team[0].path("run").display().to_string();
        let other = member(1, 2, port);
        let mut following = other.start(&["train", "--resume", &folder, "--set", "steps=20"]);
        let leader = team[0].with(&[("WORLD_SIZE", "2"), ("MASTER_PORT", &port.to_string())]);
        leader.ok(&["train", "--resume", "run", "--set", "steps=20"]);
        assert_eq!(following.wait().unwrap().code(), Some(0));
        let all = leader.metrics("run");
        assert_eq!(all[..12], rows);
        let mean = |rows: &[Value]| rows.iter().map(|row| number(row, "reward")).sum::<f64>() / rows.len() as f64;
        assert!(mean(&all[15..]) > mean(&all[..5]) + 0.2, "{} {}", mean(&all[..5]), mean(&all[15..]));
    }

    #[test]
    fn ranks_that_disagree_stop() {
        let tiny = config("tiny.toml");
        let port = free_port();
        let (leader, follower) = (member(0, 2, port), member(1, 2, port));
        // Each starts right, and the second takes other steps.
        let sets = ["steps=5", "checkpoint.every=1"];
        let mut following =
            follower.start(&train(&tiny, &[&sets[..], &["optimizer.adamw.learning_rate=1e-3"]].concat()));
        let led = leader.run(&train(&tiny, &sets));
        assert_eq!(led.code, Some(1));
        assert!(led.stderr.contains("after step 1 rank 1 holds the policy"), "{}", led.stderr);
        assert_eq!(following.wait().unwrap().code(), Some(1));
        assert!(leader.path("run/checkpoints/step_0").exists());
        assert!(!leader.path("run/checkpoints/step_1").exists());
    }

    #[test]
    fn a_dead_follower_ends_the_run_and_the_checkpoint_stands() {
        let tiny = config("tiny.toml");
        let mut team = start(2, &train(&tiny, &["steps=100000", "checkpoint.every=1"]));
        let checkpoints = team[0].0.path("run/checkpoints");
        while std::fs::read_dir(&checkpoints).map_or(0, Iterator::count) < 2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        team[1].1.kill().unwrap();
        team[1].1.wait().unwrap();
        assert_eq!(team[0].1.wait().unwrap().code(), Some(1));
        let steps = team[0].0.metrics("run").len() + 1;
        // Alone, as one process, it goes on.
        let alone = team[0].0.with(&[("WORLD_SIZE", "1"), ("RANK", "0")]);
        alone.ok(&["train", "--resume", "run", "--set", &format!("steps={steps}")]);
    }
}

#[test]
fn a_rank_beyond_the_team_is_refused() {
    let sandbox = Sandbox::machine(&[("RANK", "2"), ("WORLD_SIZE", "2")]);
    let done = sandbox.run(&["train", &config("tiny.toml")]);
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("WORLD_SIZE=2"), "{}", done.stderr);
}
