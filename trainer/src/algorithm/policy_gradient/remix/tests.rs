//! Worked examples, and what the loop sees of the two stages.

use super::*;
use crate::batch::{BatchSignal, Signal};
use crate::collected::Collected;
use crate::companion::ByRole;
use crate::objective::{Aggregation, Rows};
use crate::testing::scored;
use model::device::HOST;
use model::packed::{Packed, Sequences};

fn logs(probabilities: &[f64]) -> Tensor {
    Tensor::from_slice(&probabilities.iter().map(|p| p.ln()).collect::<Vec<f64>>())
}

/// Four tokens of four completions: two fresh ones and two old ones.
fn batch(proximal: &[f64], reference: &[f64], previous: &[f64]) -> Batch {
    let sequences = Sequences { prompt: &[1], completions: vec![&[2], &[3], &[4], &[5]] };
    let rows = Rows::new(&[1; 4], &[true; 4], HOST).unwrap();
    Batch {
        packed: Packed::new(&[sequences], 10, HOST).unwrap(),
        units: std::iter::once(0..4).collect(),
        signal: BatchSignal::Advantages { advantages: Tensor::from_slice(&[1.0f64, 1.0, 1.0, -1.0]), returns: None },
        behaviour_logprobs: Some(logs(&[0.2, 0.5, 0.1, 0.4])),
        proximal_logprobs: Some(logs(proximal)),
        companion_logprobs: [(Role::Reference, logs(reference)), (Role::Previous, logs(previous))]
            .into_iter()
            .collect(),
        old_values: None,
        denominator: Denominator::of(Aggregation::TokenMean, rows.trained_per_sequence()),
        rows,
    }
}

const POLICY: [f64; 4] = [0.25, 0.45, 0.2, 0.2];

/// A step of a run that never reincarnates.
fn remix(kl: ConvexKl, kl_coefficient: f64, step: u64) -> Reincarnating {
    let settings = Remix { kl, kl_coefficient, reincarnate_after: 0, ..Remix::default() };
    Reincarnating { step, ..settings.checked().unwrap() }
}

fn loss(remix: &Reincarnating, sums: &mut MetricSums) -> f64 {
    let batch = batch(&[0.2, 0.5, 0.15, 0.3], &[0.2, 0.4, 0.1, 0.4], &[0.2, 0.5, 0.12, 0.33]);
    let policy = logs(&POLICY);
    let outputs = Outputs::of(&policy);
    remix.loss(&batch, outputs, sums).double_value(&[])
}

#[test]
fn a_whole_minibatch_by_hand() {
    // Surrogates −1.2, −0.9, −1.7 and 0.55; in step 75 λ is 0.7.
    let mut sums = MetricSums::new();
    assert!((loss(&remix(ConvexKl::K3, 0.1, 75), &mut sums) - -0.801_061_15).abs() < 1e-6);
    assert!((loss(&remix(ConvexKl::K3, 0.0, 75), &mut MetricSums::new()) - -3.25 / 4.0).abs() < 1e-6);
    // Each completion has one token, which is its first quarter: ratios 1.25, 0.9, 2 and 0.5.
    assert!((sums.mean("ratio/first_quarter_mean").unwrap() - 4.65 / 4.0).abs() < 1e-6);
    assert_eq!(sums.mean("ratio/last_quarter_mean"), None);
}

#[test]
fn a_weighted_estimate_counts_each_token_by_its_ratio_up_to_two() {
    // The mixed divergences of the four tokens, times ratios 1.25, 0.9, 2 and 0.5.
    let mixed = [0.023_143_551, 0.006_395_525_8, 0.168_450_71, 0.259_564_39];
    let weighted: f64 = mixed.iter().zip([1.25, 0.9, 2.0, 0.5]).map(|(kl, ratio)| kl * ratio).sum();
    let expected = (-3.25 + 0.1 * weighted) / 4.0;
    assert!((loss(&remix(ConvexKl::WeightedK3, 0.1, 75), &mut MetricSums::new()) - expected).abs() < 1e-6);
}

#[test]
fn the_exact_divergences_are_mixed_by_lambda() {
    let remix = remix(ConvexKl::Exact, 0.1, 75);
    let batch = batch(&POLICY, &POLICY, &POLICY);
    let (policy, far, near) = (logs(&POLICY), logs(&[1.0; 4]) + 0.4, logs(&[1.0; 4]) + 0.2);
    let kl = |divergences: &[(Role, &Tensor)]| {
        let divergences: ByRole<&Tensor> = divergences.iter().copied().collect();
        let outputs = Outputs { divergences, ..Outputs::of(&policy) };
        remix.convex_kl(&batch, outputs, &mut MetricSums::new()).unwrap().double_value(&[0])
    };
    let (reference, previous) = ((Role::Reference, &far), (Role::Previous, &near));
    assert!((kl(&[reference, previous]) - (0.7 * 0.4 + 0.3 * 0.2)).abs() < 1e-12);
    assert!((kl(&[reference]) - 0.4).abs() < 1e-12);
}

#[test]
fn lambda_falls_from_one_to_a_half() {
    let lambda = LambdaSchedule::default();
    for (step, expected) in
        [(1, 1.0), (50, 1.0), (51, 0.9), (60, 0.9), (61, 0.8), (70, 0.8), (71, 0.7), (80, 0.7), (81, 0.6), (90, 0.6)]
    {
        assert!((lambda.at(step) - expected).abs() < 1e-12, "step {step}");
    }
    assert!([91, 100, 500].iter().all(|step| lambda.at(*step) == 0.5));
}

/// One flag for each of these steps, `true` if it renews the reference.
fn renewals(remix: &mut Reincarnating, steps: std::ops::RangeInclusive<u64>) -> Vec<bool> {
    let config = crate::testing::tiny_run(crate::algorithm::Config::default(), &[]);
    let policy = model::Policy::load(&config.model, &schema::Seed::new(1)).unwrap();
    let companions = std::iter::once((Role::Reference, policy.adapter().copy())).collect();
    let last_step = *steps.end();
    let mut changes = |step| {
        remix.begin_step(step);
        let end = StepEnd { step, last_step, policy: &policy, companions: &companions, loss: &|| Ok(0.0) };
        let changes = remix.end_step(&end).unwrap().companions;
        remix.finish_step(&mut Metrics::new(), 1);
        changes
    };
    steps.map(|step| changes(step).iter().any(|(role, _)| *role == Role::Reference)).collect()
}

#[test]
fn the_reincarnation_ends_replay_and_renews_the_reference_once() {
    let mut remix = Remix { reincarnate_after: 3, ..Remix::default() }.checked().unwrap();
    let schedules: Vec<Schedule> = (1..=6).map(|step| remix.schedule(step)).collect();
    assert!(schedules[..3].iter().all(|schedule| schedule.replay.is_some() && schedule.epochs == 2));
    assert!(schedules[3..].iter().all(|schedule| schedule.replay.is_none() && schedule.epochs == 1));
    assert_eq!(remix.schedule(50).idle, [Role::Previous]);
    assert!(remix.schedule(51).idle.is_empty());
    let saved = remix.state();
    assert_eq!(renewals(&mut remix, 1..=6), [false, false, true, false, false, false]);
    assert_eq!(remix.gradient().surrogate, Surrogate::default());
    // Rolled back to the beginning after step 6: the stage and λ are those of the step, and the reference, which went
    // back too, is renewed anew, once.
    remix.restore(&saved).unwrap();
    assert_eq!(renewals(&mut remix, 7..=8), [true, false]);
    assert_eq!(remix.gradient().surrogate, Surrogate::default());
    assert_eq!(remix.lambda(), 1.0);
    remix.begin_step(75);
    assert!((remix.lambda() - 0.7).abs() < 1e-12);
}

#[test]
fn a_checkpoint_with_a_count_of_steps_is_read() {
    for (finished, renews) in [(2, [false, true]), (3, [true, false]), (4, [false, false])] {
        let mut remix = Remix { reincarnate_after: 4, ..Remix::default() }.checked().unwrap();
        remix.restore(&json!({"finished": finished, "base": null})).unwrap();
        let first = finished + 1;
        assert_eq!(renewals(&mut remix, first..=first + 1), renews, "after {finished}");
    }
}

#[test]
fn samples_drawn_in_the_accounting_of_the_paper() {
    // 256 prompts a step, p = 0.4, T = 50: 50 steps at 153.6 and 50 at 256.
    let remix = Remix::default().checked().unwrap();
    let fresh = |step| 256.0 * (1.0 - remix.schedule(step).replay.map_or(0.0, |replay| replay.share));
    assert!(((1..=100).map(fresh).sum::<f64>() - 20_480.0).abs() < 1e-6);
    assert!(((1..=350).map(fresh).sum::<f64>() - 84_480.0).abs() < 1e-6);
}

#[test]
fn samples_that_the_policy_has_left_behind_are_dropped_and_counted() {
    let groups = scored(&[&[1.0, 0.0, 1.0, 0.0]]);
    let samples = &groups[0].group().samples;
    // Mean log-ratios 0, 0.6 and 0; the last sample has a token of ratio e^3.1 and one of e^-3.1.
    let shifts: [&[f32]; 4] = [&[0.0], &[0.6, 0.6], &[0.0; 3], &[3.1, -3.1, 0.0, 0.0]];
    let shifted = |sample: &Sample, shifts: &[f32]| SequenceLogprobs {
        policy: sample.logprobs.iter().zip(shifts).map(|(logprob, shift)| logprob + shift).collect(),
        ..SequenceLogprobs::default()
    };
    let scores = [samples.iter().zip(shifts).map(|(sample, shifts)| shifted(sample, shifts)).collect::<Vec<_>>()];
    let mut metrics = Metrics::new();
    let collected = Collected::Groups(groups.clone());
    let units = collected.units();
    let evidence = Evidence { collected: &collected, units: &units, logprobs: Some(&scores) };
    let credits = Remix::default().checked().unwrap().signals(&evidence, &mut metrics);
    let kept: Vec<bool> = credits[0].iter().map(Option::is_some).collect();
    assert_eq!(kept, [true, false, true, false]);
    assert_eq!(metrics.get("replay/samples_dropped"), Some(2.0));
    // Wider limits keep them all.
    let mut metrics = Metrics::new();
    let wide = Remix { max_mean_log_ratio: 10.0, max_ratio: 1000.0, ..Remix::default() };
    let wide = wide.checked().unwrap().signals(&evidence, &mut metrics);
    assert!(wide[0].iter().all(Option::is_some) && metrics.get("replay/samples_dropped") == Some(0.0));
    // Those that stay keep the credit of the whole group: 0.5 over the deviation 0.577 of (1, 0, 1, 0).
    assert_eq!(credits[0][0], Some(Signal::Advantage(0.5 / ((1.0f64 / 3.0).sqrt() + 1e-4))));
}

#[test]
fn quarters_of_sequences() {
    assert_eq!(quarters(&[0, 0, 0, 0, 1, 1, 2]), [0, 1, 2, 3, 0, 2, 0]);
}

#[test]
fn what_remix_does_itself_is_refused_in_its_base() {
    let base = |grpo| Remix { base: Base::Grpo(grpo), ..Remix::default() }.checked().err().unwrap().to_string();
    assert!(base(Grpo { kl_coefficient: 0.1, ..Grpo::default() }).contains("algorithm.remix.kl_coefficient"));
    let correction = RolloutCorrection::TokenTruncate { cap: 2.0 };
    assert!(base(Grpo { rollout_correction: correction, ..Grpo::default() }).contains("rollout_correction"));
    assert!(Remix { replay_share: 1.0, ..Remix::default() }.checked().err().unwrap().is_input());
}
