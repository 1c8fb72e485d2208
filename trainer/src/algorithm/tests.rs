//! Laws that hold for every algorithm in the list.

use super::*;
use crate::batch::{Cut, mini_batches};
use crate::testing::scored;
use model::adapter::{AdapterConfig, Lora};
use model::architecture::RandomModel;
use model::logprob::Want;
use model::{Policy, Weights};
use schema::Seed;

fn policy() -> Policy {
    let config = model::Config {
        random: Some(RandomModel::default()),
        device: model::device::DeviceName::new("cpu"),
        adapter: AdapterConfig::Lora(Lora { rank: 2, ..Lora::default() }),
        ..model::Config::default()
    };
    Policy::load(&config, &Seed::new(1)).unwrap()
}

fn cut(micro_batch_tokens: usize) -> Cut {
    Cut { micro_batch_tokens, vocab: 259, device: model::device::HOST }
}

/// Loss and the adapter's gradient for these rewards.
fn gradient(config: &Config, rewards: &[&[f32]], micro_batch_tokens: usize) -> (f64, Vec<Tensor>) {
    let (policy, algorithm) = (policy(), build(config).unwrap());
    let mut total = 0.0;
    for batch in mini_batches(&scored(rewards), &*algorithm, cut(micro_batch_tokens), &Seed::new(0)).unwrap() {
        for mut batch in batch.micro_batches {
            if algorithm.needs().reference {
                batch.reference_logprobs = Some(policy.logprobs(&batch.packed, 1.0, Weights::Reference));
            }
            let evaluation = policy.evaluate(&batch.packed, 1.0, Want::Entropy);
            let loss = algorithm.loss(&batch, &evaluation, &mut Tally::new());
            total += loss.double_value(&[]);
            evaluation.backward(&loss);
        }
    }
    let gradients = policy.adapter().tensors().map(|(_, tensor)| tensor.grad()).collect();
    (total, gradients)
}

#[test]
fn micro_batches_add_up_to_the_whole() {
    for config in Config::defaults() {
        let rewards: &[&[f32]] = &[&[1.0, 0.0, 0.5], &[0.0, 2.0, 1.0]];
        let (whole, gradients) = gradient(&config, rewards, 1000);
        let (parts, sums) = gradient(&config, rewards, 1);
        assert!((whole - parts).abs() < 1e-6, "{}: {whole} against {parts}", config.name());
        for (a, b) in gradients.iter().zip(&sums).filter(|(a, _)| a.defined()) {
            assert!(a.allclose(b, 1e-4, 1e-6, false), "{}", config.name());
        }
        let largest =
            gradients.iter().filter(|g| g.defined()).map(|g| g.abs().max().double_value(&[])).fold(0.0, f64::max);
        assert!(largest > 1e-5, "{}: {largest}", config.name());
    }
}

#[test]
fn equal_rewards_teach_nothing() {
    for config in Config::defaults() {
        let algorithm = build(&config).unwrap();
        let credit = algorithm.credit(&scored(&[&[0.7, 0.7, 0.7]]));
        assert_eq!(credit, [[Some(0.0); 3]], "{}", config.name());
    }
}

#[test]
fn permuting_a_group_permutes_its_credit() {
    for config in Config::defaults() {
        let algorithm = build(&config).unwrap();
        let credit = |rewards: &[f32]| algorithm.credit(&scored(&[rewards])).remove(0);
        let (a, b) = (credit(&[1.0, 0.0, 0.25]), credit(&[0.25, 1.0, 0.0]));
        for (a, b) in [a[0], a[1], a[2]].iter().zip([b[1], b[2], b[0]]) {
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-12, "{}", config.name());
        }
    }
}

#[test]
fn an_unjudged_sample_has_no_credit() {
    for config in Config::defaults() {
        let credit = build(&config).unwrap().credit(&scored(&[&[1.0, f32::NAN, 0.0]]));
        assert_eq!(credit[0][1], None, "{}", config.name());
        assert!(credit[0][0].unwrap() > 0.0);
    }
}

#[test]
fn the_state_of_another_algorithm_is_refused() {
    for config in Config::defaults() {
        let mut algorithm = build(&config).unwrap();
        let state = algorithm.state();
        algorithm.restore(&state).unwrap();
        assert!(algorithm.restore(&serde_json::json!({"another": 1})).unwrap_err().is_input());
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refused = |settings: Grpo| build(&Config::Grpo(settings)).err().unwrap().to_string();
    assert!(refused(Grpo { clip_low: -0.1, ..Grpo::default() }).contains("clip_low"));
    assert!(refused(Grpo { dual_clip: 0.5, ..Grpo::default() }).contains("dual_clip"));
    assert!(refused(Grpo { epochs: 0, ..Grpo::default() }).contains("epochs"));
}
