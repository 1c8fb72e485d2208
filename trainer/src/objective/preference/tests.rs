//! Each loss at one pair: `p_c = −12, p_r = −15, r_c = −13, r_r = −14.5`, so `h = 1.5`, with 10 and 12 tokens; values
//! and gradients were worked in f64 with `PyTorch`.

use super::super::testing::{check, check_slice, f64s, gradient, numeric_gradient};
use super::*;

type Loss = fn(&PairLogprobs) -> Tensor;

fn pair(chosen: &Tensor, rejected: &Tensor) -> PairLogprobs {
    PairLogprobs {
        chosen: chosen.shallow_clone(),
        rejected: rejected.shallow_clone(),
        chosen_reference: f64s(&[-13.0]),
        rejected_reference: f64s(&[-14.5]),
        chosen_tokens: f64s(&[10.0]),
        rejected_tokens: f64s(&[12.0]),
    }
}

fn ratio_loss(scores: &PairLogprobs, loss: fn(&Tensor, &Tensor, f64) -> Tensor) -> Tensor {
    loss(&scores.chosen_ratio(), &scores.rejected_ratio(), 0.1)
}

/// SPPO's soft targets `(P − ½)/β` for win rates 0.8 and 0.25.
fn soft(scores: &PairLogprobs, beta: f64) -> Tensor {
    let target = |win_rate: f64| f64s(&[(win_rate - 0.5) / beta]);
    self_play(&scores.chosen_ratio(), &scores.rejected_ratio(), &target(0.8), &target(0.25))
}

const CASES: &[(&str, Loss, f64, f64, f64)] = &[
    ("DPO", |s| sigmoid(&s.ratio_margin(), 0.1, LabelNoise::None), 0.620_957_047_8, -0.046_257_015_5, 0.046_257_015_5),
    ("IPO", |s| squared(&s.ratio_margin(), &f64s(&[1.0]), 0.1), 12.25, -7.0, 7.0),
    (
        "IPO, means over tokens",
        |s| squared(&s.mean_ratio_margin(), &f64s(&[1.0]), 0.1),
        23.603_402_777_8,
        -0.971_666_666_7,
        0.809_722_222_2,
    ),
    (
        "conservative DPO",
        |s| sigmoid(&s.ratio_margin(), 0.1, LabelNoise::Smooth(0.1)),
        0.635_957_047_8,
        -0.036_257_015_5,
        0.036_257_015_5,
    ),
    (
        "robust DPO",
        |s| sigmoid(&s.ratio_margin(), 0.1, LabelNoise::Robust(0.1)),
        0.602_207_047_8,
        -0.058_757_015_5,
        0.058_757_015_5,
    ),
    ("hinge", |s| hinge(&s.ratio_margin(), 0.1), 0.85, -0.1, 0.1),
    (
        "SPPO, hard",
        // TRL's hard form has no factor ½.
        |s| self_play(&s.chosen_ratio(), &s.rejected_ratio(), &f64s(&[5.0]), &f64s(&[-5.0])) * 2.0,
        36.25,
        -8.0,
        9.0,
    ),
    ("SPPO, soft, β = 0.001", |s| soft(s, 0.001), 75_825.625, -299.0, 249.5),
    ("SPPO, soft, β = 0.1", |s| soft(s, 0.1), 4.0, -2.0, 2.0),
    (
        "SimPO, β = 2.5, γ = 1.375",
        |s| margin(&s.chosen_mean(), &s.rejected_mean(), 2.5, 1.375),
        1.501_929_081_3,
        -0.194_324_965_3,
        0.161_937_471_1,
    ),
    (
        "SimPO, β = 2, γ = 0.5",
        |s| margin(&s.chosen_mean(), &s.rejected_mean(), 2.0, 0.5),
        0.913_015_252_4,
        -0.119_737_532_0,
        0.099_781_276_7,
    ),
    ("CPO", |s| margin(&s.chosen, &s.rejected, 0.1, 0.0), 0.554_355_244_5, -0.042_555_748_3, 0.042_555_748_3),
    (
        "ORPO, λ = 0.1",
        |s| odds_ratio(&s.chosen_mean(), &s.rejected_mean()) * 0.1,
        0.065_837_225_4,
        -0.006_901_870_1,
        0.005_633_145_5,
    ),
    (
        "KTO, desirable",
        |s| prospect(&s.chosen_ratio(), &f64s(&[1.0]), &f64s(&[0.4]), 0.1),
        0.485_004_498_4,
        -0.024_977_513_5,
        0.0,
    ),
    (
        "KTO, undesirable",
        |s| prospect(&s.rejected_ratio(), &f64s(&[-1.0]), &f64s(&[0.4]), 0.1),
        0.477_515_175_2,
        0.0,
        0.024_949_443_3,
    ),
    (
        "XPO, α = 1e-5, the reference's sample lost",
        |s| sigmoid(&s.ratio_margin(), 0.1, LabelNoise::None) + &s.rejected * 1e-5,
        0.620_807_047_8,
        -0.046_257_015_5,
        0.046_267_015_5,
    ),
    ("Anchored, zero", |s| ratio_loss(s, anchored_zero), 0.962_523_416_0, -0.024_937_604_0, 0.024_984_381_5),
    ("Anchored, down", |s| ratio_loss(s, anchored_down), 0.987_549_342_1, 0.000_077_703_4, 0.024_859_900_7),
];

#[test]
fn losses_and_gradients_are_those_worked_out() {
    for (name, loss, value, by_chosen, by_rejected) in CASES {
        let chosen = |x: &Tensor| loss(&pair(x, &f64s(&[-15.0])));
        let rejected = |x: &Tensor| loss(&pair(&f64s(&[-12.0]), x));
        check(&chosen(&f64s(&[-12.0])), &[*value]);
        // A loss that does not read a completion has no graph through it; adding nothing gives it one.
        let slopes = [gradient(&[-12.0], |x| chosen(x) + x * 0.0)[0], gradient(&[-15.0], |x| rejected(x) + x * 0.0)[0]];
        check_slice(&slopes, &[*by_chosen, *by_rejected]);
        let numeric = [numeric_gradient(&[-12.0], chosen)[0], numeric_gradient(&[-15.0], rejected)[0]];
        // Differences of the large loss, 75825, have only so many digits.
        let tolerance = 1e-7 * value.abs().max(1.0);
        assert!(slopes.iter().zip(&numeric).all(|(a, n)| (a - n).abs() < tolerance), "{name}: {slopes:?} {numeric:?}");
    }
}

#[test]
fn the_log_odds_ratio_is_that_of_probabilities() {
    check(&log_odds_ratio(&f64s(&[-1.2]), &f64s(&[-1.25])), &[0.070_802_852_8]);
    // Odds of 0.8 are 4 and of 0.2 are ¼, on either side of −ln 2: their ratio is 16.
    check(&log_odds_ratio(&f64s(&[0.8f64.ln()]), &f64s(&[0.2f64.ln()])), &[16f64.ln()]);
}

#[test]
fn certainty_and_impossibility_stay_finite() {
    for a in [0.0, -1e-9, -1e-3, -50.0, -1000.0] {
        let slope = gradient(&[a], |x| odds_ratio(x, &f64s(&[-1.0])) + odds_ratio(&f64s(&[-1.0]), x));
        assert!(slope[0].is_finite(), "{a}: {slope:?}");
    }
    for h in [-1e4, 1e4] {
        for noise in [LabelNoise::None, LabelNoise::Smooth(0.2), LabelNoise::Robust(0.2)] {
            assert!(gradient(&[h], |h| sigmoid(h, 1.0, noise))[0].is_finite());
        }
    }
}

#[test]
fn a_squared_loss_over_own_samples_climbs_the_regularised_preference() {
    // E_{y,y′∼π} (h − h′ − (P − ½)/β)² with the pair's policy held, on the laboratory's game at logits (0.2, −0.3, 0.1):
    // value and gradient as PyTorch gave them, and 4/β times the gradient of β KL(π ‖ ref) − P(π ≻ stopped π).
    let beta = 0.1;
    let wins = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]];
    let logits = [0.2, -0.3, 0.1];
    let policy = f64s(&logits).softmax(0, tch::Kind::Double);
    let reference = f64s(&[0.5, 0.3, 0.2]).log();
    let loss = |logits: &Tensor| {
        let ratio = logits.log_softmax(0, tch::Kind::Double) - &reference;
        let terms = (0..3).flat_map(|y| (0..3).map(move |other| (y, other))).map(|(y, other)| {
            let h = ratio.get(y) - ratio.get(other);
            let win_rate = Tensor::from(wins[y as usize][other as usize]);
            squared(&h, &win_rate, beta) * policy.get(y) * policy.get(other)
        });
        Tensor::stack(&terms.collect::<Vec<_>>(), 0).sum(None)
    };
    check(&loss(&f64s(&logits)), &[6.982_604_307_6]);
    let slope = gradient(&logits, loss);
    check_slice(&slope, &[-0.289_702_905_2, 0.218_301_466_6, 0.071_401_438_7]);
    check_slice(&slope, &[-0.007_242_572_6, 0.005_457_536_7, 0.001_785_036_0].map(|g| g * 4.0 / beta));
}
