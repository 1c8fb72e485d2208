//! Logits agree with those of transformers, for tiny models of each family in each format and for the real model.

use super::{fixture, real_model};
use crate::adapter::{Adapter, AdapterConfig, PeftAdapter};
use crate::architecture;
use crate::backend::Placement;
use crate::cache::Prefill;
use crate::device::{Dtype, HOST};
use crate::dimensions::RopeScaling;
use crate::files::read_json;
use crate::weights::*;
use tch::Kind;

/// The largest difference of a logit that f32 arithmetic in another order may make.
const TOLERANCE: f64 = 1e-4;

/// The logits of a sequence, `[token, vocab]`.
fn logits(checkpoint: &Checkpoint, ids: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    let network = architecture::load(checkpoint, usize::MAX, Placement::new(HOST, Dtype::F32)).unwrap();
    let tokens = ids.size()[0];
    let positions = Tensor::arange(tokens, (Kind::Int64, HOST));
    let hidden = network.forward(ids, &positions, &mut Prefill::new(&[tokens as usize]), &Adapter::none());
    hidden.matmul(&network.head().weight.tr())
}

fn check(model: &str) {
    let bytes = std::fs::read(fixture(&format!("{}/expected.safetensors", model.trim_end_matches(".gguf")))).unwrap();
    let expected = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: &str, kind: Kind| {
        let view = expected.tensor(name).unwrap();
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        Tensor::from_data_size(view.data(), &shape, kind)
    };
    let wanted = tensor("logits", Kind::Float);
    // A model that said nothing would pass for right if the logits were all alike.
    assert!(wanted.std(true).double_value(&[]) > 0.3);
    let logits = logits(&Checkpoint::open(&fixture(model)).unwrap(), &tensor("ids", Kind::Int64));
    let error = (logits - wanted).abs().max().double_value(&[]);
    assert!(error < TOLERANCE, "{model}: a logit is {error} off");
}

/// The most likely token after a prompt, eight times, and its log-probability.
fn continuation(folder: &Path, adapter: Option<&str>, expected: &Value) -> (Vec<i64>, Vec<f64>) {
    let _guard = tch::no_grad_guard();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let network = architecture::load(&checkpoint, usize::MAX, Placement::new(HOST, Dtype::F32)).unwrap();
    let adapter = adapter.map_or_else(Adapter::none, |name| {
        let config = AdapterConfig::Peft(PeftAdapter { path: folder.join(name) });
        config.build(network.linears(), &schema::Seed::new(0), HOST).unwrap()
    });
    let mut ids: Vec<i64> = serde_json::from_value(expected["prompt"].clone()).unwrap();
    let prompt = ids.len();
    let mut logprobs = Vec::new();
    for _ in 0..8 {
        let positions = Tensor::arange(ids.len() as i64, (Kind::Int64, HOST));
        let hidden = network.forward(&Tensor::from_slice(&ids), &positions, &mut Prefill::new(&[ids.len()]), &adapter);
        let last = hidden.narrow(0, ids.len() as i64 - 1, 1);
        let all = last.matmul(&network.head().weight.tr()).log_softmax(1, Kind::Float);
        let (logprob, id) = all.max_dim(1, false);
        logprobs.push(logprob.double_value(&[0]));
        ids.push(id.int64_value(&[0]));
    }
    (ids.split_off(prompt), logprobs)
}

fn check_continuation(folder: &str, adapter: Option<&str>) {
    let folder = fixture(folder);
    let expected = read_json(&folder.join("expected.json")).unwrap();
    let (ids, logprobs) = continuation(&folder, adapter, &expected);
    assert_eq!(serde_json::json!(ids), expected["ids"]);
    let wanted: Vec<f64> = serde_json::from_value(expected["logprobs"].clone()).unwrap();
    // The expected numbers have six decimals.
    for (logprob, wanted) in logprobs.iter().zip(&wanted) {
        assert!((logprob - wanted).abs() < 2.0 * TOLERANCE, "{logprobs:?} against {wanted:?}");
    }
}

/// Ids and log-probabilities are those of PEFT 0.21 with transformers 5.24 in f32.
#[test]
fn a_peft_adapter_answers_as_in_peft_and_one_of_a_changed_base_is_refused() {
    check_continuation("peft", Some("plain_lora"));
    let network =
        architecture::load(&Checkpoint::open(&fixture("peft")).unwrap(), usize::MAX, Placement::new(HOST, Dtype::F32));
    let config = AdapterConfig::Peft(PeftAdapter { path: fixture("peft/pissa") });
    let error = config.build(network.unwrap().linears(), &schema::Seed::new(0), HOST).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("`init_lora_weights` is \"pissa\""), "{error}");
}

/// Ids and log-probabilities of `rope_parameters` alone are those of transformers 5.24 in f32; `rope_scaling` beside
/// them counts.
#[test]
fn a_config_with_rope_parameters_answers_as_in_transformers() {
    check_continuation("rope", None);
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("rope/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let mut config = read_json(&fixture("rope/config.json")).unwrap();
    let load = |config: &Value| {
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        architecture::load(&Checkpoint::open(folder.path()).unwrap(), usize::MAX, Placement::new(HOST, Dtype::F32))
    };
    config["rope_scaling"] = serde_json::json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let error = load(&config).err().unwrap();
    assert!(error.is_input() && error.to_string().contains("rope_scaling type `yarn` is not supported"), "{error}");
    config["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 4.0});
    assert_eq!(load(&config).unwrap().dimensions().rope_scaling, RopeScaling::Linear { factor: 4.0 });
}

#[test]
fn llama_with_its_rope_scaling() {
    check("llama");
    check("llama.gguf");
}

#[test]
fn llama_without() {
    check("llama2");
    check("llama2.gguf");
}

#[test]
fn qwen2() {
    check("qwen2");
    check("qwen2.gguf");
}

#[test]
fn qwen3() {
    check("qwen3");
    check("qwen3.gguf");
}

#[test]
fn the_real_model() {
    let Some(file) = real_model() else { return };
    let expected = &read_json(&fixture("smollm2.json")).unwrap()["logits"];
    let numbers = |key: &str| -> Vec<f64> { serde_json::from_value(expected[key].clone()).unwrap() };
    let ids: Vec<i64> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let top_ids: Vec<i64> = serde_json::from_value(expected["top_ids"].clone()).unwrap();

    let logits = logits(&Checkpoint::open(&file).unwrap(), &Tensor::from_slice(&ids));
    let last = logits.get(-1);
    let check = |what: &str, got: Tensor, wanted: &[f64]| {
        let error = (got.to_kind(Kind::Double) - Tensor::from_slice(wanted)).abs().max().double_value(&[]);
        assert!(error < TOLERANCE, "{what}: {error} off");
    };
    check("top logits", last.index_select(0, &Tensor::from_slice(&top_ids)), &numbers("top"));
    check("first logits", last.narrow(0, 0, 64), &numbers("first_64_of_last"));
    check("normalisers", logits.logsumexp(-1, false), &numbers("logsumexp"));
    check("means", logits.mean_dim(-1, false, Kind::Float), &numbers("mean"));
    assert_eq!(last.argmax(0, false).int64_value(&[]), top_ids[0]);
}
