//! Laws that hold for every algorithm in the list, or for every one that learns from drawn groups.

use super::*;
use crate::batch::Signal;
use crate::config;
use crate::learner::Learner;
use crate::testing::{collected, scored, scored_lengths, signals, tiny_run};
use model::Policy;
use schema::{GradedGroup, Seed};

/// A run of a tiny random network with this algorithm.
fn run(algorithm: &Config, micro_batch_tokens: usize) -> config::Config {
    config::Config { micro_batch_tokens, ..tiny_run(lenient(algorithm.clone()), &[]) }
}

/// Takes samples whatever their log-probabilities: made-up ones are near no policy's.
fn lenient(algorithm: Config) -> Config {
    match algorithm {
        Config::Remix(remix) => Config::Remix(Remix { max_mean_log_ratio: 1e3, max_ratio: 1e9, ..remix }),
        algorithm => algorithm,
    }
}

/// Loss and gradients of a step with these rewards.
fn gradient(algorithm: &Config, rewards: &[&[f32]], micro_batch_tokens: usize) -> (f64, Vec<Tensor>) {
    let config = run(algorithm, micro_batch_tokens);
    let policy = Policy::load(&config.model, &Seed::new(1)).unwrap();
    let collected = collected(&*build(algorithm).unwrap(), rewards);
    Learner::new(&config, &policy).unwrap().gradients(&collected, &policy)
}

/// The algorithms that learn from groups alone, whose signal needs no log-probs; those that put a penalty into the reward
/// are here without it.
fn group_relative() -> impl Iterator<Item = Config> {
    let unpenalised = [
        Config::Rloo(Rloo { kl_coefficient: 0.0, ..Rloo::default() }),
        Config::Reinforce(Reinforce::default()),
        Config::ReinforcePp(ReinforcePp { kl_coefficient: 0.0, ..ReinforcePp::default() }),
        Config::ReinforcePp(ReinforcePp { baseline: true, kl_coefficient: 0.0, ..ReinforcePp::default() }),
    ];
    let relative = Config::defaults().into_iter().filter(|config| {
        let needs = build(config).unwrap().needs();
        let by_rewards = matches!(needs.samples, Samples::Sampled { group_size: 2.., compares: None, .. });
        by_rewards && !needs.signal_reads_logprobs
    });
    relative.chain(unpenalised)
}

fn credit(config: &Config, rewards: &[&[f32]]) -> Vec<Vec<Option<f64>>> {
    credit_of(config, &scored(rewards))
}

fn credit_of(config: &Config, groups: &[GradedGroup]) -> Vec<Vec<Option<f64>>> {
    let collected = Collected::Groups(groups.to_vec());
    let signals = signals(&*build(config).unwrap(), &collected, None, &mut Metrics::new());
    let number = |signal: Option<Signal>| {
        signal.map(|signal| match signal {
            Signal::Advantage(advantage) => advantage,
            Signal::TokenAdvantages { advantages, .. } => f64::from(advantages[0]),
            other => panic!("{other:?} is no advantage"),
        })
    };
    signals.into_iter().map(|group| group.into_iter().map(number).collect()).collect()
}

/// Largest relative distance, in norm, of two gradients that are sums of the same terms in different orders: `n ε` for the
/// at most 32 terms of an element and the machine precision ε of f32 (Higham 2002, *Accuracy and Stability of Numerical
/// Algorithms*, eq. 4.4). The order depends on the width of the processor's vectors; a term that is left out or weighted
/// wrongly is a distance near 1.
const ROUNDING: f64 = 32.0 * f32::EPSILON as f64;

#[test]
fn micro_batches_add_up_to_the_whole() {
    for config in Config::defaults() {
        // Two groups of the same tokens: the better sample is the same in both, so that they do not cancel out.
        let rewards: &[&[f32]] = &[&[1.0, 0.0], &[2.0, 0.5]];
        let (whole, gradients) = gradient(&config, rewards, 1000);
        let (parts, sums) = gradient(&config, rewards, 1);
        assert!((whole - parts).abs() < 1e-6 * whole.abs().max(1.0), "{}: {whole} against {parts}", config.name());
        let defined = || gradients.iter().zip(&sums).filter(|(a, _)| a.defined());
        let norm = |tensors: &mut dyn Iterator<Item = Tensor>| {
            tensors.map(|tensor| tensor.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt()
        };
        let apart = norm(&mut defined().map(|(a, b)| a - b));
        let size = norm(&mut defined().map(|(a, _)| a.shallow_clone()));
        assert!(apart < ROUNDING * size.max(1.0), "{}: {apart} apart of {size}", config.name());
        // Where the second group is an opponent's, its samples are the policy's own here, and only XPO's bonus is left.
        let least = if build(&config).unwrap().needs().samples.opponent().is_some() { 5e-5 } else { 1e-3 };
        assert!(size > least, "{}: {size}", config.name());
    }
}

#[test]
fn equal_rewards_teach_nothing() {
    for config in group_relative() {
        assert_eq!(credit(&config, &[&[0.7, 0.7, 0.7]]), [[Some(0.0); 3]], "{}", config.name());
    }
}

#[test]
fn permuting_a_group_permutes_its_credit() {
    for config in group_relative() {
        let credit =
            |rewards: &[f32], lengths: &[usize]| credit_of(&config, &scored_lengths(&[(rewards, lengths)])).remove(0);
        let (a, b) = (credit(&[1.0, 0.0, 0.25], &[1, 2, 3]), credit(&[0.25, 1.0, 0.0], &[3, 1, 2]));
        for (a, b) in [a[0], a[1], a[2]].iter().zip([b[1], b[2], b[0]]) {
            // Advantages by token are f32.
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-6, "{}", config.name());
        }
    }
}

#[test]
fn an_unjudged_sample_has_no_credit() {
    for config in group_relative() {
        let credit = credit(&config, &[&[1.0, f32::NAN, 0.0]]);
        assert_eq!(credit[0][1], None, "{}", config.name());
        assert!(credit[0][0].unwrap() > 0.0);
    }
}

#[test]
fn the_state_of_another_algorithm_is_refused() {
    for config in Config::defaults() {
        let mut algorithm = build(&config).unwrap();
        let state = algorithm.state();
        algorithm.restore(&state).unwrap();
        assert!(algorithm.restore(&serde_json::json!({"another": 1})).unwrap_err().is_input());
    }
}
