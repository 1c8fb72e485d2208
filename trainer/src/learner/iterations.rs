//! Iterations and averages on a tiny random network.

use super::*;
use crate::algorithm::{Apo, Config as AlgorithmConfig, NashMp, OnlineDpo};
use crate::checkpoint::State;
use crate::testing::{groups, tiny_run};
use model::packed::{Packed, Sequences};
use schema::Seed;
use std::path::Path;
use tch::Kind;

fn run(algorithm: AlgorithmConfig) -> (Learner, Policy) {
    run_at("1e-2", algorithm)
}

fn run_at(rate: &str, algorithm: AlgorithmConfig) -> (Learner, Policy) {
    let config = tiny_run(algorithm, &["steps=6", &format!("optimizer.adamw.learning_rate={rate}")]);
    let policy = Policy::load(&config.model, &Seed::new(1)).unwrap();
    (Learner::new(&config, &policy).unwrap(), policy)
}

fn update(learner: &mut Learner, policy: &mut Policy, step: u64) -> Metrics {
    // Samples of a group begin alike, and i has i + 1 tokens: in both groups the shortest wins.
    learner.update(step, &groups(&[&[1.0, 0.0], &[2.0, 0.0, 1.0]]), policy).unwrap()
}

/// The hash of the policy after each of four steps, two to an iteration.
fn hashes(algorithm: AlgorithmConfig) -> Vec<String> {
    let (mut learner, mut policy) = run(algorithm);
    let step = |step| {
        update(&mut learner, &mut policy, step);
        policy.adapter().hash()
    };
    (1..=4).map(step).collect()
}

fn companion(learner: &Learner, role: Role) -> &Adapter {
    learner.companions.adapters().get(role).unwrap()
}

fn apo(alpha: f64) -> AlgorithmConfig {
    AlgorithmConfig::Apo(Apo { alpha, steps_per_iteration: 2, max_loss_increase: 0.0, ..Apo::default() })
}

#[test]
fn without_acceleration_the_first_iteration_is_online_dpo_bit_for_bit() {
    let (plain, iterative) = (hashes(AlgorithmConfig::OnlineDpo(OnlineDpo::default())), hashes(apo(0.0)));
    assert_eq!(plain[0], iterative[0]);
    let (mut learner, mut policy) = run(apo(0.0));
    (1..=2).for_each(|step| drop(update(&mut learner, &mut policy, step)));
    assert_eq!(companion(&learner, Role::IterationEnd).hash(), plain[1]);
    // From then on it has new factors, another reference and a fresh optimizer.
    assert_ne!(plain[1], iterative[1]);
    assert_ne!(plain[2], iterative[2]);
    assert_eq!(iterative, hashes(apo(0.0)));
}

#[test]
fn a_tiny_acceleration_is_nearly_none() {
    let weights = |alpha| {
        let (mut learner, mut policy) = run(apo(alpha));
        (1..=5).for_each(|step| drop(update(&mut learner, &mut policy, step)));
        let deltas: Vec<Tensor> = policy.adapter().layers().map(|layer| layer.delta_weight().reshape([-1])).collect();
        Tensor::cat(&deltas, 0)
    };
    let [none, tiny, some] = [0.0, 1e-7, 0.3].map(weights);
    let apart = |other: &Tensor| (other - &none).norm().double_value(&[]) / none.norm().double_value(&[]);
    assert!(apart(&tiny) < 1e-3 && apart(&some) > 1e-2, "{} and {}", apart(&tiny), apart(&some));
}

#[test]
fn an_iteration_begins_beyond_the_end_of_the_last_one() {
    let (mut learner, mut policy) = run(apo(0.5));
    let start = policy.adapter().copy();
    update(&mut learner, &mut policy, 1);
    assert_eq!(companion(&learner, Role::Reference).hash(), start.hash());
    let metrics = update(&mut learner, &mut policy, 2);
    // From a start without update, half a step further is 1.5 times the end; both have rank two, so nothing is lost.
    assert_eq!(metrics.get("apo/alpha"), Some(0.5));
    assert!(metrics.get("apo/truncation_error").unwrap() < 1e-5);
    let end = companion(&learner, Role::IterationEnd);
    for (layer, end) in policy.adapter().layers().zip(end.layers()) {
        let apart = (layer.b.matmul(&layer.a) - end.b.matmul(&end.a) * 1.5).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{}: {apart}", layer.name);
    }
    assert_eq!(companion(&learner, Role::Reference).hash(), policy.adapter().hash());

    // Two moves have rank four, of which two are kept.
    update(&mut learner, &mut policy, 3);
    let metrics = update(&mut learner, &mut policy, 4);
    let error = metrics.get("apo/truncation_error").unwrap();
    assert!(error > 1e-4 && error < 0.7, "{error}");
}

#[test]
fn what_is_used_is_the_end_of_an_iteration_and_not_the_beginning_of_the_next() {
    let (mut learner, mut policy) = run(apo(0.5));
    let used = |learner: &Learner, policy: &mut Policy, step: u64| {
        policy.set_version(step);
        let state = State { step, ..State::start(&policy.version().hash) };
        let mut used = policy.with_adapter(policy.adapter().copy());
        crate::checkpoint::restore::restore(&learner.snapshot(&state, policy), &mut used, Path::new("run")).unwrap();
        used.adapter().hash()
    };
    for step in 1..=3 {
        update(&mut learner, &mut policy, step);
        let found = used(&learner, &mut policy, step);
        let end = companion(&learner, Role::IterationEnd).hash();
        // Two steps to an iteration: the second ends one, and the policy has gone on beyond its end.
        if step == 2 {
            assert!(found == end && found != policy.adapter().hash());
        } else {
            assert!(found == policy.adapter().hash() && found != end);
        }
    }
}

#[test]
fn the_last_iteration_is_not_extrapolated() {
    let (mut learner, mut policy) = run(apo(0.5));
    for step in 1..=5 {
        update(&mut learner, &mut policy, step);
    }
    let metrics = update(&mut learner, &mut policy, 6);
    assert_eq!(metrics.get("apo/alpha"), None);
}

#[test]
fn alpha_is_halved_while_the_loss_is_too_much_worse() {
    let guarded = |max_loss_increase| {
        let (mut learner, mut policy) =
            run(AlgorithmConfig::Apo(Apo { alpha: 0.9, steps_per_iteration: 1, max_loss_increase, ..Apo::default() }));
        let metrics = update(&mut learner, &mut policy, 1);
        (metrics.get("apo/alpha").unwrap(), metrics.get("apo/loss_increase").unwrap())
    };
    // On its own pairs the extrapolated policy is better here, so any tolerance lets it pass.
    let (alpha, increase) = guarded(1e-9);
    assert!(increase < 0.0 && alpha == 0.9, "{alpha} {increase}");

    // Pairs whose labels say the opposite of what was learned: the loss of going on grows, so less is gone or nothing.
    let (mut learner, mut policy) = run(AlgorithmConfig::Apo(Apo {
        alpha: 0.9,
        steps_per_iteration: 2,
        max_loss_increase: 1e-6,
        ..Apo::default()
    }));
    update(&mut learner, &mut policy, 1);
    let end = policy.adapter().copy();
    let metrics = learner.end_step(2, &groups(&[&[0.0, 1.0], &[0.0, 2.0, 1.0]]), &policy).unwrap();
    assert_eq!(metrics.get("apo/alpha"), Some(0.0));
    // The factors are new, and their product is that of the end.
    for (layer, end) in policy.adapter().layers().zip(end.layers()) {
        let apart = (layer.b.matmul(&layer.a) - end.b.matmul(&end.a)).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{}: {apart}", layer.name);
    }
}

#[test]
fn the_average_follows_the_policy() {
    let (mut learner, mut policy) = run(AlgorithmConfig::NashMp(NashMp { kappa: 0.25, ..NashMp::default() }));
    let start = policy.adapter().copy();
    update(&mut learner, &mut policy, 1);
    assert_ne!(policy.adapter().hash(), start.hash());
    start.mix(policy.adapter(), 0.25).unwrap();
    assert_eq!(companion(&learner, Role::Ema).hash(), start.hash());
}

#[test]
fn a_proximal_point_stays_for_its_steps() {
    let nash_prox = NashMp { kappa: 1.0, ema_every: 2, ..NashMp::default() };
    let (mut learner, mut policy) = run(AlgorithmConfig::NashMp(nash_prox));
    let ema = |learner: &Learner| companion(learner, Role::Ema).hash();
    let start = ema(&learner);
    update(&mut learner, &mut policy, 1);
    assert_eq!(ema(&learner), start);
    update(&mut learner, &mut policy, 2);
    // With kappa = 1 the average is the policy itself.
    assert_ne!(ema(&learner), start);
    let apart = |(a, b): (&tch::Tensor, &tch::Tensor)| (a - b).abs().max().double_value(&[]);
    let pairs = companion(&learner, Role::Ema).layers().zip(policy.adapter().layers());
    assert!(pairs.map(|(ema, own)| apart((&ema.b, &own.b)) + apart((&ema.a, &own.a))).all(|apart| apart < 1e-6));
}

/// The variant in the space of distributions, to check the one in the space of parameters by: token by token
/// `(1 + α) log p̂_{t+1} − α log p̂_t`, normalised. (A [mixture](rollout::collector::Inline::mixture) with the share −α
/// draws from it.)
#[test]
fn going_on_in_parameters_is_nearly_going_on_in_distributions() {
    // Where the update is small, the network is nearly linear in it.
    let (mut learner, mut policy) = run_at("1e-3", apo(0.3));
    let before = policy.adapter().copy();
    update(&mut learner, &mut policy, 1);
    let hat = policy.adapter().copy();
    let (further, _) = hat.extrapolated(&before, 0.3).unwrap().compressed(4).unwrap();
    // Every token as a completion of its own: the whole distribution of the first one.
    let tokens: Vec<[u32; 1]> = (0..policy.network().dimensions().vocab as u32).map(|token| [token]).collect();
    let sequences = Sequences { prompt: &[1, 2, 3], completions: tokens.iter().map(|token| &token[..]).collect() };
    let packed = Packed::new(&[sequences], learner.limits.vocab, learner.limits.device).unwrap();
    let distribution = |adapter: &Adapter| policy.logprobs(&packed, 1.0, adapter).to_kind(Kind::Double);
    let exact = (distribution(&hat) * 1.3 - distribution(&before) * 0.3).log_softmax(0, Kind::Double);
    let kl = |adapter| (exact.exp() * (&exact - distribution(adapter))).sum(Kind::Double).double_value(&[]);
    let (parameters, not_at_all) = (kl(&further), kl(&hat));
    assert!(not_at_all > 1e-7, "the update moved nothing: {not_at_all}");
    assert!(parameters < 0.1 * not_at_all, "{parameters} from the extrapolated one, {not_at_all} from the other");
}

#[test]
fn a_restored_learner_goes_on_from_the_same_iteration() {
    for algorithm in [apo(0.5), AlgorithmConfig::NashMp(NashMp::default())] {
        let (mut learner, mut policy) = run(algorithm.clone());
        (1..=3).for_each(|step| drop(update(&mut learner, &mut policy, step)));
        let snapshot = learner.snapshot(&crate::checkpoint::State::start(""), &policy);
        let (mut resumed, mut again) = run(algorithm);
        resumed.restore(snapshot, &mut again).unwrap();
        for step in 4..=6 {
            update(&mut learner, &mut policy, step);
            update(&mut resumed, &mut again, step);
            assert_eq!(policy.adapter().hash(), again.adapter().hash(), "step {step}");
        }
    }
}

#[test]
fn a_checkpoint_with_the_older_names_of_companions_is_restored() {
    let nash_mp = AlgorithmConfig::NashMp(NashMp::default());
    for (algorithm, file, older) in [(apo(0.5), "iteration_end", "hat"), (nash_mp, "ema", "anchor")] {
        let (mut learner, mut policy) = run(algorithm.clone());
        (1..=3).for_each(|step| drop(update(&mut learner, &mut policy, step)));
        let mut snapshot = learner.snapshot(&State::start(""), &policy);
        let tensors = snapshot.take(file).unwrap();
        snapshot.insert(older, tensors);
        let (mut resumed, mut again) = run(algorithm);
        resumed.restore(snapshot, &mut again).unwrap();
        update(&mut learner, &mut policy, 4);
        update(&mut resumed, &mut again, 4);
        assert_eq!(policy.adapter().hash(), again.adapter().hash(), "{older}");
    }
}
