//! Worked examples, and the claim of the method: smaller sampling errors than independent samples.

use super::*;
use model::device::HOST;

fn close(actual: &Tensor, expected: &[f64]) {
    let actual = Vec::<f64>::try_from(actual.detach().to_kind(Kind::Double).flatten(0, -1)).unwrap();
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() < 1e-6, "{actual:?} against {expected:?}");
    }
}

/// One state with logits 1, 0.5 and −0.5, in f64, at which the three actions were sampled 6, 1 and 1 times.
fn one_state() -> (Tensor, Visits) {
    let logits = Tensor::from_slice(&[1.0f64, 0.5, -0.5]).unsqueeze(0);
    let draws = [0, 0, 0, 0, 0, 0, 1, 2].map(|token| (0, token)).to_vec();
    let hidden = Tensor::from_slice(&[1.0f64]).unsqueeze(0);
    (logits.shallow_clone(), Visits::new(hidden, logits.log_softmax(-1, Kind::Double), draws))
}

#[test]
fn the_gradient_at_the_start_is_empirical_frequency_less_policy() {
    let (_, visits) = one_state();
    let shift = Tensor::zeros([1, 3], (Kind::Double, HOST)).set_requires_grad(true);
    let objective = Props { kl_coefficient: 0.0, ..Props::default() }.shifted(&visits, &shift);
    close(&objective.loss, &[1.0]);
    objective.loss.backward();
    close(&shift.grad(), &[0.203_450_61, -0.206_498_96, 0.003_048_347_7]);
}

#[test]
fn plain_descent_by_hand() {
    let (_, visits) = one_state();
    let props = Props { kl_coefficient: 0.1, ..Props::default() };
    let mut shift = Tensor::zeros([1, 3], (Kind::Double, HOST));
    let mut k3 = Vec::new();
    for step in 1..=4 {
        let leaf = shift.detach().set_requires_grad(true);
        let objective = props.shifted(&visits, &leaf);
        k3.push(objective.k3);
        let logprobs = (&visits.logprobs + &leaf).log_softmax(-1, Kind::Double);
        let kl = (logprobs.exp() * (&logprobs - &visits.logprobs)).sum(Kind::Double);
        // The surrogate alone is the loss without its penalty.
        let surrogate = &objective.loss - &kl * 0.1;
        match step {
            2 => {
                close(&surrogate, &[0.957_128_14]);
                close(&kl, &[0.004_467_488_1]);
                close(&logprobs.exp(), &[0.502_219_97, 0.373_909_2, 0.123_870_83]);
            }
            4 => {
                close(&surrogate, &[0.866_700_14]);
                close(&kl, &[0.042_033_689]);
                close(&logprobs.exp(), &[0.411_911_05, 0.465_075_05, 0.123_013_9]);
            }
            _ => {}
        }
        objective.loss.backward();
        shift = leaf.detach() - leaf.grad() * 0.5;
    }
    assert!((k3[1] - 0.003_567_622_9).abs() < 1e-6 && (k3[3] - 0.035_407_234).abs() < 1e-6, "{k3:?}");
}

#[test]
fn a_token_that_has_fallen_far_enough_pushes_no_more() {
    let (logits, visits) = one_state();
    let props = Props { kl_coefficient: 0.0, ..Props::default() };
    let shift = (Tensor::from_slice(&[0.0f64, 1.2, 0.6]) - logits).detach().set_requires_grad(true);
    let objective = props.shifted(&visits, &shift);
    close(&objective.loss, &[1.032_893]);
    assert!((objective.k3 - 0.467_362_6).abs() < 1e-6);
    objective.loss.backward();
    close(&shift.grad(), &[-0.082_688_621, -0.070_712_161, 0.153_400_78]);
}

#[test]
fn the_gradient_reaches_the_head_through_its_fixed_factor() {
    let hidden = Tensor::from_slice(&[1.0f32, -2.0, 0.5]).unsqueeze(0);
    let logits = Tensor::from_slice(&[1.0f32, 0.5, -0.5]).unsqueeze(0);
    let mut head = LogitHead::zero(3, 3, 2, &Seed::new(1), HOST);
    head.down = Tensor::from_slice(&[0.2f32, 0.1, 0.0, 0.0, 0.3, -0.4]).reshape([2, 3]);
    let visits = Visits::new(hidden.shallow_clone(), logits.log_softmax(-1, Kind::Float), vec![(0, 0)]);
    let props = Props { kl_coefficient: 0.0, ..Props::default() };
    props.shifted(&visits, &head.shift(&hidden)).loss.backward();
    let expected = [0.0, -0.362_760_49, 0.0, 0.265_199_17, 0.0, 0.097_561_322];
    close(&head.up.grad(), &expected);
}

/// Three states of five actions each; hidden states are one-hot, so that the head can change each state by itself.
fn states() -> (Tensor, Tensor) {
    let logits = [[1.0f32, 0.5, 0.0, -0.5, -1.0], [0.0; 5], [2.0, 0.0, 0.0, 1.0, -1.0]].concat();
    (Tensor::eye(3, (Kind::Float, HOST)), Tensor::from_slice(&logits).reshape([3, 5]))
}

/// Returns the sampling error after eight slices of eight samples from each state, and that of as many independent
/// samples.
fn errors(props: &Props, seed: &Seed) -> (f64, f64) {
    let (hidden, logits) = states();
    let logprobs = logits.log_softmax(-1, Kind::Float);
    let draw = |logits: &Tensor, seed: &Seed| -> Vec<(usize, Token)> {
        let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
        let token = |state: usize, draw: u64| {
            let uniform = seed.at(state as u64).uniform(draw);
            (0..4).take_while(|token| cumulative.double_value(&[state as i64, *token]) <= uniform).count() as Token
        };
        (0..3).flat_map(|state| (0..8).map(move |draw| (state, draw))).map(|(s, d)| (s, token(s, d))).collect()
    };
    let visits =
        |draws: &[(usize, Token)]| Visits::new(hidden.shallow_clone(), logprobs.shallow_clone(), draws.to_vec());
    let (mut corrected, mut independent) = (Vec::new(), Vec::new());
    for slice in 0..8 {
        let own = seed.at(slice);
        let head = props.fit(&visits(&corrected), 1.0, &own);
        corrected.extend(draw(&(&logits + head.shift(&hidden)), &own));
        independent.extend(draw(&logits, &own));
    }
    (visits(&corrected).sampling_error(), visits(&independent).sampling_error())
}

#[test]
fn slices_have_a_smaller_sampling_error_than_independent_draws_on_three_seeds() {
    let props = Props { rank: 3, ..Props::default() };
    for seed in 0..3 {
        // One run of 64 samples per state is noisy, so each seed takes the mean of ten.
        let runs: Vec<(f64, f64)> = (0..10).map(|run| errors(&props, &Seed::new(seed).at(run))).collect();
        let mean = |part: fn(&(f64, f64)) -> f64| runs.iter().map(part).sum::<f64>() / runs.len() as f64;
        let (corrected, independent) = (mean(|run| run.0), mean(|run| run.1));
        assert!(corrected < 0.8 * independent, "seed {seed}: {corrected:.4} against {independent:.4}");
    }
}

#[test]
fn nothing_shared_leaves_the_policy_alone() {
    let (hidden, logits) = states();
    let visits = Visits::new(hidden.shallow_clone(), logits.log_softmax(-1, Kind::Float), Vec::new());
    let head = Props::default().fit(&visits, 1.0, &Seed::new(1));
    assert_eq!(head.shift(&hidden).abs().max().double_value(&[]), 0.0);
}

#[test]
fn slices_add_up_to_the_group() {
    let slices = |slices, group_size| Props { slices, ..Props::default() }.slices(group_size);
    assert_eq!(slices(2, 8), [4, 4]);
    assert_eq!(slices(3, 8), [3, 3, 2]);
    assert!(Props { slices: 1, ..Props::default() }.check(8).unwrap_err().is_input());
    assert!(Props { slices: 9, ..Props::default() }.check(8).unwrap_err().is_input());
    assert!(Props { epsilon: 1.0, ..Props::default() }.check(8).unwrap_err().to_string().contains("epsilon"));
    Props::default().check(8).unwrap();
}
