//! Each method at the pair of the objective's tests, `p_c = −12, p_r = −15, r_c = −13, r_r = −14.5` with 10 and 12
//! tokens, through its settings, its batch and its metrics; and how pairs are made of groups.

use super::*;
use crate::algorithm::preference::{
    anchored::AnchoredForm, apo::ApoLoss, dpo::DpoLoss, ipo::LogRatio, online_dpo::OnlineLoss, sppo::SppoForm,
};
use crate::algorithm::{Anchored, Apo, Config, Cpo, Dpo, Ipo, NashMp, OnlineDpo, OnlineIpo, Orpo, Simpo, Sppo, build};
use crate::batch::Signal;
use crate::collected::{Completion, Completions, Example};
use crate::objective::MetricSums;
use crate::testing::{LossSignal, Losses, groups, scored, signals};
use schema::{Comparison, Grade, Metrics};
use tch::Tensor;

/// The pair, whose sequences have these sums spread evenly over their tokens.
fn losses(win_rates: [f64; 2]) -> Losses {
    let spread = |chosen: f64, rejected: f64| [vec![chosen / 10.0; 10], vec![rejected / 12.0; 12]].concat();
    let reference = Tensor::from_slice(&spread(-13.0, -14.5));
    let signal = LossSignal::Pairs(win_rates.map(|win_rate| (win_rate, false)).into());
    Losses { reference: Some(reference), ..Losses::with(&[10, 12], signal, &spread(-12.0, -15.0)) }
}

#[test]
fn every_method_has_its_loss_and_gradient() {
    // The gradient of a token is that of its sequence's sum.
    let certain = [1.0, 0.0];
    for (config, win_rates, value, by_chosen, by_rejected) in [
        (Config::Dpo(Dpo::default()), certain, 0.620_957_047_8, -0.046_257_015_5, 0.046_257_015_5),
        (
            Config::Dpo(Dpo { label_smoothing: 0.1, ..Dpo::default() }),
            certain,
            0.635_957_047_8,
            -0.036_257_015_5,
            0.036_257_015_5,
        ),
        (
            Config::Dpo(Dpo { loss: DpoLoss::Robust, label_smoothing: 0.1, ..Dpo::default() }),
            certain,
            0.602_207_047_8,
            -0.058_757_015_5,
            0.058_757_015_5,
        ),
        (Config::Dpo(Dpo { loss: DpoLoss::Hinge, ..Dpo::default() }), certain, 0.85, -0.1, 0.1),
        (Config::Ipo(Ipo::default()), certain, 23.603_402_777_8, -0.971_666_666_7, 0.809_722_222_2),
        (Config::Ipo(Ipo { log_ratio: LogRatio::Sum, ..Ipo::default() }), certain, 12.25, -7.0, 7.0),
        (Config::Simpo(Simpo::default()), certain, 1.501_929_081_3, -0.194_324_965_3, 0.161_937_471_1),
        // CPO adds 12/10 for the chosen completion, whose gradient is −1/10.
        (Config::Cpo(Cpo::default()), certain, 0.554_355_244_5 + 1.2, -0.042_555_748_3 - 0.1, 0.042_555_748_3),
        (Config::Orpo(Orpo::default()), certain, 0.065_837_225_4 + 1.2, -0.006_901_870_1 - 0.1, 0.005_633_145_5),
        (Config::Sppo(Sppo { beta: 0.1, ..Sppo::default() }), certain, 36.25, -8.0, 9.0),
        (Config::Sppo(Sppo { beta: 0.1, form: SppoForm::Soft, ..Sppo::default() }), [0.8, 0.25], 4.0, -2.0, 2.0),
        (Config::OnlineDpo(OnlineDpo::default()), certain, 0.620_957_047_8, -0.046_257_015_5, 0.046_257_015_5),
        (Config::OnlineDpo(OnlineDpo { loss: OnlineLoss::Ipo, ..OnlineDpo::default() }), certain, 12.25, -7.0, 7.0),
        (Config::OnlineIpo(OnlineIpo::default()), certain, 12.25, -7.0, 7.0),
        // A draw has the target zero: 1.5².
        (Config::OnlineIpo(OnlineIpo::default()), [0.5, 0.5], 2.25, 3.0, -3.0),
        (Config::Apo(Apo::default()), certain, 0.620_957_047_8, -0.046_257_015_5, 0.046_257_015_5),
        (Config::Apo(Apo { loss: ApoLoss::Ipo, ..Apo::default() }), certain, 12.25, -7.0, 7.0),
        (Config::Apo(Apo { loss: ApoLoss::Sppo, ..Apo::default() }), [0.8, 0.25], 4.0, -2.0, 2.0),
        (Config::Anchored(Anchored::default()), certain, 0.962_523_416_0, -0.024_937_604_0, 0.024_984_381_5),
        (
            Config::Anchored(Anchored { form: AnchoredForm::Down, ..Anchored::default() }),
            certain,
            0.987_549_342_1,
            0.000_077_703_4,
            0.024_859_900_7,
        ),
    ] {
        let loss = losses(win_rates).of(&config);
        assert!((loss.value - value).abs() < 1e-6, "{config:?}: {}", loss.value);
        for (index, gradient) in loss.gradient.iter().enumerate() {
            let expected = if index < 10 { by_chosen } else { by_rejected };
            assert!((gradient - expected).abs() < 1e-6, "{config:?}: token {index} has {gradient}");
            assert!((gradient - loss.numeric[index]).abs() < 1e-5, "{config:?}");
        }
    }
}

#[test]
fn two_pairs_are_a_mean() {
    let one = losses([1.0, 0.0]);
    let reference = one.reference.as_ref().unwrap();
    let two = Losses {
        reference: Some(Tensor::cat(&[reference, reference], 0)),
        ..Losses::with(
            &[10, 12, 10, 12],
            LossSignal::Pairs(vec![(1.0, false), (0.0, false), (1.0, false), (0.0, false)]),
            &[&one.policy[..], &one.policy].concat(),
        )
    };
    let config = Config::Dpo(Dpo::default());
    assert!((two.of(&config).value - one.of(&config).value).abs() < 1e-12);
    assert!((two.of(&config).gradient[0] * 2.0 - one.of(&config).gradient[0]).abs() < 1e-12);
}

#[test]
fn metrics_have_the_names_of_trl() {
    let mut sums = MetricSums::new();
    let config = Config::Dpo(Dpo::default());
    losses([1.0, 0.0]).measure(&config, &mut sums);
    let metrics = sums.metrics();
    // 0.1 · (−12 + 13) and 0.1 · (−15 + 14.5)
    let expected = [
        ("logps/chosen", -12.0),
        ("logps/rejected", -15.0),
        ("rewards/accuracies", 1.0),
        ("rewards/chosen", 0.1),
        ("rewards/margins", 0.15),
        ("rewards/rejected", -0.05),
    ];
    assert_eq!(metrics.iter().map(|(name, _)| name).collect::<Vec<_>>(), expected.map(|(name, _)| name));
    for (name, value) in expected {
        assert!((metrics.get(name).unwrap() - value).abs() < 1e-9, "{name}");
    }
}

#[test]
fn a_pair_with_an_empty_side_is_left_out() {
    let of = |chosen: usize, rejected: usize| {
        let completion = |tokens| Completion { ids: vec![5; tokens], cut: false };
        let completions = Completions::Pair { chosen: completion(chosen), rejected: completion(rejected), margin: 0.0 };
        let collected = Collected::Examples(vec![Example { prompt_ids: vec![1], completions }]);
        signals(&*build(&Config::Dpo(Dpo::default())).unwrap(), &collected, None, &mut Metrics::new())
    };
    let side = |win_rate| Some(Signal::Compared { win_rate, by_opponent: false });
    assert_eq!(of(1, 2), [[side(1.0), side(0.0)]]);
    assert_eq!(of(3, 0), [[None, None]]);
}

/// Lengths in tokens, which tell samples apart, and win rates of both sides.
fn described(pair: &Pair<'_>) -> (Vec<usize>, Vec<f32>) {
    (pair.sides().map(|side| side.sequence.len()).into(), pair.sides().map(|side| side.win_rate).into())
}

#[test]
fn the_best_and_the_worst_are_a_pair_with_win_rates() {
    let of = |rewards: &[f32], temperature, against| {
        let collected = groups(&[rewards]);
        best_and_worst(&collected, temperature, against).first().map(described)
    };
    // Sample i has i + 1 tokens.
    assert_eq!(of(&[0.0, 2.0, 1.0], 0.0, Against::Partner), Some((vec![2, 1], vec![1.0, 0.0])));
    // The best beats two and ties with itself: (1 + ½ + 1)/3; the worst only ties with itself.
    let group = of(&[0.0, 2.0, 1.0], 0.0, Against::Group).unwrap();
    assert_eq!(group, (vec![2, 1], vec![2.5 / 3.0, 0.5 / 3.0]));
    // σ((2 − 1)/0.5) = σ(2)
    let soft = of(&[1.0, 2.0], 0.5, Against::Partner).unwrap();
    assert!((soft.1[0] - 0.880_797).abs() < 1e-6 && (soft.1[1] - 0.119_203).abs() < 1e-6);
    // Of equals the first is the better one and the last the worse one; they tie.
    assert_eq!(of(&[1.0, 1.0, 1.0], 0.0, Against::Partner), Some((vec![1, 3], vec![0.5, 0.5])));
    assert_eq!(of(&[1.0, f32::NAN], 0.0, Against::Partner), None);
    assert_eq!(of(&[f32::NAN, 0.0, 1.0], 0.0, Against::Partner), Some((vec![3, 2], vec![1.0, 0.0])));
}

#[test]
fn ties_can_be_skipped() {
    let collected = groups(&[&[1.0, 1.0], &[1.0, 0.0]]);
    let pairs = || best_and_worst(&collected, 0.0, Against::Partner);
    assert_eq!(Ties::FirstWins.resolve(pairs()).len(), 2);
    let left = Ties::Skip.resolve(pairs());
    assert_eq!(left.iter().map(|pair| described(pair).1).collect::<Vec<_>>(), [[1.0, 0.0]]);
}

#[test]
fn neighbours_are_pairs_whatever_their_rewards() {
    let collected = groups(&[&[0.0, 1.0, 5.0, f32::NAN, 2.0, 7.0]]);
    let pairs = neighbours(&collected, 0.0);
    // Sample i has i + 1 tokens; the fourth has no reward, and the last has no neighbour.
    assert_eq!(pairs.iter().map(|pair| described(pair).0).collect::<Vec<_>>(), [[2, 1], [3, 5]]);
    assert_eq!(described(&pairs[0]).1, [1.0, 0.0]);
    let collected = groups(&[&[3.0, 2.0]]);
    let soft = described(&neighbours(&collected, 1.0)[0]).1;
    assert!((soft[0] - 0.731_058_6).abs() < 1e-6 && (soft[0] + soft[1] - 1.0).abs() < 1e-6);
}

/// A group whose samples a judge has compared, of worthless samples: the probability that one (row) beats another
/// (column); NaN where the judge could not say.
fn compared(wins: &[&[f32]]) -> GradedGroup {
    let bare = scored(&[&vec![0.0; wins.len()]]).remove(0);
    let comparison = |(index, value): (usize, &f32)| Comparison {
        judge: "table".into(),
        version: "1".into(),
        rival: Rival::Own(index),
        win: Grade::of(*value),
    };
    let row = |(own, row): (usize, &&[f32])| {
        let others = row.iter().enumerate().filter(|(index, _)| *index != own).map(comparison);
        Verdict { comparisons: others.collect(), ..bare.verdicts()[own].clone() }
    };
    GradedGroup::new(bare.group().clone(), wins.iter().enumerate().map(row).collect()).unwrap()
}

#[test]
fn what_a_judge_has_said_counts_and_rewards_do_not() {
    let near = |pair: &Pair<'_>, lengths: [usize; 2], rates: [f32; 2]| {
        let (found, win_rates) = described(pair);
        assert_eq!(found, lengths);
        assert!(win_rates.iter().zip(rates).all(|(found, rate)| (found - rate).abs() < 1e-6), "{win_rates:?}");
    };
    // A circle: win rates 0.55, 0.45 and 0.5. Sample i has i + 1 tokens.
    let circle = Collected::Groups(vec![compared(&[&[0.5, 0.9, 0.2], &[0.1, 0.5, 0.8], &[0.8, 0.2, 0.5]])]);
    near(&best_and_worst(&circle, 0.0, Against::Partner)[0], [1, 2], [0.9, 0.1]);
    // With itself each ties: (0.5 + 0.9 + 0.2)/3 and (0.1 + 0.5 + 0.8)/3.
    near(&best_and_worst(&circle, 0.0, Against::Group)[0], [1, 2], [1.6 / 3.0, 1.4 / 3.0]);
    near(&neighbours(&circle, 0.0)[0], [1, 2], [0.9, 0.1]);

    // The best has not been compared with the worst: there is no pair, and no tie either.
    let x = f32::NAN;
    let broken = Collected::Groups(vec![compared(&[&[x, x, 1.0], &[x, x, 0.0], &[0.0, 1.0, x]])]);
    assert!(best_and_worst(&broken, 0.0, Against::Partner).is_empty());
    // Of four neighbours the last two were beyond the judge.
    let half = Collected::Groups(vec![compared(&[&[x, 0.25, x, x], &[0.75, x, x, x], &[x; 4], &[x; 4]])]);
    let pairs = neighbours(&half, 0.0);
    assert_eq!(pairs.len(), 1);
    near(&pairs[0], [2, 1], [0.75, 0.25]);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refused = |config: Config| build(&config).err().unwrap().to_string();
    assert!(refused(Config::Dpo(Dpo { beta: 0.0, ..Dpo::default() })).contains("algorithm.dpo.beta"));
    assert!(refused(Config::Dpo(Dpo { label_smoothing: 0.5, ..Dpo::default() })).contains("label_smoothing"));
    let hinge = Dpo { loss: DpoLoss::Hinge, label_smoothing: 0.1, ..Dpo::default() };
    assert!(refused(Config::Dpo(hinge)).contains("hinge"));
    assert!(refused(Config::Ipo(Ipo { max_length: 1, ..Ipo::default() })).contains("max_length"));
    assert!(refused(Config::Simpo(Simpo { gamma: -1.0, ..Simpo::default() })).contains("gamma"));
    assert!(refused(Config::Apo(Apo { alpha: 1.0, ..Apo::default() })).contains("algorithm.apo.alpha"));
    let never = Apo { steps_per_iteration: 0, ..Apo::default() };
    assert!(refused(Config::Apo(never)).contains("steps_per_iteration"));
    assert!(refused(Config::NashMp(NashMp { kappa: 0.0, ..NashMp::default() })).contains("kappa"));
}
