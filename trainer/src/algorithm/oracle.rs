//! Losses and gradients of one batch as an independent implementation computed them, in f64 with autograd, from the
//! formulas of the papers: two sequences of three and two tokens whose policy, proximal, behaviour and reference
//! log-probabilities all differ, so that a term that reads the wrong one is found out.

use super::*;
use crate::objective::preference::{LabelNoise, PairLogprobs, hinge, sigmoid, squared};
use crate::objective::testing::{check, check_slice, f64s};
use crate::objective::{
    AdaptiveKl, Aggregation, RolloutCorrection, Rows, Scale, effective_sample_share, group_advantages, mismatch_kl,
    value_losses,
};
use crate::testing::Losses;

const LENGTHS: [usize; 2] = [3, 2];
const POLICY: [f64; 5] = [-0.7, -1.9, -0.4, -2.3, -0.2];
const PROXIMAL: [f64; 5] = [-1.0, -1.8, -0.6, -2.0, -0.35];
const BEHAVIOUR: [f64; 5] = [-1.2, -1.5, -0.6, -2.4, -0.3];
const REFERENCE: [f64; 5] = [-0.9, -2.2, -0.5, -1.7, -0.8];
const ADVANTAGES: [f64; 5] = [1.3, 1.3, 1.3, -0.7, -0.7];

/// Holds an algorithm's loss and gradient against the oracle's.
fn holds(config: &Config, value: f64, gradient: [f64; 5]) {
    let losses = Losses {
        proximal: f64s(&PROXIMAL),
        behaviour: f64s(&BEHAVIOUR),
        reference: Some(f64s(&REFERENCE)),
        ..Losses::at(&LENGTHS, &ADVANTAGES, &POLICY)
    };
    let loss = losses.of(config);
    check_slice(&[loss.value], &[value]);
    check_slice(&loss.gradient, &gradient);
}

#[test]
fn grpo_by_tokens_and_by_sequences_with_its_penalty() {
    let grpo = Grpo { clip_low: 0.2, clip_high: 0.28, kl_coefficient: 0.04, ..Grpo::default() };
    holds(
        &Config::Grpo(grpo.clone()),
        -0.607_483_117_2,
        [0.001_450_153_9, -0.233_184_274_4, -0.316_803_416_4, -0.006_576_950_4, 0.166_266_300_9],
    );
    holds(
        &Config::Grpo(Grpo { aggregation: Aggregation::SequenceMeanTokenMean, ..grpo }),
        -0.390_559_165_4,
        [0.001_208_461_6, -0.194_320_228_6, -0.264_002_847, -0.008_221_188, 0.207_832_876_1],
    );
}

#[test]
fn dr_grpo_divides_by_a_constant() {
    let settings = DrGrpo { length_constant: 8.0, clip_low: 0.2, clip_high: 0.2, ..DrGrpo::default() };
    holds(&Config::DrGrpo(settings), -0.182_687_792_1, [0.0, -0.073_518_040_2, 0.0, 0.0, 0.050_830_248_1]);
}

#[test]
fn the_two_caps_of_grpo() {
    let settings = Grpo { delta: 1.25, dual_clip: 1.1, ..Grpo::default() };
    holds(&Config::Grpo(settings), -0.593_257_728_7, [0.0, -0.235_257_728_6, 0.0, 0.0, 0.0]);
}

#[test]
fn gspo_in_and_out_of_its_narrow_clip() {
    let wide = Gspo { clip_low: 0.2, clip_high: 0.2, ..Gspo::default() };
    let (up, down) = (-0.247_570_009_3, 0.162_355_110_1);
    holds(&Config::Gspo(wide), -0.417_999_807_5, [up, up, up, down, down]);
    holds(&Config::Gspo(Gspo::default()), -0.300_365, [0.0; 5]);
}

#[test]
fn rloo_by_the_sequences_ratio() {
    let settings = Rloo { clip_low: 0.5, clip_high: 0.5, kl_coefficient: 0.0, ..Rloo::default() };
    let (up, down) = (-0.969_686_053_5, 0.301_247_791_8);
    holds(&Config::Rloo(settings), -0.668_438_261_7, [up, up, up, down, down]);
}

#[test]
fn cispo_between_a_floor_and_a_cap() {
    let settings = Cispo { weight_floor: 0.9, weight_cap: 1.2, ..Cispo::default() };
    holds(&Config::Cispo(settings), 0.467_858_325_7, [-0.312, -0.235_257_728_7, -0.312, 0.126, 0.162_656_794]);
}

#[test]
fn remix_centres_the_clip_at_the_proximal_policy() {
    let settings = Remix { kl_coefficient: 0.0, reincarnate_after: 0, epsilon: 0.2, ..Remix::default() };
    holds(&Config::Remix(settings), -0.520_268_542_9, [0.0, -0.174_283_211_9, 0.0, 0.0, 0.154_723_928_5]);
}

#[test]
fn advantages_of_a_group() {
    let rewards = [0.3, 0.9, 1.0, 0.0, 0.5].map(Some).to_vec();
    let advantages: Vec<f64> =
        group_advantages::<f64>(&[rewards], Scale::Group, 1e-4).concat().into_iter().flatten().collect();
    check_slice(&advantages, &[-0.576_877_749_2, 0.865_316_623_8, 1.105_682_352_7, -1.297_974_935_8, -0.096_146_291_5]);
}

#[test]
fn weights_from_proximal_to_behaviour() {
    let rows = Rows::new(&LENGTHS, &[true; 5], model::device::HOST).unwrap();
    let (proximal, behaviour) = (f64s(&PROXIMAL), f64s(&BEHAVIOUR));
    let weights = |correction: RolloutCorrection| correction.weights(&proximal, &behaviour, &rows);
    let (low, high) = (0.904_837_418, 1.419_067_548_6);
    check(&weights(RolloutCorrection::SequenceTruncate { cap: 9.0 }), &[low, low, low, high, high]);
    // The geometric means are 0.9672161005 and 1.1912462166.
    let tokens = [0.2, -0.3, 0.0, 0.4, -0.05].map(f64::exp);
    let within = |floor, cap| weights(RolloutCorrection::GeometricMask { floor, cap });
    check(&within(0.967_216, 1.191_246_3), &tokens);
    check(&within(0.967_216_2, 1.191_246_3), &[0.0, 0.0, 0.0, tokens[3], tokens[4]]);
    check(&within(0.967_216, 1.191_246_2), &[tokens[0], tokens[1], tokens[2], 0.0, 0.0]);
    check(&mismatch_kl(&proximal, &behaviour, &rows), &[0.031_055_020_2]);
    check(&effective_sample_share(&proximal, &behaviour, &rows), &[0.946_910_692_4]);
}

#[test]
fn losses_of_a_pair() {
    let pair = PairLogprobs {
        chosen: f64s(&[-20.0]),
        rejected: f64s(&[-17.0]),
        chosen_reference: f64s(&[-22.5]),
        rejected_reference: f64s(&[-16.0]),
        chosen_tokens: f64s(&[8.0]),
        rejected_tokens: f64s(&[5.0]),
    };
    let (h, certain) = (pair.ratio_margin(), f64s(&[1.0]));
    check(&sigmoid(&h, 0.3, LabelNoise::None), &[0.300_058_479_6]);
    check(&sigmoid(&h, 0.3, LabelNoise::Smooth(0.2)), &[0.510_058_479_6]);
    check(&sigmoid(&h, 0.3, LabelNoise::Robust(0.2)), &[-0.049_941_520_4]);
    check(&hinge(&h, 0.3), &[0.0]);
    check(&squared(&pair.mean_ratio_margin(), &certain, 0.3), &[1.332_100_694_3]);
    check(&squared(&h, &certain, 0.3), &[3.361_111_111_1]);
}

#[test]
fn the_critics_clipped_loss() {
    let rows = Rows::new(&[3], &[true; 3], model::device::HOST).unwrap();
    let [values, old, returns] = [[0.45, 0.05, 0.3], [0.1, 0.2, 0.4], [0.9, 0.5, 0.2]].map(|row| f64s(&row));
    check(&value_losses(&values, &old, &returns, 0.2, &rows), &[0.18, 0.101_25, 0.005]);
}

#[test]
fn the_coefficient_that_adapts() {
    let mut adaptive = AdaptiveKl { coefficient: 0.2, target: 0.1, horizon: 2000.0 };
    for measured in [0.35, 0.02, 0.11] {
        adaptive.update(measured, 48);
    }
    check_slice(&[adaptive.coefficient], &[0.200_475_380_9]);
}
