//! Pruning in the middle of a run changes what is computed, not what is learned.

use super::*;
use crate::testing;

/// A SoRA run of a tiny network. No gradient clipping: the joint norm would count closed gates too.
fn config(more: &str) -> Config {
    let text = format!(
        "steps = 6
        [model]
        device = 'cpu'
        random = {{}}
        [model.adapter.sora]
        rank = 4
        [prompts.arithmetic]
        [[reward]]
        rule.math_answer = {{}}
        [optimizer.adamw]
        learning_rate = 0.02
        max_grad_norm = 0.0
        {more}"
    );
    Config::parse(&text, "test", &[]).unwrap()
}

fn begin(config: &Config) -> (Learner, Policy) {
    let policy = Policy::load(&config.model, &Seed::new(config.seed)).unwrap();
    (Learner::new(config, &policy).unwrap(), policy)
}

fn groups() -> Collected {
    testing::groups(&[&[1.0, 0.0, 0.0], &[0.5, 2.0]])
}

/// Two updates, so that `B`, gates and moments are not zero; then some gates of each layer close.
fn after_two_updates(config: &Config) -> (Learner, Policy) {
    let (mut learner, mut policy) = begin(config);
    for step in 1..=2 {
        learner.update(step, &groups(), &mut policy).unwrap();
    }
    let _no_grad = tch::no_grad_guard();
    for (index, layer) in policy.adapter().layers().enumerate() {
        let _ = layer.gate.as_ref().unwrap().narrow(0, 0, index as i64 % 5).zero_();
    }
    (learner, policy)
}

#[test]
fn an_update_that_is_no_number_ends_the_run() {
    // B is zero at first, so A has no gradient: Adam without eps divides 0 by 0.
    let config = config("eps = 0.0");
    let (mut learner, mut policy) = begin(&config);
    let error = learner.update(1, &groups(), &mut policy).unwrap_err();
    assert!(!error.is_input(), "{error}");
    let said = error.to_string();
    assert!(said.contains("the update of step 1 made `") && said.contains("raise the optimizer's eps"), "{said}");
}

#[test]
fn a_step_after_pruning_is_the_step_without_pruning() {
    let config = config("");
    let (mut whole, mut whole_policy) = after_two_updates(&config);
    let (mut small, mut small_policy) = after_two_updates(&config);
    let kept: Vec<Tensor> = small_policy
        .adapter()
        .layers()
        .map(|layer| layer.gate.as_ref().unwrap().ne(0.0).nonzero().squeeze_dim(1))
        .collect();
    let (before, numbers) = (small_policy.adapter().ranks(), small_policy.adapter().parameters());
    small.updates.prune(&mut small_policy, None).unwrap();
    assert!(small_policy.adapter().ranks() < before && small_policy.adapter().parameters() < numbers);

    whole.update(3, &groups(), &mut whole_policy).unwrap();
    small.update(3, &groups(), &mut small_policy).unwrap();
    let layers = whole_policy.adapter().layers().zip(small_policy.adapter().layers()).zip(&kept);
    for ((whole, small), kept) in layers {
        let gates = [whole, small].map(|layer| layer.gate.as_ref().unwrap());
        for (whole, small, axis) in [(&whole.a, &small.a, 0), (&whole.b, &small.b, 1), (gates[0], gates[1], 0)] {
            if small.numel() > 0 {
                let error = (whole.index_select(axis, kept) - small).abs().max().double_value(&[]);
                assert!(error < 1e-6, "{error}");
            }
        }
    }
}

#[test]
fn a_pruned_run_is_restored_in_its_smaller_shape_and_goes_on_alike() {
    // A threshold above the step keeps closed gates closed.
    let config = config("[prox.soft_threshold]\nscale = 'constant'\nthreshold = 0.05\n[prune]\nevery = 3");
    let (mut learner, mut policy) = after_two_updates(&config);
    learner.update(3, &groups(), &mut policy).unwrap();
    assert!(policy.adapter().ranks() < 4 * 14, "the third step prunes");
    policy.set_version(3);
    let snapshot = learner.snapshot(&State::start(&policy.version().hash), &policy);

    let (mut resumed, mut again) = begin(&config);
    resumed.restore(snapshot, &mut again).unwrap();
    again.set_version(3);
    assert_eq!(again.version(), policy.version());
    for (learner, policy) in [(&mut learner, &mut policy), (&mut resumed, &mut again)] {
        learner.update(4, &groups(), policy).unwrap();
        policy.set_version(4);
    }
    assert_eq!(again.version(), policy.version());
}

#[test]
fn a_checkpoint_from_before_the_pruning_is_restored_in_its_larger_shape() {
    let config = config("");
    let (mut learner, mut policy) = after_two_updates(&config);
    let (snapshot, whole) = (learner.snapshot(&State::start(""), &policy), policy.adapter().copy());
    learner.updates.prune(&mut policy, None).unwrap();
    assert!(policy.adapter().ranks() < whole.ranks());
    learner.restore(snapshot, &mut policy).unwrap();
    assert_eq!(policy.adapter().hash(), whole.hash());
    learner.update(3, &groups(), &mut policy).unwrap();
    assert_ne!(policy.adapter().hash(), whole.hash());
}

#[test]
fn each_stage_has_an_optimizer_of_its_own() {
    let config = config("[prox.soft_threshold]\nthreshold = 0.1\n[prox.stages]\ncount = 2\nlast = 0.2");
    let (mut learner, mut policy) = begin(&config);
    let mut steps = Vec::new();
    for step in 1..=5 {
        learner.update(step, &groups(), &mut policy).unwrap();
        steps.push(*learner.updates.optimizer().state().scalars.values().next().unwrap());
    }
    assert_eq!(steps, [1.0, 2.0, 3.0, 1.0, 2.0]);
}

#[test]
fn the_l1_term_pulls_gates_that_no_sample_moves() {
    let more = "[prox.soft_threshold]\nthreshold = 0.0\nl1_coefficient = 10.0";
    for (more, moved) in [(more, true), ("", false)] {
        let (mut learner, mut policy) = begin(&config(more));
        let gate = |policy: &Policy| policy.adapter().layers().next().unwrap().gate.as_ref().unwrap().abs().copy();
        let before = gate(&policy);
        // At the first step B is zero, so the samples leave the gates alone.
        learner.update(1, &groups(), &mut policy).unwrap();
        let fall = (before - gate(&policy)).min().double_value(&[]);
        assert_eq!(fall > 0.01, moved, "{fall}");
    }
}
