//! PPO through the program: it learns, with many samples of a prompt or with one, and a killed run goes on exactly.

use crate::resume::{kill_when_logged, samples};
use crate::support::{Sandbox, config};

/// A folder with the tiny config, PPO instead of GRPO.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let text = std::fs::read_to_string(config("tiny.toml")).unwrap();
    assert!(text.contains("[algorithm.grpo]"));
    sandbox.write("ppo.toml", text.replace("[algorithm.grpo]", "[algorithm.ppo]"));
    sandbox
}

fn train<'a>(sets: &'a [&'a str]) -> Vec<&'a str> {
    ["train", "ppo.toml", "--out", "run"].into_iter().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
}

/// The mean rewards of the first and the last five of twenty steps.
fn rise(sandbox: &Sandbox) -> (f64, f64) {
    let rewards: Vec<f64> = sandbox.metrics("run").iter().map(|row| row["reward"].as_f64().unwrap()).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    (mean(&rewards[..5]), mean(&rewards[15..]))
}

#[test]
fn the_reward_rises_on_three_seeds() {
    for seed in ["seed=0", "seed=1", "seed=2"] {
        let sandbox = sandbox();
        sandbox.ok(&train(&[seed]));
        let (first, last) = rise(&sandbox);
        assert!(last > first + 0.2, "{seed}: {first:.3} to {last:.3}");
    }
}

#[test]
fn one_sample_of_each_prompt_is_enough_and_the_critic_is_measured() {
    let sandbox = sandbox();
    sandbox.ok(&train(&[
        "rollout.group_size=1",
        "rollout.prompts_per_step=32",
        "algorithm.ppo.critic_adapter=true",
        "algorithm.ppo.kl_coef=0.01",
        "algorithm.ppo.kl_target=0.05",
        "algorithm.ppo.missing_eos_penalty=0.1",
        "algorithm.ppo.whiten_rewards=true",
    ]));
    let (first, last) = rise(&sandbox);
    assert!(last > first + 0.2, "{first:.3} to {last:.3}");
    let rows = sandbox.metrics("run");
    for key in [
        "kl",
        "kl_coefficient",
        "objective/kl",
        "objective/rlhf_reward",
        "objective/non_score_reward",
        "values/mean",
        "returns/mean",
        "loss/policy",
        "loss/value",
        "val/clip_ratio",
        "critic/vf_explained_var",
        "proximal_kl",
    ] {
        assert!(rows[9][key].is_number(), "{key} in {}", rows[9]);
    }
    assert_eq!((&rows[0]["values/mean"], &rows[0]["kl_coefficient"]), (&0.0.into(), &0.01.into()));
    assert_ne!(rows[9]["kl_coefficient"], rows[0]["kl_coefficient"]);
}

#[test]
fn a_killed_run_goes_on_with_its_critic_and_its_kl_coefficient() {
    let sets = [
        "steps=7",
        "checkpoint.every=2",
        "algorithm.ppo.critic_adapter=true",
        "algorithm.ppo.kl_coefficient=0.05",
        "algorithm.ppo.kl_target=0.01",
        "algorithm.ppo.epochs=2",
    ];
    let expected = sandbox();
    expected.ok(&train(&sets));
    for lines in [1, 3, 4] {
        let sandbox = sandbox();
        kill_when_logged(&sandbox, &train(&sets), lines);
        sandbox.ok(&["train", "--resume", "run"]);
        assert_eq!(sandbox.metrics("run"), expected.metrics("run"), "killed after {lines} steps");
        assert_eq!(samples(&sandbox), samples(&expected), "killed after {lines} steps");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let sandbox = sandbox();
    let refused = sandbox.run(&train(&["algorithm.ppo.kl_target=0.1"]));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("kl_target adapts kl_coefficient"), "{}", refused.stderr);
    assert!(!sandbox.path("run").exists());
}
