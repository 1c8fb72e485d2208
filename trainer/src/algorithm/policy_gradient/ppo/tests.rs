//! PPO's credit and loss against worked examples, and what a step does to policy and critic.

use super::*;
use crate::algorithm::{Config, build};
use crate::batch::BatchSignal;
use crate::checkpoint::State;
use crate::collected::{Collected, Unit};
use crate::companion::{ByRole, Role};
use crate::learner::Learner;
use crate::objective::{Denominator, Rows};
use crate::testing::{scored, tiny_run};
use model::Policy;
use model::packed::{Packed, Sequences};
use schema::{GradedGroup, Group, Seed};

const TOLERANCE: f64 = 1e-6;

/// Without whitening, so that numbers can be worked by hand.
fn plain() -> Ppo {
    Ppo { whiten_advantages: false, epochs: 1, minibatches: 1, ..Ppo::default() }
}

fn check(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{actual:?} against {expected:?}");
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() < TOLERANCE, "{actual:?} against {expected:?}");
    }
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|number| f64::from(*number)).collect()
}

/// One group of samples, each a reward and a mask; every one ended by itself.
fn group(samples: &[(f32, &[bool])]) -> Vec<GradedGroup> {
    let rewards: Vec<f32> = samples.iter().map(|(reward, _)| *reward).collect();
    let scored = scored(&[&rewards]).remove(0);
    let (mut group, verdicts) = (scored.group().clone(), scored.verdicts().to_vec());
    for (sample, (_, mask)) in group.samples.iter_mut().zip(samples) {
        sample.ids = (0..mask.len() as u32).collect();
        sample.mask = mask.to_vec();
        sample.logprobs = vec![-1.0; mask.len()];
        sample.finish = Finish::Eos;
    }
    vec![GradedGroup::new(group, verdicts).unwrap()]
}

fn valued(values: &[&[f32]]) -> Vec<Vec<SequenceLogprobs>> {
    let scores = |values: &&[f32]| SequenceLogprobs {
        policy: vec![-1.0; values.len()],
        values: values.to_vec(),
        ..SequenceLogprobs::default()
    };
    vec![values.iter().map(scores).collect()]
}

/// Advantages and returns of the samples of one group.
fn credit(
    settings: Ppo,
    groups: &[GradedGroup],
    scores: &[Vec<SequenceLogprobs>],
    metrics: &mut Metrics,
) -> Vec<Option<(Vec<f64>, Vec<f64>)>> {
    let collected = Collected::Groups(groups.to_vec());
    let units: Vec<Unit<'_>> = collected.units();
    let evidence = Evidence { collected: &collected, units: &units, logprobs: Some(scores) };
    let credits = settings.checked().unwrap().signals(&evidence, metrics).remove(0);
    let numbers = |signal: Signal| match signal {
        Signal::TokenAdvantages { advantages, returns } => (wide(&advantages), wide(&returns)),
        other => panic!("{other:?} is not by token"),
    };
    credits.into_iter().map(|credit| credit.map(numbers)).collect()
}

#[test]
fn advantages_and_returns_are_those_of_the_critic_and_the_last_token() {
    let groups = group(&[(1.0, &[true, true, true, true, false]), (-1.0, &[true, true, true, false, false])]);
    let scores = valued(&[&[0.2, 0.3, 0.4, 0.5, 9.0], &[0.1, 0.0, -0.2, 9.0, 9.0]]);
    let mut metrics = Metrics::new();
    let with = |gamma, lambda, whiten_advantages| Ppo { gamma, lambda, whiten_advantages, ..plain() };

    let credits = credit(with(1.0, 0.95, false), &groups, &scores, &mut metrics);
    let [Some((a, r)), Some((b, s))] = &credits[..] else { panic!("{credits:?}") };
    check(a, &[0.713_937_5, 0.646_25, 0.575, 0.5, 0.0]);
    check(r, &[0.913_937_5, 0.946_25, 0.975, 1.0, 0.0]);
    check(b, &[-1.012, -0.96, -0.8, 0.0, 0.0]);
    check(s, &[-0.912, -0.96, -1.0, 0.0, 0.0]);
    // (0.2 + 0.3 + 0.4 + 0.5 + 0.1 + 0 − 0.2)/7 and (3.8351875 − 2.872)/7
    check(&[metrics.get("values/mean").unwrap()], &[1.3 / 7.0]);
    check(&[metrics.get("returns/mean").unwrap()], &[0.963_187_5 / 7.0]);

    let credits = credit(with(0.99, 0.9, false), &groups, &scores, &mut metrics);
    let [Some((a, _)), Some((_, s))] = &credits[..] else { panic!("{credits:?}") };
    check(a, &[0.611_628_68, 0.577_585_5, 0.5405, 0.5, 0.0]);
    check(s, &[-0.811_522_8, -0.9108, -1.0, 0.0, 0.0]);

    let credits = credit(with(1.0, 0.95, true), &groups, &scores, &mut metrics);
    let [Some((a, r)), Some((b, _))] = &credits[..] else { panic!("{credits:?}") };
    check(a, &[0.924_407_96, 0.842_299_74, 0.755_870_03, 0.664_891_39, 0.0]);
    check(b, &[-1.169_238, -1.106_159_5, -0.912_071_69, 0.0, 0.0]);
    check(r, &[0.913_937_5, 0.946_25, 0.975, 1.0, 0.0]);
}

#[test]
fn explained_variance_is_one_for_a_critic_that_knows() {
    let groups = group(&[(1.0, &[true; 2]), (0.0, &[true])]);
    let explained = |values: &[&[f32]]| {
        let mut metrics = Metrics::new();
        credit(plain(), &groups, &valued(values), &mut metrics);
        metrics.get("critic/vf_explained_var").unwrap()
    };
    // With λ = 1 the returns are the rewards: 1, 1, 0, of variance 1/3.
    check(&[explained(&[&[1.0, 1.0], &[0.0]])], &[1.0]);
    check(&[explained(&[&[0.0, 0.0], &[0.0]])], &[0.0]);
    // ret − V = 0.5, 0.5, 0, of variance 1/12
    check(&[explained(&[&[0.5, 0.5], &[0.0]])], &[0.75]);
}

#[test]
fn equal_rewards_teach_the_policy_nothing_while_the_critic_knows_nothing() {
    let groups = group(&[(0.7, &[true; 3]), (0.7, &[true])]);
    let credits = credit(Ppo::default(), &groups, &valued(&[&[0.0; 3], &[0.0]]), &mut Metrics::new());
    for (advantages, returns) in credits.into_iter().flatten() {
        check(&advantages, &vec![0.0; advantages.len()]);
        check(&returns, &vec![0.7; returns.len()]);
    }
}

#[test]
fn the_kl_and_a_missing_end_are_taken_off_the_reward() {
    let mut groups = group(&[(1.0, &[true, true]), (1.0, &[true])]);
    let cut = |scored: &GradedGroup| {
        let mut group = scored.group().clone();
        group.samples[1].finish = Finish::Length;
        GradedGroup::new(group, scored.verdicts().to_vec()).unwrap()
    };
    groups = vec![cut(&groups[0])];
    let scores = |logprobs: &[f32], reference: &[f32]| SequenceLogprobs {
        policy: logprobs.to_vec(),
        companions: std::iter::once((Role::Reference, reference.to_vec())).collect(),
        values: vec![0.0; logprobs.len()],
    };
    let scores = vec![vec![scores(&[-1.0, -2.0], &[-1.5, -1.0]), scores(&[-1.0], &[-3.0])]];
    let settings = Ppo { kl_coefficient: 0.1, missing_eos_penalty: 0.5, ..plain() };
    let mut metrics = Metrics::new();
    let credits = credit(settings, &groups, &scores, &mut metrics);
    let [Some((a, _)), Some((b, _))] = &credits[..] else { panic!("{credits:?}") };
    // k1 = 0.5, −1 and 2; token rewards −0.05, 1 + 0.1 and 1 − 0.5 − 0.2; advantages are the rewards to go
    check(a, &[1.05, 1.1]);
    check(b, &[0.3]);
    check(&[metrics.get("objective/kl").unwrap(), metrics.get(KL_PER_TOKEN).unwrap()], &[0.75, 0.5]);
    check(&[metrics.get("objective/non_score_reward").unwrap()], &[-0.075]);
    check(&[metrics.get("objective/rlhf_reward").unwrap()], &[f64::midpoint(1.05, 0.3)]);
    assert_eq!(metrics.get("kl_coefficient"), Some(0.1));
}

#[test]
fn whitened_rewards_keep_their_mean() {
    let groups = group(&[(0.0, &[true]), (2.0, &[true])]);
    let settings = Ppo { whiten_rewards: true, ..plain() };
    let credits = credit(settings, &groups, &valued(&[&[0.0], &[0.0]]), &mut Metrics::new());
    let [Some((a, _)), Some((b, _))] = &credits[..] else { panic!("{credits:?}") };
    // mean 1, variance 2: 1 ∓ 1/√2
    check(&[a[0], b[0]], &[1.0 - 0.5f64.sqrt(), 1.0 + 0.5f64.sqrt()]);
}

#[test]
fn a_sample_without_a_trained_token_or_a_judgement_is_left_out() {
    let groups = group(&[(1.0, &[]), (1.0, &[false, false]), (f32::NAN, &[true]), (0.5, &[true])]);
    let scores = valued(&[&[], &[0.0; 2], &[0.0], &[0.25]]);
    let mut metrics = Metrics::new();
    let credits = credit(Ppo::default(), &groups, &scores, &mut metrics);
    assert_eq!(credits[..3], [None, None, None]);
    // One token in the whole batch: nothing to whiten by.
    check(&credits[3].as_ref().unwrap().0, &[0.25]);
    assert_eq!(metrics.get("values/mean"), Some(0.25));
    assert_eq!(metrics.get("critic/vf_explained_var"), None);

    let nothing = credit(Ppo::default(), &groups[..], &scores, &mut Metrics::new());
    assert_eq!(nothing.len(), 4);
    let empty = group(&[(1.0, &[])]);
    assert_eq!(credit(Ppo::default(), &empty, &valued(&[&[]]), &mut Metrics::new()), [None]);
}

/// Three tokens of one sequence in f64, the last of them masked.
fn batch(advantages: &[f64], old_values: &[f64], returns: &[f64], old_logprobs: &[f64]) -> Batch {
    let sequences = Sequences { prompt: &[1], completions: vec![&[2, 3, 4]] };
    let rows = Rows::new(&[3], &[true, true, false], HOST).unwrap();
    let tensor = |numbers: &[f64]| Tensor::from_slice(numbers);
    Batch {
        packed: Packed::new(&[sequences], 10, HOST).unwrap(),
        denominator: Denominator::of(Aggregation::TokenMean, rows.trained_per_sequence()),
        rows,
        units: std::iter::once(0..1).collect(),
        signal: BatchSignal::Advantages { advantages: tensor(advantages), returns: Some(tensor(returns)) },
        behaviour_logprobs: Some(tensor(old_logprobs)),
        proximal_logprobs: Some(tensor(old_logprobs)),
        companion_logprobs: ByRole::default(),
        old_values: Some(tensor(old_values)),
    }
}

fn loss(settings: &Ppo, batch: &Batch, logprobs: &Tensor, entropy: &Tensor, values: &Tensor) -> (Tensor, Metrics) {
    let outputs = Outputs { entropy: Some(entropy), values: Some(values), ..Outputs::of(logprobs) };
    let mut sums = MetricSums::new();
    let loss = settings.clone().checked().unwrap().loss(batch, outputs, &mut sums);
    (loss, sums.metrics())
}

#[test]
fn the_clipped_value_loss_is_weighed_into_the_loss() {
    let batch = batch(&[0.0; 3], &[0.5, 0.1, 0.3], &[1.0, 0.0, -1.0], &[-1.0; 3]);
    let (logprobs, entropy) = (Tensor::from_slice(&[-1.0f64; 3]), Tensor::from_slice(&[0.0f64; 3]));
    let values = Tensor::from_slice(&[0.9f64, 0.2, -0.4]);
    for (value_clip, expected, clipped) in [(0.2, 0.0325, 0.5), (0.5, 0.0125, 0.0), (0.0, 0.0125, 0.0)] {
        let settings = Ppo { value_clip, value_coefficient: 0.1, ..plain() };
        let (loss, metrics) = loss(&settings, &batch, &logprobs, &entropy, &values);
        check(&[loss.double_value(&[])], &[0.1 * expected]);
        check(&[metrics.get("loss/value").unwrap(), metrics.get("loss/policy").unwrap()], &[expected, 0.0]);
        check(&[metrics.get("val/clip_ratio").unwrap()], &[clipped]);
    }
}

#[test]
fn gradients_of_policy_entropy_and_value_are_those_of_finite_differences() {
    let batch = batch(&[1.0, -0.5, 3.0], &[0.5, 0.1, 0.3], &[1.0, 0.0, -1.0], &[-1.0, -2.0, -3.0]);
    let settings = Ppo { entropy_coefficient: 0.3, value_coefficient: 0.7, dual_clip: 3.0, ..plain() };
    // log-probabilities, entropies and values of three tokens, none at a corner of a clip
    let at = [-1.1, -1.9, -2.5, 0.7, 0.2, 0.4, 0.6, 0.25, -0.4];
    let total = |x: &Tensor| {
        let part = |place: i64| x.narrow(0, 3 * place, 3);
        loss(&settings, &batch, &part(0), &part(1), &part(2)).0
    };
    let leaf = Tensor::from_slice(&at).set_requires_grad(true);
    total(&leaf).backward();
    let analytic = Vec::<f64>::try_from(leaf.grad()).unwrap();
    let step = 1e-6;
    let moved = |place: usize, offset: f64| {
        let mut x = at;
        x[place] += offset;
        total(&Tensor::from_slice(&x)).double_value(&[])
    };
    let numeric: Vec<f64> =
        (0..at.len()).map(|place| (moved(place, step) - moved(place, -step)) / (2.0 * step)).collect();
    check(&analytic, &numeric);
    // −A ρ/2; −c_e/2; c_v (V − ret)/2; nothing where masked
    let ratio = |logprob: f64, old: f64| (logprob - old).exp();
    check(&analytic[..3], &[-0.5 * ratio(-1.1, -1.0), 0.25 * ratio(-1.9, -2.0), 0.0]);
    check(&analytic[3..6], &[-0.15, -0.15, 0.0]);
    check(&analytic[6..], &[0.35 * (0.6 - 1.0), 0.35 * 0.25, 0.0]);
}

#[test]
fn the_kl_coefficient_follows_its_target_and_is_saved() {
    let settings = Ppo { kl_coefficient: 0.1, kl_target: 0.1, ..plain() };
    let mut rule = settings.clone().checked().unwrap();
    for (measured, expected) in [(0.05, 0.099_488), (0.3, 0.099_997_379), (0.1, 0.099_997_379)] {
        let mut metrics = Metrics::new();
        metrics.set(KL_PER_TOKEN, measured);
        rule.finish_step(&mut metrics, 256);
        check(&[rule.kl.coefficient], &[expected]);
    }
    rule.finish_step(&mut Metrics::new(), 256);
    let mut resumed = settings.checked().unwrap();
    resumed.restore(&rule.state()).unwrap();
    assert_eq!(resumed.kl, rule.kl);
    assert!(resumed.restore(&Value::Null).unwrap_err().is_input());

    let mut fixed = Ppo { kl_coefficient: 0.1, ..plain() }.checked().unwrap();
    let mut metrics = Metrics::new();
    metrics.set(KL_PER_TOKEN, 9.0);
    fixed.finish_step(&mut metrics, 256);
    assert_eq!((fixed.kl.coefficient, fixed.state()), (0.1, Value::Null));
    assert!(fixed.restore(&rule.state()).unwrap_err().is_input());
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refused = |settings: Ppo| build(&Config::Ppo(settings)).err().unwrap().to_string();
    for (settings, key) in [
        (Ppo { value_clip: -0.1, ..plain() }, "value_clip"),
        (Ppo { lambda: 1.5, ..plain() }, "lambda"),
        (Ppo { gamma: f64::NAN, ..plain() }, "gamma"),
        (Ppo { dual_clip: 1.0, ..plain() }, "dual_clip"),
        (Ppo { minibatches: 0, ..plain() }, "minibatches"),
        (Ppo { kl_target: 0.1, ..plain() }, "kl_coefficient"),
        (Ppo { kl_target: 0.1, kl_coefficient: 0.1, kl_horizon: 0.0, ..plain() }, "kl_horizon"),
    ] {
        assert!(refused(settings).contains(key), "{key}");
    }
}

/// A run of a tiny random network.
struct Tiny {
    policy: Policy,
    learner: Learner,
}

impl Tiny {
    fn new(settings: Ppo) -> Self {
        let config = tiny_run(Config::Ppo(settings), &["steps=100", "optimizer.adamw.learning_rate=1e-2"]);
        let policy = Policy::load(&config.model, &Seed::new(1)).unwrap();
        let learner = Learner::new(&config, &policy).unwrap();
        Self { policy, learner }
    }

    fn step(&mut self, step: u64, groups: &[GradedGroup]) -> Metrics {
        self.learner.update(step, &Collected::Groups(groups.to_vec()), &mut self.policy).unwrap()
    }
}

#[test]
fn the_ratio_is_one_in_the_first_update_and_values_start_at_zero() {
    for critic_adapter in [false, true] {
        let metrics = Tiny::new(Ppo { critic_adapter, ..plain() }).step(1, &scored(&[&[1.0, 0.0], &[0.0, 2.0]]));
        check(&[metrics.get("ratio/mean").unwrap(), metrics.get("proximal_kl").unwrap()], &[1.0, 0.0]);
        assert_eq!(metrics.get("values/mean"), Some(0.0));
        // Returns are the rewards 1, 0, 0, 0, 2, 2 of the tokens: ½ (1 + 4 + 4)/6.
        check(&[metrics.get("loss/value").unwrap(), metrics.get("returns/mean").unwrap()], &[0.75, 5.0 / 6.0]);
    }
}

#[test]
fn the_critic_comes_to_know_the_returns() {
    for critic_adapter in [false, true] {
        let mut tiny = Tiny::new(Ppo { critic_adapter, value_clip: 0.0, ..Ppo::default() });
        // Two prompts, of which one is always answered well.
        let mut groups = scored(&[&[1.0, 1.0], &[0.0, 0.0]]);
        let other = GradedGroup::new(
            Group { prompt_ids: vec![40, 50, 60], ..groups[1].group().clone() },
            groups[1].verdicts().to_vec(),
        );
        groups[1] = other.unwrap();
        let explained: Vec<Option<f64>> =
            (1..=30).map(|step| tiny.step(step, &groups).get("critic/vf_explained_var")).collect();
        assert!(explained[0].unwrap().abs() < 1e-9, "{explained:?}");
        assert!(explained[29].unwrap() > 0.5, "own adapter {critic_adapter}: {explained:?}");
    }
}

#[test]
fn a_restored_step_is_the_step() {
    let settings = Ppo { critic_adapter: true, kl_coefficient: 0.05, kl_target: 0.01, ..Ppo::default() };
    let groups = scored(&[&[1.0, 0.0], &[0.0, 2.0], &[1.0]]);
    let mut whole = Tiny::new(settings.clone());
    whole.step(1, &groups);
    whole.step(2, &groups);
    let folder = tempfile::tempdir().unwrap();
    let snapshots = crate::checkpoint::Snapshots::new(folder.path(), 0);
    snapshots.save(&whole.learner.snapshot(&State::start("x"), &whole.policy)).unwrap();
    let expected = [whole.step(3, &groups), whole.step(4, &groups)];

    let mut resumed = Tiny::new(settings);
    resumed.learner.restore(snapshots.newest().unwrap().unwrap(), &mut resumed.policy).unwrap();
    assert_eq!([resumed.step(3, &groups), resumed.step(4, &groups)], expected);
    assert_ne!(expected[0].get("kl_coefficient"), Some(0.05), "the coefficient did not move");
}

#[test]
fn a_step_stops_once_the_policy_has_moved_far_enough() {
    let mut tiny = Tiny::new(Ppo { target_kl: 1e-9, epochs: 5, minibatches: 1, ..Ppo::default() });
    let metrics = tiny.step(1, &scored(&[&[1.0, 0.0], &[0.0, 2.0]]));
    assert_eq!(metrics.get("updates/stopped_by_kl"), Some(1.0));
    assert_eq!(metrics.get("updates/taken"), Some(1.0));
}

#[test]
fn a_step_of_empty_and_unjudged_samples_moves_nothing() {
    let mut tiny = Tiny::new(Ppo::default());
    let metrics = tiny.step(1, &group(&[(1.0, &[]), (f32::NAN, &[true])]));
    assert_eq!(metrics.get("updates/taken"), Some(0.0));
    let metrics = tiny.step(2, &group(&[(1.0, &[]), (1.0, &[true]), (0.0, &[true])]));
    assert!(metrics.get("updates/taken").unwrap() > 0.0);
    assert!(metrics.iter().all(|(_, value)| value.is_finite()), "{metrics:?}");
}
