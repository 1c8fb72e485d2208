//! Logits agree with those of transformers, for tiny models of each family in each format and for the real model.

use super::tests::{fixture, real_model};
use super::*;
use crate::adapter::Adapter;
use crate::architecture;
use crate::backend::Placement;
use crate::cache::Prefill;
use crate::device::{Dtype, HOST};
use crate::files::read_json;
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
