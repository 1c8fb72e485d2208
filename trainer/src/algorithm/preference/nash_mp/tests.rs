//! Advantages worked by hand, and the two forms of the loss.

use super::*;
use crate::algorithm::{Config, build};
use crate::testing::{LossSignal, Losses, groups};

fn logprobs(groups: &[&GradedGroup], reference: f32, ema: f32) -> Vec<Vec<SequenceLogprobs>> {
    let of_sample = |sample: &Sample| SequenceLogprobs {
        policy: vec![-1.0; sample.len()],
        companions: [(Role::Reference, vec![reference; sample.len()]), (Role::Ema, vec![ema; sample.len()])]
            .into_iter()
            .collect(),
        values: Vec::new(),
    };
    groups.iter().map(|group| group.group().samples.iter().map(of_sample).collect()).collect()
}

/// The advantages of every sample's tokens; none for those without a reward.
fn advantages(rewards: &[&[f32]], reference: f32, ema: f32) -> (Vec<Option<Vec<f32>>>, Metrics) {
    let collected = groups(rewards);
    let logprobs = logprobs(&collected.groups(), reference, ema);
    let mut metrics = Metrics::new();
    let algorithm = build(&Config::NashMp(NashMp::default())).unwrap();
    let units = algorithm.units(&collected);
    let evidence = Evidence { collected: &collected, units: &units, logprobs: Some(&logprobs) };
    let signals = algorithm.signals(&evidence, &mut metrics);
    let tokens = |signal: Option<Signal>| match signal {
        Some(Signal::TokenAdvantages { advantages, .. }) => Some(advantages),
        _ => None,
    };
    (signals.into_iter().flatten().map(tokens).collect(), metrics)
}

fn close(actual: &[Option<Vec<f32>>], expected: &[Option<&[f32]>]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().map(Option::as_deref).zip(expected.iter().copied()) {
        let near = match (actual, expected) {
            (Some(a), Some(e)) => a.len() == e.len() && a.iter().zip(e).all(|(a, e)| (a - e).abs() < 1e-6),
            (a, e) => a.is_none() && e.is_none(),
        };
        assert!(near, "{actual:?}, not {expected:?}");
    }
}

#[test]
fn both_samples_learn_from_each_other_and_each_token_pays_for_what_comes_from_it_on() {
    // One and two tokens, log-ratios of 0.5 a token to the reference and 0.2 to the average: a token pays
    // 0.1 · 0.5 + 0.5 · 0.2 = 0.15. From the first token on the samples pay 0.15 and 0.3, from the second 0 and 0.15,
    // each with what the other pays as its baseline.
    let (found, metrics) = advantages(&[&[1.0, 0.0]], -1.5, -1.2);
    close(&found, &[Some(&[0.5 + 0.15]), Some(&[-0.5 - 0.15, -0.5 - 0.15])]);
    // Means over samples of sums over tokens: (0.5 + 1) / 2 and (0.2 + 0.4) / 2.
    assert!((metrics.get("objective/kl").unwrap() - 0.75).abs() < 1e-6);
    assert!((metrics.get("objective/ema_kl").unwrap() - 0.3).abs() < 1e-6);
    assert_eq!(metrics.get("objective/anchor_kl"), metrics.get("objective/ema_kl"));
}

#[test]
fn the_baseline_is_what_the_other_judged_samples_of_the_whole_batch_pay() {
    // Lengths 1, 2, 3 and 1, 2: from the first token on they pay 0.15, 0.3, (0.45) and 0.15, 0.3, from the second 0,
    // 0.15, (0.3) and 0, 0.15; the third is not judged and has no part in any mean.
    let (found, _) = advantages(&[&[1.0, 0.0, f32::NAN], &[1.0, 1.0]], -1.5, -1.2);
    let first = [0.15 - 0.75 / 3.0, 0.3 - 0.6 / 3.0];
    let second = 0.15 - 0.15 / 3.0;
    close(
        &found,
        &[
            Some(&[0.5 - first[0]]),
            Some(&[-0.5 - first[1], -0.5 - second]),
            None,
            Some(&[-first[0]]),
            Some(&[-first[1], -second]),
        ],
    );
}

#[test]
fn of_several_each_plays_against_all_others_and_the_unjudged_against_none() {
    let (found, _) = advantages(&[&[2.0, f32::NAN, 1.0, 1.0], &[1.0, f32::NAN]], -1.0, -1.0);
    // The best wins both games; the equals lose one and draw one.
    close(&found, &[Some(&[0.5]), None, Some(&[-0.25; 3]), Some(&[-0.25; 4]), None, None]);
}

#[test]
fn the_policy_gradient_is_that_of_the_advantage() {
    // Two sequences with 2 and 1 tokens: ℓ = −mean_i A_i Σ_t log π.
    let losses = Losses::at(&[2, 1], &[0.35, 0.35, -0.8], &[-1.0, -2.0, -0.5]);
    let loss = losses.of(&Config::NashMp(NashMp::default()));
    assert!((loss.value - (0.35 * 3.0 - 0.8 * 0.5) / 2.0).abs() < 1e-9, "{loss:?}");
    assert!(loss.gradient.iter().zip([-0.175, -0.175, 0.4]).all(|(g, e)| (g - e).abs() < 1e-9), "{loss:?}");
}

#[test]
fn the_contrastive_form_has_a_mixed_reference() {
    // η = 0.2, so log m = (0.2 · ref + ema) / 1.2 and β′ = 0.1 · 6 = 0.6. One token each: p = (−1, −2),
    // ref = (−1.6, −2), ema = (−1, −1.4): log m = (−1.1, −1.5), h = 0.1 + 0.5 = 0.6, target ½/0.6.
    let losses = Losses {
        reference: Some(Tensor::from_slice(&[-1.6f64, -2.0])),
        ema: Some(Tensor::from_slice(&[-1.0f64, -1.4])),
        ..Losses::with(&[1, 1], LossSignal::Pairs(vec![(1.0, false), (0.0, false)]), &[-1.0, -2.0])
    };
    let loss = losses.of(&Config::NashMp(NashMp { form: NashForm::Contrastive, ..NashMp::default() }));
    let off: f64 = 0.6 - 0.5 / 0.6;
    assert!((loss.value - off.powi(2)).abs() < 1e-9, "{loss:?}");
    assert!((loss.gradient[0] - 2.0 * off).abs() < 1e-9 && (loss.gradient[1] + 2.0 * off).abs() < 1e-9, "{loss:?}");
}

#[test]
fn the_older_name_of_a_key_still_works() {
    let older: NashMp = toml::from_str("anchor_every = 5").unwrap();
    assert_eq!(older, NashMp { ema_every: 5, ..NashMp::default() });
}
