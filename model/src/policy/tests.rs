//! Laws of every family: caches, packing and adapters change nothing that they should not.

use super::*;
use crate::adapter::{AdapterConfig, Sora};
use crate::architecture::RandomModel;
use crate::cache::{KvCache, Prefill};
use crate::device::DeviceName;
use crate::packed::Sequences;

/// Of two float32 computations of the same thing in different order.
const TOLERANCE: f64 = 2e-5;

fn policy(family: &str) -> Policy {
    let random = RandomModel { family: family.into(), ..RandomModel::default() };
    let config = Config {
        random: Some(random),
        device: DeviceName::new("cpu"),
        adapter: AdapterConfig::Sora(Sora { rank: 4, ..Sora::default() }),
        ..Config::default()
    };
    Policy::load(&config, &Seed::new(3)).unwrap()
}

/// The same with an adapter that does something.
fn trained(family: &str) -> Policy {
    let mut policy = policy(family);
    for (index, layer) in policy.adapter.layers().enumerate() {
        let _no_grad = tch::no_grad_guard();
        let size = layer.b.size();
        let numbers = Seed::new(9).at(index as u64).normals(layer.b.numel());
        layer.b.shallow_clone().copy_(&(Tensor::from_slice(&numbers).reshape(size) * 0.05));
    }
    policy.set_version(1);
    policy
}

const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];

fn logprobs(policy: &Policy, groups: &[Sequences<'_>]) -> Vec<f32> {
    let packed = Packed::new(groups, policy.network.dimensions().vocab, policy.device()).unwrap();
    Vec::<f32>::try_from(&policy.logprobs(&packed, 1.0, policy.adapter())).unwrap()
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(f64::from((a - b).abs()) < TOLERANCE, "entry {index}: {a} against {b}");
    }
}

#[test]
fn packing_groups_changes_no_logprob() {
    for family in FAMILIES {
        let policy = trained(family);
        let (prompt, other) = ([1, 2, 3, 4, 5], [7, 8]);
        let completions: [&[Token]; 4] = [&[10, 11, 12], &[13], &[14, 15, 16, 17, 18], &[]];
        let together = logprobs(
            &policy,
            &[
                Sequences { prompt: &prompt, completions: completions.to_vec() },
                Sequences { prompt: &other, completions: vec![&[20, 21]] },
            ],
        );
        let mut alone = Vec::new();
        for completion in completions {
            // evaluated token by token, each with the whole past as its prompt: nothing shared, nothing packed
            for index in 0..completion.len() {
                let past = [&prompt[..], &completion[..index]].concat();
                alone.extend(logprobs(
                    &policy,
                    &[Sequences { prompt: &past, completions: vec![&completion[index..=index]] }],
                ));
            }
        }
        alone.extend(logprobs(&policy, &[Sequences { prompt: &other, completions: vec![&[20]] }]));
        alone.extend(logprobs(&policy, &[Sequences { prompt: &[7, 8, 20], completions: vec![&[21]] }]));
        close(&together, &alone);
    }
}

#[test]
fn cached_decoding_equals_the_full_forward_pass() {
    let _no_grad = tch::no_grad_guard();
    for family in FAMILIES {
        let policy = trained(family);
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers);
        let prompts = [vec![1i64, 2, 3, 4], vec![9, 8]];
        let mut prefill = Prefill::new(&[4, 2]);
        let _ = policy.network.forward(
            &tensor(&prompts.concat()),
            &tensor(&[0, 1, 2, 3, 0, 1]),
            &mut prefill,
            &policy.adapter,
        );
        let mut cache = KvCache::new(policy.network.dimensions(), 3, 16, policy.device(), policy.kind());
        for (slot, prefix) in prefill.into_prefixes().iter().enumerate() {
            cache.insert(slot, prefix);
        }
        cache.relocate(1, 2, 2);
        cache.relocate(2, 1, 2);
        let next = [[5i64, 6], [11, 12], [30, 31]];
        for (step, tokens) in next.iter().enumerate() {
            let lengths = [4 + step, 2 + step];
            let positions = lengths.map(|length| length as i64);
            let adapter = &policy.adapter;
            // By kernels, and by tensors as on other devices.
            let decoded = policy.network.decode(tokens, &lengths, &mut cache, adapter);
            let (ids, positions_of_next) = (tensor(tokens), tensor(&positions));
            let hidden = policy.network.forward(&ids, &positions_of_next, &mut cache.decode(&lengths), adapter);
            let apart = (&hidden - decoded).abs().max().double_value(&[]);
            assert!(apart < TOLERANCE, "{family}, step {step}: {apart}");
            for (row, prompt) in prompts.iter().enumerate() {
                let past: Vec<i64> = prompt.iter().copied().chain(next[..=step].iter().map(|pair| pair[row])).collect();
                let positions: Vec<i64> = (0..past.len() as i64).collect();
                let mut whole = Prefill::new(&[past.len()]);
                let full = policy.network.forward(&tensor(&past), &tensor(&positions), &mut whole, &policy.adapter);
                let difference = (hidden.get(row as i64) - full.get(-1)).abs().max().double_value(&[]);
                assert!(difference < TOLERANCE, "{family}, step {step}, row {row}: {difference}");
            }
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_trained_one_does() {
    let packed =
        Packed::new(&[Sequences { prompt: &[1, 2], completions: vec![&[3, 4]] }], 259, crate::device::HOST).unwrap();
    for (policy, same) in [(policy("llama"), true), (trained("llama"), false)] {
        let with = policy.logprobs(&packed, 1.0, policy.adapter());
        assert_eq!(with.equal(&policy.logprobs(&packed, 1.0, &Adapter::none())), same);
    }
    assert_ne!(policy("llama").version().hash, trained("llama").version().hash);
    assert_eq!(policy("llama").version(), policy("llama").version());
}

#[test]
fn gradients_reach_every_adapter_tensor_and_agree_with_finite_differences() {
    let policy = trained("qwen3");
    let groups = [Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5, 6], &[7]] }];
    let packed = Packed::new(&groups, 259, policy.device()).unwrap();
    let weights = Tensor::from_slice(&[1.0f32, -0.5, 2.0, 0.7]);
    let loss = |evaluation: &Evaluation| {
        (&evaluation.logprobs * &weights).sum(Kind::Float) + evaluation.entropy.as_ref().unwrap().sum(Kind::Float)
    };
    let evaluation = policy.evaluate(&packed, 0.8, Want::Entropy, None);
    let value = loss(&evaluation);
    evaluation.backward(&value);
    for (name, tensor) in policy.adapter.tensors() {
        let gradient = tensor.grad();
        assert!(gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0, "{name}");
    }
    let (name, tensor) = policy.adapter.tensors().nth(4).unwrap();
    let at = |offset: f64| {
        let _no_grad = tch::no_grad_guard();
        let entry = tensor.view(-1).get(0);
        let _ = entry.shallow_clone().g_add_scalar_(offset);
        let value = loss(&policy.evaluate(&packed, 0.8, Want::Entropy, None)).double_value(&[]);
        let _ = entry.shallow_clone().g_add_scalar_(-offset);
        value
    };
    let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
    let analytic = tensor.grad().view(-1).double_value(&[0]);
    assert!((numeric - analytic).abs() < 2e-3 * analytic.abs().max(1.0), "{name}: {numeric} against {analytic}");
}

#[test]
fn a_config_without_a_model_or_with_wrong_targets_is_refused() {
    let refused = |config: Config| Policy::load(&config, &Seed::new(0)).err().unwrap().to_string();
    assert!(refused(Config::default()).contains("`path`"));
    let random = Some(RandomModel::default());
    let adapter = AdapterConfig::Sora(Sora { target_modules: vec!["q".into()], ..Sora::default() });
    let message = refused(Config { random: random.clone(), adapter, ..Config::default() });
    assert!(message.contains("target_modules names `q`") && message.contains("q_proj"), "{message}");
    let adapter = AdapterConfig::Sora(Sora { alpha: 0.0, ..Sora::default() });
    assert!(refused(Config { random, adapter, ..Config::default() }).contains("does not change the model's output"));
}

#[test]
fn several_adapters_share_one_base() {
    let policy = trained("llama");
    let (previous, reference) = (policy.adapter().copy(), Adapter::none());
    let other = {
        let adapter = policy.adapter().copy();
        adapter.perturb(0.1);
        adapter
    };
    let policies = [policy.with_adapter(previous), policy.with_adapter(reference), policy.with_adapter(other)];
    let groups = [Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5, 6]] }];
    let [same, base, moved] = [0, 1, 2].map(|index| logprobs(&policies[index], &groups));
    assert_eq!(same, logprobs(&policy, &groups), "a copy of the adapter is the same policy");
    assert_ne!(base, same);
    assert_ne!(moved, same);
    let packed = Packed::new(&groups, 259, policy.device()).unwrap();
    assert_eq!(base, Vec::<f32>::try_from(policy.logprobs(&packed, 1.0, &Adapter::none())).unwrap());
    for other in &policies {
        assert!(Rc::ptr_eq(&other.network, &policy.network));
        assert_eq!(other.network.head().weight.data_ptr(), policy.network.head().weight.data_ptr());
    }
    assert_eq!(policies[0].version(), policy.version());
    assert_ne!(policies[2].version().hash, policy.version().hash);
    // Training one leaves the others as they are.
    policy.adapter().perturb(0.3);
    assert_eq!(same, logprobs(&policies[0], &groups));
    assert_ne!(same, logprobs(&policy, &groups));
}

#[test]
fn pruning_changes_no_logprob_and_comes_back_from_disk() {
    for family in FAMILIES {
        let (mut policy, mut restored) = (trained(family), policy(family));
        for (index, layer) in policy.adapter.layers().enumerate() {
            let _no_grad = tch::no_grad_guard();
            // 0, 1, 2, 3 or 4 of the four ranks close, layer by layer.
            let _ = layer.gate.as_ref().unwrap().narrow(0, 0, index as i64 % 5).zero_();
        }
        let groups = [Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5, 6], &[7]] }];
        let (before, active) = (logprobs(&policy, &groups), policy.adapter().active_rank());
        let handle = policy.share();
        let cuts = policy.adapter_mut().prune();
        policy.set_version(2);
        assert_eq!(policy.adapter().ranks() as f64, active * policy.adapter().layers().count() as f64);
        assert!(cuts.iter().all(|cut| cut.axes().iter().all(|(name, _)| name.starts_with(&cut.name))));
        close(&logprobs(&policy, &groups), &before);
        close(&logprobs(&handle, &groups), &before);
        close(&logprobs(&policy.with_adapter(policy.adapter().folded()), &groups), &before);

        let saved: Vec<(String, Tensor)> =
            policy.adapter().tensors().map(|(name, tensor)| (name, tensor.detach().copy())).collect();
        restored.adapter_mut().restore(&saved).unwrap();
        restored.set_version(2);
        assert_eq!(restored.version(), policy.version());
        assert_eq!(logprobs(&restored, &groups), logprobs(&policy, &groups));
    }
}
