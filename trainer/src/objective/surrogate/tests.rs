//! Values and gradients worked in f64 with `PyTorch`, and the laws of the family.

use super::super::testing::{check, check_slice, device, f64s, full_rows, gradient, numeric_gradient, values};
use super::super::{Aggregation, Denominator};
use super::*;
use tch::Kind;

fn logs(probabilities: &[f64]) -> Vec<f64> {
    probabilities.iter().map(|probability| probability.ln()).collect()
}

/// Token losses and their gradient if the proximal policy sampled the tokens.
fn on_policy(settings: Surrogate, policy: &[f64], proximal: &[f64], advantages: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (proximal, advantages) = (f64s(proximal), f64s(advantages));
    let rows = full_rows(&[policy.len()]);
    let losses = |policy: &Tensor| {
        let logprobs = LogProbs { policy, proximal: &proximal, behaviour: &proximal };
        settings.token_losses(logprobs, &advantages, &rows).losses
    };
    (values(&losses(&f64s(policy))), gradient(policy, losses))
}

#[test]
fn asymmetric_ppo_clip() {
    let ratios = [0.5, 0.7, 0.8, 1.0, 1.1, 1.2, 1.25, 1.5, 4.0];
    let settings = Surrogate { clip: Clip::Ratio { low: 0.2, high: 0.28 }, ..Surrogate::default() };
    let run = |settings, advantage: f64| on_policy(settings, &logs(&ratios), &[0.0; 9], &[advantage; 9]);

    let (losses, slope) = run(settings, 1.0);
    check_slice(&losses, &[-0.5, -0.7, -0.8, -1.0, -1.1, -1.2, -1.25, -1.28, -1.28]);
    check_slice(&slope, &[-0.5, -0.7, -0.8, -1.0, -1.1, -1.2, -1.25, 0.0, 0.0]);

    let (losses, slope) = run(settings, -1.0);
    check_slice(&losses, &[0.8, 0.8, 0.8, 1.0, 1.1, 1.2, 1.25, 1.5, 4.0]);
    // At a ratio of exactly 0.8 the two branches tie, so that entry is left out.
    check_slice(&slope[..2], &[0.0, 0.0]);
    check_slice(&slope[3..], &[1.0, 1.1, 1.2, 1.25, 1.5, 4.0]);

    let (losses, slope) = run(Surrogate { dual_clip: Some(3.0), ..settings }, -1.0);
    check_slice(&losses[7..], &[1.5, 3.0]);
    check_slice(&slope[7..], &[1.5, 0.0]);

    // delta caps the unclipped branch at a ratio of 2; positive advantages were clipped at 1.28 already.
    let (losses, slope) = run(Surrogate { delta: Some(2.0), ..settings }, -1.0);
    check_slice(&losses[7..], &[1.5, 2.0]);
    check_slice(&slope[7..], &[1.5, 0.0]);
}

#[test]
fn clip_flags_follow_the_sign_of_the_advantage() {
    let rows = full_rows(&[4]);
    let (policy, zero) = (f64s(&logs(&[0.5, 0.5, 1.5, 1.5])), f64s(&[0.0; 4]));
    let logprobs = LogProbs { policy: &policy, proximal: &zero, behaviour: &zero };
    let losses = Surrogate::default().token_losses(logprobs, &f64s(&[1.0, -1.0, 1.0, -1.0]), &rows);
    check(&losses.clipped_low.to_kind(Kind::Double), &[0.0, 1.0, 0.0, 0.0]);
    check(&losses.clipped_high.to_kind(Kind::Double), &[0.0, 0.0, 1.0, 0.0]);
}

const OLD: [f64; 5] = [-1.0, -2.0, -1.5, -0.5, -1.0];
const NEW: [f64; 5] = [-0.9, -2.1, -1.2, -0.6, -1.3];
const ADVANTAGES: [f64; 5] = [1.0, 1.0, 1.0, -1.0, -1.0];

/// The aggregated loss over sequences of three and two tokens, its gradient, and the ratios.
fn pair(settings: Surrogate, mode: Aggregation, old: &[f64]) -> (f64, Vec<f64>, Vec<f64>) {
    let rows = full_rows(&[3, 2]);
    let (old, advantages) = (f64s(old), f64s(&ADVANTAGES));
    let denominator = Denominator::of(mode, rows.trained_per_sequence());
    let run = |policy: &Tensor| {
        settings.token_losses(LogProbs { policy, proximal: &old, behaviour: &old }, &advantages, &rows)
    };
    let loss = |policy: &Tensor| denominator.aggregate(&run(policy).losses, &rows);
    (loss(&f64s(&NEW)).double_value(&[]), gradient(&NEW, loss), values(&run(&f64s(&NEW)).ratio))
}

#[test]
fn gspo_and_gspo_token_agree_on_constant_advantages() {
    let slope = [-0.184_195_15, -0.184_195_15, -0.184_195_15, 0.204_682_69, 0.204_682_69];
    for level in [Level::SequenceMean, Level::SequenceMeanToken] {
        let settings = |low, high| Surrogate { level, clip: Clip::Ratio { low, high }, ..Surrogate::default() };
        let (loss, gradient, ratio) = pair(settings(3e-4, 4e-4), Aggregation::SequenceMeanTokenMean, &OLD);
        check_slice(&[loss], &[-0.00035]);
        check_slice(&gradient, &[0.0; 5]);
        check_slice(&ratio, &[1.105_170_9, 1.105_170_9, 1.105_170_9, 0.818_730_75, 0.818_730_75]);

        let (loss, gradient, _) = pair(settings(0.2, 0.2), Aggregation::SequenceMeanTokenMean, &OLD);
        check_slice(&[loss], &[-0.143_220_08]);
        check_slice(&gradient, &slope);
    }
}

#[test]
fn rloo_uses_the_product_of_the_ratios() {
    // Sums of log-ratios: 0.3 and -0.4. exp(0.3) = 1.35 is clipped to 1.2; exp(-0.4) = 0.67 with A = -1 to 0.8.
    let settings = Surrogate { level: Level::SequenceSum, ..Surrogate::default() };
    let (loss, gradient, ratio) = pair(settings, Aggregation::SequenceMeanTokenMean, &OLD);
    check_slice(&[ratio[0], ratio[4]], &[0.3_f64.exp(), (-0.4_f64).exp()]);
    check_slice(&[loss], &[-0.2]);
    check_slice(&gradient, &[0.0; 5]);
}

#[test]
fn cispo_keeps_the_gradient_of_every_token() {
    let verl = Surrogate { clip: Clip::Weight { floor: -9.0, cap: 1.2 }, ..Surrogate::default() };
    let (loss, gradient, ratio) = pair(verl, Aggregation::TokenMean, &OLD);
    check_slice(&ratio, &[1.105_170_9, 0.904_837_42, 1.349_858_8, 0.904_837_42, 0.740_818_22]);
    check_slice(&[loss], &[0.565_769_25]);
    check_slice(&gradient, &[-0.221_034_18, -0.180_967_48, -0.24, 0.180_967_48, 0.148_163_64]);

    let trl = Surrogate { clip: Clip::Weight { floor: 0.0, cap: 5.0 }, ..Surrogate::default() };
    let (loss, gradient, _) = pair(trl, Aggregation::TokenMean, &[-3.0, -2.0, -1.5, -0.5, -1.0]);
    check_slice(&[loss], &[1.302_804_6]);
    check_slice(&gradient[..3], &[-1.0, -0.180_967_48, -0.269_971_76]);
}

const BEHAVIOUR: [f64; 8] = [0.10, 0.10, 0.10, 0.10, 0.40, 0.40, 0.05, 0.20];
const PROXIMAL: [f64; 8] = [0.10, 0.15, 0.15, 0.15, 0.30, 0.30, 0.10, 0.01];
const POLICY: [f64; 8] = [0.14, 0.15, 0.18, 0.10, 0.20, 0.36, 0.11, 0.03];
const MIXED_ADVANTAGES: [f64; 8] = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 2.0, 1.0];

fn off_policy(settings: Surrogate, weights: Option<&Tensor>) -> (Vec<f64>, Vec<f64>) {
    let rows = full_rows(&[8]);
    let (proximal, behaviour) = (f64s(&logs(&PROXIMAL)), f64s(&logs(&BEHAVIOUR)));
    let losses = |policy: &Tensor| {
        let logprobs = LogProbs { policy, proximal: &proximal, behaviour: &behaviour };
        let losses = settings.token_losses(logprobs, &f64s(&MIXED_ADVANTAGES), &rows).losses;
        weights.map_or_else(|| losses.shallow_clone(), |weights| &losses * weights)
    };
    (values(&losses(&f64s(&logs(&POLICY)))), gradient(&logs(&POLICY), losses))
}

#[test]
fn mix_ppg_clips_around_the_proximal_policy() {
    let settings = Surrogate {
        ratio_reference: RatioReference::Behaviour,
        clip: Clip::Centred { epsilon: 0.2 },
        ..Surrogate::default()
    };
    let (losses, slope) = off_policy(settings, None);
    check_slice(&losses, &[-1.2, -1.5, -1.7, 1.3, 0.55, 0.9, -4.4, -0.15]);
    check_slice(&[losses.iter().sum::<f64>() / 8.0], &[-0.775]);
    // Row 7 sits on its bound, where the gradient is the implementation's choice.
    check_slice(&slope[..6], &[0.0, -1.5, 0.0, 0.0, 0.0, 0.9]);
    check_slice(&slope[7..], &[-0.15]);
}

#[test]
fn decoupled_ppo_clips_multiplicatively() {
    let weights = f64s(&logs(&PROXIMAL)) - f64s(&logs(&BEHAVIOUR));
    let (losses, slope) = off_policy(Surrogate::default(), Some(&weights.exp()));
    check_slice(&losses, &[-1.2, -1.5, -1.8, 1.2, 0.6, 0.9, -4.4, -0.06]);
    check_slice(&slope[..2], &[0.0, -1.5]);
    check_slice(&slope[3..], &[0.0, 0.0, 0.9, -4.4, 0.0]);
}

#[test]
fn naive_ppo_clips_around_the_behaviour_policy() {
    let (losses, slope) =
        off_policy(Surrogate { ratio_reference: RatioReference::Behaviour, ..Surrogate::default() }, None);
    check_slice(&losses, &[-1.2, -1.2, -1.2, 1.0, 0.8, 0.9, -2.4, -0.15]);
    check_slice(&slope, &[0.0, 0.0, 0.0, 1.0, 0.0, 0.9, 0.0, -0.15]);
}

#[test]
fn a_remix_batch_with_its_convex_penalty() {
    let rows = full_rows(&[4]);
    let at = |probabilities: &[f64]| f64s(&logs(probabilities));
    let (behaviour, proximal) = (at(&[0.2, 0.5, 0.1, 0.4]), at(&[0.2, 0.5, 0.15, 0.3]));
    let policy = at(&[0.25, 0.45, 0.2, 0.2]);
    let (base, previous) = (at(&[0.2, 0.4, 0.1, 0.4]), at(&[0.2, 0.5, 0.12, 0.33]));
    let settings = Surrogate {
        ratio_reference: RatioReference::Behaviour,
        clip: Clip::Centred { epsilon: 0.2 },
        ..Surrogate::default()
    };
    let logprobs = LogProbs { policy: &policy, proximal: &proximal, behaviour: &behaviour };
    let losses = settings.token_losses(logprobs, &f64s(&[1.0, 1.0, 1.0, -1.0]), &rows).losses;
    check(&losses, &[-1.2, -0.9, -1.7, 0.55]);

    let pull = |coefficient, reference| KlPenalty { coefficient, estimator: KlEstimator::K3, reference };
    let convex = [pull(0.7, &base), pull(0.3, &previous)];
    let penalty = penalised(&losses.zeros_like(), &policy, &convex, None, &rows);
    check(&penalty, &[0.023_143_551, 0.006_395_525_8, 0.168_450_71, 0.259_564_39]);

    let scaled = [pull(0.07, &base), pull(0.03, &previous)];
    let total = Denominator::of(Aggregation::TokenMean, rows.trained_per_sequence())
        .aggregate(&penalised(&losses, &policy, &scaled, None, &rows), &rows);
    check(&total, &[-0.801_061_15]);
}

#[test]
fn a_penalty_is_added_and_a_bonus_subtracted() {
    let rows = full_rows(&[1]);
    let (loss, policy, reference, entropy) = (f64s(&[1.0]), f64s(&[-1.0]), f64s(&[-1.2]), f64s(&[0.6]));
    let kl = KlPenalty { coefficient: 0.5, estimator: KlEstimator::K1, reference: &reference };
    let bonus = EntropyBonus { coefficient: 0.1, entropy: &entropy };
    check(&penalised(&loss, &policy, &[kl], Some(bonus), &rows), &[1.0 + 0.5 * 0.2 - 0.1 * 0.6]);
}

/// Every combination of level, reference of the ratio and clip that a method uses, with the caps on.
fn all_settings() -> Vec<Surrogate> {
    let clips = [
        Clip::None,
        Clip::Ratio { low: 0.2, high: 0.28 },
        Clip::Centred { epsilon: 0.2 },
        Clip::Weight { floor: 0.0, cap: 1.2 },
    ];
    let mut all = Vec::new();
    for level in [Level::Token, Level::SequenceMean, Level::SequenceSum] {
        for ratio_reference in [RatioReference::Proximal, RatioReference::Behaviour] {
            for clip in clips {
                all.push(Surrogate { level, ratio_reference, clip, ..Surrogate::default() });
                all.push(Surrogate { level, ratio_reference, clip, dual_clip: Some(3.0), delta: Some(4.0) });
            }
        }
    }
    all
}

/// Numbers with no two alike and no ratio on a bound.
const BEHAVIOUR_LOGPROBS: [f64; 6] = [-0.7, -1.9, -0.33, -2.4, -1.05, -0.61];
const PROXIMAL_LOGPROBS: [f64; 6] = [-0.78, -1.77, -0.41, -2.21, -1.13, -0.57];
const POLICY_LOGPROBS: [f64; 6] = [-0.63, -1.98, -0.47, -2.02, -1.31, -0.49];
const CREDIT: [f64; 6] = [0.9, 0.9, -1.3, -1.3, -1.3, 0.4];

fn total(settings: Surrogate, policy: &Tensor, rows: &Rows) -> Tensor {
    let (proximal, behaviour) = (f64s(&PROXIMAL_LOGPROBS), f64s(&BEHAVIOUR_LOGPROBS));
    let logprobs = LogProbs { policy, proximal: &proximal, behaviour: &behaviour };
    let losses = settings.token_losses(logprobs, &f64s(&CREDIT), rows).losses;
    Denominator::of(Aggregation::SequenceMeanTokenMean, rows.trained_per_sequence()).aggregate(&losses, rows)
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let rows = full_rows(&[2, 3, 1]);
    for settings in all_settings().into_iter().filter(|settings| !matches!(settings.clip, Clip::Weight { .. })) {
        let loss = |policy: &Tensor| total(settings, policy, &rows);
        check_slice(&gradient(&POLICY_LOGPROBS, loss), &numeric_gradient(&POLICY_LOGPROBS, loss));
    }
}

#[test]
fn no_credit_gives_no_loss_and_no_gradient() {
    let rows = full_rows(&[2, 3, 1]);
    let proximal = f64s(&PROXIMAL_LOGPROBS);
    for settings in all_settings() {
        let loss = |policy: &Tensor| {
            let logprobs = LogProbs { policy, proximal: &proximal, behaviour: &proximal };
            settings.token_losses(logprobs, &f64s(&[0.0; 6]), &rows).losses
        };
        assert_eq!(values(&loss(&f64s(&POLICY_LOGPROBS))), [0.0; 6]);
        assert_eq!(gradient(&POLICY_LOGPROBS, loss), [0.0; 6], "{settings:?}");
    }
}

#[test]
fn an_unmoved_policy_has_ratio_one_and_meets_no_clip() {
    let rows = full_rows(&[2, 3, 1]);
    let policy = f64s(&POLICY_LOGPROBS);
    for settings in all_settings() {
        let logprobs = LogProbs { policy: &policy, proximal: &policy, behaviour: &policy };
        let result = settings.token_losses(logprobs, &f64s(&CREDIT), &rows);
        assert_eq!(values(&result.ratio), [1.0; 6]);
        assert_eq!(values(&(result.clipped_low.logical_or(&result.clipped_high)).to_kind(Kind::Double)), [0.0; 6]);
        if !matches!(settings.clip, Clip::Weight { .. }) {
            check(&result.losses, &CREDIT.map(|credit| -credit));
        }
    }
}

#[test]
fn masked_tokens_get_no_gradient_even_if_nan() {
    let mask = [true, false, true, true, false, true];
    let rows = Rows::new(&[2, 3, 1], &mask, device()).unwrap();
    let poisoned: Vec<f64> =
        POLICY_LOGPROBS.iter().zip(mask).map(|(x, kept)| if kept { *x } else { f64::NAN }).collect();
    let nan = f64s(&poisoned);
    for settings in all_settings() {
        let loss = |policy: &Tensor| {
            let logprobs = LogProbs { policy, proximal: &nan, behaviour: &nan };
            let losses = settings.token_losses(logprobs, &nan, &rows).losses;
            let kl = KlPenalty { coefficient: 0.1, estimator: KlEstimator::K3, reference: &nan };
            let bonus = EntropyBonus { coefficient: 0.1, entropy: policy };
            let losses = penalised(&losses, policy, &[kl], Some(bonus), &rows);
            Denominator::of(Aggregation::TokenMean, rows.trained_per_sequence()).aggregate(&losses, &rows)
        };
        let slope = gradient(&poisoned, loss);
        assert_eq!([slope[1], slope[4]], [0.0; 2], "{settings:?}");
        assert!(slope.iter().all(|entry| entry.is_finite()), "{settings:?} {slope:?}");
        assert!(slope[0] != 0.0);
    }
}

#[test]
fn an_absurd_log_ratio_does_not_overflow() {
    for level in [Level::Token, Level::SequenceMean, Level::SequenceSum] {
        let settings = Surrogate { level, ..Surrogate::default() };
        let (losses, slope) = on_policy(settings, &[-0.1, -0.1], &[-1000.0, -1000.0], &[-1.0, -1.0]);
        check_slice(&losses.iter().map(|loss| loss / 20.0_f64.exp()).collect::<Vec<_>>(), &[1.0, 1.0]);
        assert_eq!(slope, [0.0, 0.0]);
    }
}

#[test]
fn single_precision_gives_the_same_numbers() {
    let rows = full_rows(&[2, 3, 1]);
    for settings in all_settings() {
        let single = |x: &[f64]| f64s(x).to_kind(Kind::Float);
        let (policy, proximal) = (single(&POLICY_LOGPROBS), single(&PROXIMAL_LOGPROBS));
        let behaviour = single(&BEHAVIOUR_LOGPROBS);
        let logprobs = LogProbs { policy: &policy, proximal: &proximal, behaviour: &behaviour };
        let losses = settings.token_losses(logprobs, &single(&CREDIT), &rows).losses;
        assert_eq!(losses.kind(), Kind::Float);
        let double = total(settings, &f64s(&POLICY_LOGPROBS), &rows).double_value(&[]);
        let aggregated = Denominator::of(Aggregation::SequenceMeanTokenMean, rows.trained_per_sequence())
            .aggregate(&losses, &rows)
            .double_value(&[]);
        assert!((aggregated - double).abs() < 1e-5, "{settings:?}: {aggregated} {double}");
    }
}
