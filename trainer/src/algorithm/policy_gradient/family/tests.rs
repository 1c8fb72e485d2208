//! Laws of the family, for each of its members.

use super::*;
use crate::algorithm::{Cispo, Config, Dapo, DrGrpo, Grpo, Gspo, Reinforce, ReinforcePp, Rloo, build};
use crate::collected::Collected;
use crate::objective::testing::{check_slice, f64s};
use crate::testing::{Losses, advantages, logprobs, scored_lengths, token_advantages};

/// Every member, with the forms that a setting gives it.
fn members() -> Vec<Config> {
    vec![
        Config::Grpo(Grpo::default()),
        Config::DrGrpo(DrGrpo::default()),
        Config::Dapo(Dapo::default()),
        Config::Gspo(Gspo::default()),
        Config::Gspo(Gspo { clip_low: 0.5, clip_high: 0.5, ..Gspo::default() }),
        Config::Rloo(Rloo::default()),
        Config::Rloo(Rloo { level: RatioOf::Token, ..Rloo::default() }),
        Config::ReinforcePp(ReinforcePp::default()),
        Config::ReinforcePp(ReinforcePp { baseline: true, ..ReinforcePp::default() }),
        Config::Reinforce(Reinforce::default()),
    ]
}

/// Numbers with no two alike and no ratio on a bound.
fn moved(advantages: [f64; 6]) -> Losses {
    Losses {
        proximal: f64s(&[-0.78, -1.77, -0.41, -2.21, -1.13, -0.57]),
        behaviour: f64s(&[-0.7, -1.9, -0.33, -2.4, -1.05, -0.61]),
        reference: Some(f64s(&[-0.8, -1.5, -0.6, -2.0, -1.2, -0.9])),
        ..Losses::at(&[2, 3, 1], &advantages, &[-0.63, -1.98, -0.47, -2.02, -1.31, -0.49])
    }
}

const CREDIT: [f64; 6] = [0.9, 0.9, -1.3, -1.3, -1.3, 0.4];

#[test]
fn the_gradient_is_that_of_finite_differences() {
    for config in members() {
        let loss = moved(CREDIT).of(&config);
        check_slice(&loss.gradient, &loss.numeric);
    }
}

/// A member with one of the settings that all share, by its name in the config.
fn with(config: &Config, key: &str, value: impl Into<toml::Value>) -> Config {
    let mut table = toml::Table::try_from(config).unwrap();
    table[config.name()].as_table_mut().unwrap().insert(key.into(), value.into());
    table.try_into().unwrap()
}

#[test]
fn the_gradient_is_that_of_finite_differences_with_a_penalty_and_a_correction_too() {
    let masked: toml::Table = toml::from_str("token_mask = { floor = 0.9, cap = 1.1 }").unwrap();
    let truncated: toml::Table = toml::from_str("sequence_truncate = { cap = 1.1 }").unwrap();
    for config in members() {
        let penalised = with(&config, "kl_coefficient", 0.3);
        for config in [
            with(&penalised, "rollout_correction", masked.clone()),
            with(&config, "rollout_correction", truncated.clone()),
            penalised,
        ] {
            let loss = moved(CREDIT).of(&config);
            check_slice(&loss.gradient, &loss.numeric);
        }
    }
    // k1+ and k3+ have another gradient than their value, on purpose.
    for kl_estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        let loss = moved(CREDIT).of(&Config::Grpo(Grpo { kl_coefficient: 0.3, kl_estimator, ..Grpo::default() }));
        check_slice(&loss.gradient, &loss.numeric);
    }
}

#[test]
fn the_gradient_of_cispo_is_its_weight_times_that_of_the_log_probability() {
    // The weights are constants, so finite differences of the loss itself would see more: of −w A log π, none.
    let loss = moved(CREDIT).of(&Config::Cispo(Cispo::default()));
    let log_ratios = [0.15_f64, -0.21, -0.06, 0.19, -0.18, 0.08];
    let expected: Vec<f64> = log_ratios.iter().zip(CREDIT).map(|(log, credit)| -log.exp() * credit / 6.0).collect();
    check_slice(&loss.gradient, &expected);
}

#[test]
fn the_first_update_is_that_of_reinforce() {
    // Nothing has moved: every ratio is 1, no clip binds, and what differs is the mean. Two sequences of equal length.
    let credit = [0.5, 0.5, -1.5, -1.5];
    let first = |config: &Config| Losses::at(&[2, 2], &credit, &[-0.3, -1.0, -0.2, -2.0]).of(config).gradient;
    let reinforce = first(&Config::Reinforce(Reinforce::default()));
    check_slice(&reinforce, &credit.map(|credit| -credit / 2.0));
    for (config, factor) in [
        (Config::Grpo(Grpo::default()), 0.5),
        (Config::DrGrpo(DrGrpo { length_constant: 2.0, ..DrGrpo::default() }), 0.5),
        (Config::Dapo(Dapo::default()), 0.5),
        (Config::Gspo(Gspo::default()), 0.5),
        // The sequence is one action there, so its tokens' gradients add up.
        (Config::Rloo(Rloo::default()), 1.0),
        (Config::ReinforcePp(ReinforcePp::default()), 0.5),
        (Config::Cispo(Cispo::default()), 0.5),
    ] {
        let expected: Vec<f64> = reinforce.iter().map(|slope| slope * factor).collect();
        check_slice(&first(&config), &expected);
    }
}

#[test]
fn no_credit_gives_no_gradient() {
    // A penalty in the loss pulls whatever the credit is.
    let free = |config: &Config| build(config).unwrap().needs().zero_advantage == ZeroAdvantage::Skip;
    for config in members().into_iter().filter(free) {
        assert_eq!(moved([0.0; 6]).of(&config).gradient, [0.0; 6], "{}", config.name());
    }
}

#[test]
fn dr_grpo_is_rloo_but_for_a_factor() {
    let rewards: &[&[f32]] = &[&[1.0, 0.0, 0.25], &[0.5, 2.0]];
    let rloo = advantages(&Config::Rloo(Rloo { kl_coefficient: 0.0, ..Rloo::default() }), rewards);
    for (group, rloo) in advantages(&Config::DrGrpo(DrGrpo::default()), rewards).iter().zip(rloo) {
        let n = group.len() as f64;
        check_slice(&group.iter().map(|credit| credit * n / (n - 1.0)).collect::<Vec<_>>(), &rloo);
    }
}

#[test]
fn normalised_weights_have_mean_one() {
    // Weights of the tokens, capped at 2: 1.1051709, 0.81873075, 2 | 0.95122942, 1.0202013. Their mean is 1.17906642.
    let grpo = Grpo {
        rollout_correction: RolloutCorrection::TokenTruncate { cap: 2.0 },
        normalise_correction: true,
        ..Grpo::default()
    };
    let config = Config::Grpo(grpo.clone());
    assert!(build(&config).unwrap().needs().signal_reads_logprobs);
    let groups = scored_lengths(&[(&[1.0, 0.0], &[3, 2])]);
    let collected = Collected::Groups(groups);
    let units = collected.units();
    let mut known = logprobs(&units, &[&[0.0; 3], &[0.0; 2]]);
    known[0][0].policy = vec![-0.9, -1.2, 0.0];
    known[0][1].policy = vec![-1.05, -0.98];
    let evidence = Evidence { collected: &collected, units: &units, logprobs: Some(&known) };
    let mut metrics = Metrics::new();
    let credits = build(&config).unwrap().signals(&evidence, &mut metrics).concat();
    let plain = advantages(&Config::Grpo(Grpo::default()), &[&[1.0, 0.0]]).concat();
    let expected = [0.937_327_06 / 1.105_170_9, 0.865_261_93 / 1.020_201_3];
    for ((credit, plain), expected) in credits.iter().zip(plain).zip(expected) {
        let Some(Signal::Advantage(credit)) = credit else { panic!("{credit:?}") };
        check_slice(&[credit / plain], &[expected]);
    }
    check_slice(&[metrics.get("rollout_correction/mean_weight").unwrap()], &[1.179_066_42]);
    // Without a correction there is nothing to normalise, and nothing to pay for.
    let off = Grpo { rollout_correction: RolloutCorrection::Off, ..grpo };
    assert!(!build(&Config::Grpo(off)).unwrap().needs().signal_reads_logprobs);
}

#[test]
fn a_penalty_asks_for_the_reference_and_in_the_reward_for_log_probs() {
    let needs = |config: Config| {
        let needs = build(&config).unwrap().needs();
        (needs.companion(Role::Reference).is_some(), needs.signal_reads_logprobs, needs.zero_advantage)
    };
    assert_eq!(needs(Config::Rloo(Rloo::default())), (true, true, ZeroAdvantage::Skip));
    assert_eq!(
        needs(Config::Rloo(Rloo { kl_coefficient: 0.0, ..Rloo::default() })),
        (false, false, ZeroAdvantage::Skip)
    );
    let dapo = Dapo { kl_coefficient: 0.1, ..Dapo::default() };
    assert_eq!(needs(Config::Dapo(dapo)), (true, false, ZeroAdvantage::Compute));
}

#[test]
fn a_truncated_completion_can_be_left_out_by_every_method() {
    let groups = scored_lengths(&[(&[1.0, 0.0], &[1, 2])]);
    let samples: Vec<Sequence<'_>> = groups[0].group().samples.iter().map(Sequence::of_sample).collect();
    for config in members() {
        let masked = build(&with(&config, "mask_truncated_completions", true)).unwrap();
        assert!(masked.trains_on(&samples[0]) && !masked.trains_on(&samples[1]), "{}", config.name());
        assert!(build(&config).unwrap().trains_on(&samples[1]));
    }
}

#[test]
fn tokens_that_are_not_trained_on_have_no_credit_of_their_own() {
    let mut groups = scored_lengths(&[(&[1.0], &[3]), (&[0.0], &[1])]);
    let mut group = groups[0].group().clone();
    group.samples[0].mask[1] = false;
    groups[0] = GradedGroup::new(group, groups[0].verdicts().to_vec()).unwrap();
    let settings = ReinforcePp { kl_coefficient: 0.0, ..ReinforcePp::default() };
    let credit = token_advantages(&Config::ReinforcePp(settings), &groups, None);
    // Rewards to go 1, –, 1 | 0: mean 2/3, variance with Bessel (2/9 + 4/9)/2 = 1/3.
    let (up, down) = (3.0_f64.sqrt() / 3.0, -2.0 * 3.0_f64.sqrt() / 3.0);
    check_slice(&credit.concat(), &[up, 0.0, up, down]);
}
