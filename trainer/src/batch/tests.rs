//! The cutting of units into batches.

use super::*;
use crate::algorithm::{Config, Grpo, build};
use crate::testing::{groups, scored, signals};
use schema::Metrics;

fn limits(tokens: usize) -> MicroBatchLimits {
    MicroBatchLimits { tokens, vocab: 100, device: model::device::HOST }
}

fn batches(rewards: &[&[f32]], settings: Grpo, tokens: usize) -> Vec<MiniBatch> {
    let algorithm = build(&Config::Grpo(settings)).unwrap();
    let collected = groups(rewards);
    let (units, needs) = (algorithm.units(&collected), algorithm.needs());
    let signals = signals(&*algorithm, &collected, None, &mut Metrics::new());
    let rules = BatchRules {
        reads: needs.reads,
        zero_advantage: needs.zero_advantage,
        minibatches: algorithm.schedule(1).minibatches,
        shares: 1,
        trains_on: &|sequence| algorithm.trains_on(sequence),
        denominator: &|trained| algorithm.denominator(trained),
    };
    let data = StepData { units: &units, signals: &signals, logprobs: None };
    mini_batches(&data, &rules, limits(tokens), &Seed::new(0)).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor).unwrap()
}

#[test]
fn a_group_without_signal_is_counted_and_not_computed() {
    // sample i of a group has i + 1 tokens: 1 + 2 in each of the groups
    let batches = batches(&[&[1.0, 0.0], &[1.0, 1.0]], Grpo::default(), 100);
    assert_eq!(batches.len(), 1);
    assert_eq!(batches[0].trained_tokens, 6);
    let micro = &batches[0].micro_batches[..];
    assert_eq!(micro.len(), 1);
    assert_eq!(micro[0].packed.target_tokens(), 3);
    assert_eq!(micro[0].denominator.divisor(), 6.0);
    // (1 - 0.5) / (std + 1e-4) with Bessel's std of (1, 0), 0.7071
    let advantages = floats(micro[0].signal.advantages());
    for (advantage, expected) in advantages.iter().zip([0.707_01f32, -0.707_01, -0.707_01]) {
        assert!((advantage - expected).abs() < 1e-4, "{advantages:?}");
    }
}

#[test]
fn a_penalty_computes_every_sample() {
    let settings = Grpo { kl_coefficient: 0.1, ..Grpo::default() };
    assert_eq!(batches(&[&[1.0, 1.0]], settings, 100)[0].micro_batches[0].packed.target_tokens(), 3);
}

#[test]
fn micro_batches_keep_to_the_limit_and_hold_every_sample_once() {
    let rewards: &[&[f32]] = &[&[1.0, 0.0, 1.0, 0.0], &[0.0, 1.0, 0.0, 1.0]];
    // a prompt has 3 tokens; samples enter with 0, 1, 2 and 3 tokens
    for limit in [4, 5, 6, 9, 100] {
        let batches = batches(rewards, Grpo::default(), limit);
        let micro = &batches[0].micro_batches;
        assert_eq!(micro.iter().map(|batch| batch.packed.target_tokens()).sum::<usize>(), 20, "limit {limit}");
        assert_eq!(micro.iter().map(|batch| batch.packed.sequences()).sum::<usize>(), 8);
        assert_eq!(micro.len() == 1, limit == 100);
    }
}

#[test]
fn minibatches_share_the_groups_out() {
    let rewards: &[&[f32]] = &[&[1.0, 0.0][..]; 5];
    let batches = batches(rewards, Grpo { minibatches: 2, ..Grpo::default() }, 100);
    let sizes: Vec<i64> = batches.iter().map(|batch| batch.trained_tokens).collect();
    assert_eq!(sizes, [9, 6]);
}

#[test]
fn unjudged_and_truncated_samples_stay_out() {
    let all = batches(&[&[1.0, f32::NAN, 0.0]], Grpo::default(), 100);
    assert_eq!(all[0].trained_tokens, 4);
    let filtered = Grpo { mask_truncated_completions: true, ..Grpo::default() };
    assert_eq!(batches(&[&[1.0, f32::NAN, 0.0]], filtered, 100)[0].trained_tokens, 1);
}

#[test]
fn columns_come_back_sequence_by_sequence_from_as_few_passes_as_fit() {
    // A prompt has 3 tokens; samples of 1, 2 and 3 tokens enter with one less, and are scored whole.
    let groups = scored(&[&[0.0, 0.0, 0.0], &[0.0, 0.0]]);
    let units: Vec<Unit<'_>> = groups.iter().map(Unit::Group).collect();
    for (limit, passes) in [(6, vec![6, 3]), (10, vec![9]), (1, vec![1, 2, 3, 1, 2])] {
        let mut seen = Vec::new();
        let scores = per_sequence(&units, limits(limit), |packed| {
            seen.push(packed.target_tokens());
            let indices = Tensor::arange(packed.target_tokens() as i64, (tch::Kind::Float, limits(limit).device));
            vec![indices.shallow_clone(), -indices]
        })
        .unwrap();
        assert_eq!(seen, passes, "limit {limit}");
        let lengths: Vec<Vec<usize>> =
            scores.iter().map(|group| group.iter().map(|columns| columns[0].len()).collect()).collect();
        assert_eq!(lengths, [vec![1, 2, 3], vec![1, 2]]);
        assert!(scores.iter().flatten().all(|columns| columns.len() == 2 && columns[1][0] == -columns[0][0]));
    }
    assert!(per_sequence::<Unit<'_>>(&[], limits(8), |_| unreachable!("there is no sequence")).unwrap().is_empty());
}
