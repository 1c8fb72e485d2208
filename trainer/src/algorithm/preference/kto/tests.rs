//! KTO at the samples of the objective's tests, and where `z₀` comes from.

use super::*;
use crate::algorithm::{Config, build};
use crate::collected::{Completion, PromptSequences};
use crate::testing::{LossSignal, Losses, signals};

#[test]
fn gains_and_losses_are_beside_the_average() {
    // Log-ratios of 1 and −0.5, desirable and undesirable, in two sequences; z₀ = 0.4.
    let loss = |weight: f64, policy: f64, reference: f64| {
        let losses = Losses {
            reference: Some(Tensor::from_slice(&[reference / 2.0; 2])),
            ..Losses::with(&[2], LossSignal::Labels(vec![(weight, 0.4)]), &[policy / 2.0; 2])
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

/// Labelled completions of one token each.
fn demonstrations(labels: &[bool]) -> Collected {
    let row = |desirable: &bool| Example {
        prompt_ids: vec![1],
        completions: Completions::Demonstration {
            completion: Completion { ids: vec![5], cut: false },
            desirable: *desirable,
        },
    };
    Collected::Examples(labels.iter().map(row).collect())
}

#[test]
fn the_baseline_is_the_movement_of_the_policy_on_completions_of_other_prompts() {
    let settings = Kto { undesirable_weight: 1.5, data: KtoData::Pairs, ..Kto::default() };
    let algorithm = build(&Config::Kto(settings)).unwrap();
    let pair = |chosen: usize, rejected: usize| {
        let completion = |tokens| Completion { ids: vec![5; tokens], cut: false };
        let completions = Completions::Pair { chosen: completion(chosen), rejected: completion(rejected), margin: 0.0 };
        Example { prompt_ids: vec![1], completions }
    };
    let collected = Collected::Examples(vec![pair(1, 3), pair(2, 4)]);
    let units = algorithm.units(&collected);
    // Each row gets the first completion of the row before it, the first row that of the last one.
    let lengths: Vec<Vec<usize>> =
        units.iter().map(|unit| (0..unit.count()).map(|index| unit.sequence(index).len()).collect()).collect();
    assert_eq!(lengths, [[1, 3, 2], [2, 4, 1]]);
    let mut metrics = Metrics::new();
    let k1: &[&[f64]] = &[&[9.0], &[9.0; 3], &[0.1, 0.2], &[9.0; 2], &[9.0; 4], &[0.1]];
    let found = signals(&*algorithm, &collected, Some(k1), &mut metrics);
    // z₀ = (0.3 + 0.1) / 2
    assert!((metrics.get("kl").unwrap() - 0.2).abs() < 1e-6);
    for unit in &found {
        let [Some(chosen), Some(rejected), None] = &unit[..] else {
            panic!("unrelated ones are not trained on: {unit:?}")
        };
        let label = |signal: &Signal| match signal {
            Signal::Labelled { desirable, weight, baseline } => (*desirable, *weight, (baseline * 1e5).round() / 1e5),
            other => panic!("{other:?} is no label"),
        };
        assert_eq!((label(chosen), label(rejected)), ((true, 1.0, 0.2), (false, 1.5, 0.2)));
    }
}

#[test]
fn a_baseline_below_zero_is_zero() {
    let algorithm = build(&Config::Kto(Kto::default())).unwrap();
    let mut metrics = Metrics::new();
    let k1: &[&[f64]] = &[&[0.0], &[-3.0], &[0.0], &[1.0]];
    let found = signals(&*algorithm, &demonstrations(&[true, false]), Some(k1), &mut metrics);
    assert_eq!(metrics.get("kl"), Some(0.0));
    assert!(matches!(found[1][0], Some(Signal::Labelled { desirable: false, .. })), "{found:?}");
}
