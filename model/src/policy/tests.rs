//! Laws of every family: caches, packing and adapters change nothing that they should not.

use super::*;
use crate::adapter::{AdapterConfig, Sora};
use crate::architecture::RandomModel;
use crate::cache::{KvCache, Prefill};
use crate::device::DeviceName;
use crate::packed::Sequences;
use crate::weights::tests::fixture;
use schema::Token;

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

/// A model folder like the fixture `llama`, with `change` made to one of its tensors and `rows` more rows in its
/// embedding and its head.
fn changed(tensor: &str, rows: usize, change: impl Fn(&mut [f32])) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama")).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let vocab: usize = 404;
    let config = config.replace("\"vocab_size\": 404", &format!("\"vocab_size\": {}", vocab + rows));
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
            let mut numbers: Vec<f32> = view.data().chunks(4).map(number).collect();
            let mut shape = view.shape().to_vec();
            if shape[0] == vocab {
                shape[0] += rows;
                numbers.resize(numbers.len() + rows * shape[1], 9.0);
            }
            if name == tensor {
                change(&mut numbers);
            }
            (name.to_owned(), shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

fn load(folder: &tempfile::TempDir) -> Result<Policy> {
    let path = folder.path().display().to_string();
    Policy::load(&Config { path, device: DeviceName::new("cpu"), ..Config::default() }, &Seed::new(3))
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    for name in [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ] {
        for number in [f32::NAN, f32::INFINITY] {
            // In the middle: rows of the embedding that the short text does not have.
            let folder = changed(name, 0, |numbers| numbers[numbers.len() / 2] = number);
            let error = load(&folder).err().unwrap_or_else(|| panic!("{name}: {number} was accepted"));
            let expected = format!("the model's tensor `{name}` holds numbers that are not finite");
            assert!(error.is_input() && error.to_string().contains(&expected), "{error}");
        }
    }
    assert!(load(&changed("", 0, |_| ())).is_ok());
}

#[test]
fn an_adapter_that_is_not_finite_is_named_and_too_large_a_one_refused() {
    let policy = trained("llama");
    policy.check_finite().unwrap();
    let name = policy.adapter().tensors().nth(4).unwrap().0;
    let saved = |value: f64| -> Vec<(String, Tensor)> {
        let tensors = policy.adapter().tensors().map(|(own, tensor)| {
            let tensor = tensor.detach().copy();
            let _no_grad = tch::no_grad_guard();
            if own == name {
                let _ = tensor.view([-1]).narrow(0, 0, 1).fill_(value);
            }
            (own, tensor)
        });
        tensors.collect()
    };
    let mut other = trained("llama");
    let error = other.adapter_mut().restore(&saved(f64::NAN)).unwrap_err();
    assert!(
        error.is_input() && error.to_string().contains(&format!("tensor `{name}` of the saved adapter")),
        "{error}"
    );
    assert_eq!(other.adapter().hash(), policy.adapter().hash(), "nothing was taken over");

    other.adapter_mut().restore(&saved(3e38)).unwrap();
    assert_eq!(other.adapter().first_non_finite(), None);
    let error = other.check_finite().unwrap_err();
    assert!(error.is_input() && error.to_string().contains("they may be too large"), "{error}");

    let _no_grad = tch::no_grad_guard();
    let _ = other.adapter().tensors().nth(4).unwrap().1.view([-1]).narrow(0, 1, 1).fill_(f64::NEG_INFINITY);
    assert_eq!(other.adapter().first_non_finite().as_ref(), Some(&name));
    let error = other.check_finite().unwrap_err();
    assert!(error.is_input() && error.to_string().contains(&format!("the adapter's tensor `{name}`")), "{error}");
    let checkpoint = Checkpoint::open(&fixture("llama")).unwrap();
    let error = crate::export::Merged::new(&checkpoint, other.adapter()).err().unwrap();
    assert!(error.is_input() && error.to_string().contains(&format!("the adapter's tensor `{name}`")), "{error}");
}

/// Rows that no token belongs to are not there: neither in the logits nor in what log-probabilities are normalised
/// over.
#[test]
fn rows_without_a_token_change_nothing() {
    let (whole, padded) = (load(&changed("", 0, |_| ())).unwrap(), load(&changed("", 40, |_| ())).unwrap());
    assert_eq!(padded.tokenizer().vocab_size(), 404);
    assert_eq!(padded.network().dimensions().vocab, 404);
    let groups = [Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5, 403]] }];
    assert_eq!(logprobs(&padded, &groups), logprobs(&whole, &groups));
    let hidden = Tensor::ones([1, padded.network().dimensions().hidden], (Kind::Float, padded.device()));
    assert_eq!(padded.logits(&hidden).size(), [1, 404]);
    assert_eq!((padded.tokenizer().gaps(), whole.tokenizer().gaps()), (0, 0));

    // GGUF names each row, `[PAD404]` and so on.
    let folder = changed("", 40, |_| ());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let none = Adapter::none();
    let mut bytes = Vec::new();
    let merged = crate::export::Merged::new(&checkpoint, &none).unwrap();
    crate::export::write_gguf(&merged, crate::export::Storage::F32, &mut bytes).unwrap();
    let file = folder.path().join("padded.gguf");
    std::fs::write(&file, bytes).unwrap();
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!(checkpoint.config()["vocab_size"], 444);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_text(404)), (404, None));

    let beyond = Sequences { prompt: &[404], completions: vec![&[1]] };
    assert!(Packed::new(&[beyond], padded.network().dimensions().vocab, padded.device()).is_err());
}
