//! KTO at the samples of the objective's tests, and where `z₀` comes from.

use super::super::{Config, build};
use super::*;
use crate::testing::{Losses, scored, scores};

#[test]
fn gains_and_losses_are_beside_the_average() {
    // Log-ratios of 1 and −0.5, desirable and undesirable, in two sequences; z₀ = 0.4.
    let loss = |weight: f64, policy: f64, reference: f64| {
        let losses = Losses {
            reference: Some(Tensor::from_slice(&[reference / 2.0; 2])),
            returns: Some(Tensor::from_slice(&[0.4f64; 2])),
            ..Losses::at(&[2], &[weight; 2], &[policy / 2.0; 2])
        };
        losses.of(&Config::Kto(Kto::default()))
    };
    let desirable = loss(1.0, -12.0, -13.0);
    assert!((desirable.value - 0.485_004_498_4).abs() < 1e-6, "{desirable:?}");
    assert!(desirable.gradient.iter().all(|g| (g + 0.024_977_513_5).abs() < 1e-6), "{desirable:?}");
    let undesirable = loss(-1.0, -15.0, -14.5);
    assert!((undesirable.value - 0.477_515_175_2).abs() < 1e-6, "{undesirable:?}");
    assert!(undesirable.gradient.iter().all(|g| (g - 0.024_949_443_3).abs() < 1e-6), "{undesirable:?}");
    // A weight multiplies the loss.
    assert!((loss(2.0, -12.0, -13.0).value - 2.0 * 0.485_004_498_4).abs() < 1e-6);
}

#[test]
fn the_baseline_is_what_the_policy_moved_on_completions_of_other_prompts() {
    let algorithm = build(&Config::Kto(Kto { undesirable_weight: 1.5, ..Kto::default() })).unwrap();
    let groups = algorithm.arrange(&scored(&[&[1.0], &[0.0, 1.0]])).unwrap();
    // The first group gets the first sample of the last one, and the other way round: one token each.
    let lengths: Vec<Vec<usize>> =
        groups.iter().map(|group| group.group().samples.iter().map(Sample::len).collect()).collect();
    assert_eq!(lengths, [vec![1, 1], vec![1, 2, 1]]);
    let scored = scores(&groups, &[&[9.0], &[0.3], &[9.0], &[9.0, 9.0], &[0.1]]);
    let mut metrics = Metrics::new();
    let credits = algorithm.credit(&Evidence { groups: &groups, scores: Some(&scored) }, &mut metrics);
    // z₀ = (0.3 + 0.1) / 2
    assert!((metrics.get("kl").unwrap() - 0.2).abs() < 1e-6);
    let Some(Credit::Tokens { advantages, returns }) = &credits[1][0] else { panic!("{credits:?}") };
    assert_eq!((advantages[..].to_vec(), returns.len()), (vec![-1.5], 1));
    assert!((returns[0] - 0.2).abs() < 1e-6);
    // Strangers are not trained on.
    assert_eq!((credits[0][1].clone(), credits[1][2].clone()), (None, None));
    assert!(matches!(&credits[1][1], Some(Credit::Tokens { advantages, .. }) if advantages == &[1.0, 1.0]));
}

#[test]
fn a_baseline_below_zero_is_zero() {
    let algorithm = build(&Config::Kto(Kto::default())).unwrap();
    let groups = algorithm.arrange(&scored(&[&[1.0], &[1.0]])).unwrap();
    let scored = scores(&groups, &[&[0.0], &[-3.0], &[0.0], &[1.0]]);
    let mut metrics = Metrics::new();
    algorithm.credit(&Evidence { groups: &groups, scores: Some(&scored) }, &mut metrics);
    assert_eq!(metrics.get("kl"), Some(0.0));
}
