//! An export is the trained model: its weights, its tokenizer, its log-probabilities.

use super::*;
use crate::adapter::{AdapterConfig, Sora};
use crate::device::{DeviceName, HOST};
use crate::packed::{Packed, Sequences};
use crate::tokenizer::tests::check;
use crate::weights::tests::fixture;
use crate::{Config, Policy};
use schema::Seed;
use std::path::{Path, PathBuf};

const MODELS: [&str; 4] = ["llama", "llama2", "qwen2", "qwen3"];

/// A fixture's model with an adapter that does something, of which some gates are closed.
fn trained(path: &Path) -> Policy {
    let config = Config {
        path: path.display().to_string(),
        device: DeviceName::new("cpu"),
        adapter: AdapterConfig::Sora(Sora { rank: 4, ..Sora::default() }),
        ..Config::default()
    };
    let policy = Policy::load(&config, &Seed::new(5)).unwrap();
    for (index, layer) in policy.adapter().layers().enumerate() {
        let _no_grad = tch::no_grad_guard();
        let numbers = Seed::new(6).at(index as u64).normals(layer.b.numel());
        layer.b.shallow_clone().copy_(&(Tensor::from_slice(&numbers).reshape(layer.b.size()) * 0.02));
        let _ = layer.gate.as_ref().unwrap().narrow(0, 0, index as i64 % 4).zero_();
    }
    policy
}

/// The same path without an adapter.
fn plain(path: &Path) -> Policy {
    let config = Config { path: path.display().to_string(), device: DeviceName::new("cpu"), ..Config::default() };
    Policy::load(&config, &Seed::new(5)).unwrap().base()
}

fn logprobs(policy: &Policy) -> Vec<f32> {
    let groups = [Sequences { prompt: &[3, 50, 97, 12], completions: vec![&[9, 80, 33, 21, 7], &[100]] }];
    let packed = Packed::new(&groups, policy.network().dimensions().vocab, HOST).unwrap();
    Vec::<f32>::try_from(policy.logprobs(&packed, 1.0, policy.adapter())).unwrap()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn write_folder(merged: &Merged<'_>, storage: Option<Storage>, limit: u64, folder: &Path) -> usize {
    let shards = hub_shards(merged, storage, limit).unwrap();
    for shard in &shards {
        let mut file = std::fs::File::create(folder.join(&shard.file)).unwrap();
        shard.write(merged, &mut file).unwrap();
    }
    if let Some((name, index)) = hub_index(&shards) {
        std::fs::write(folder.join(name), index.to_string()).unwrap();
    }
    for (name, bytes) in hub_files(merged, storage).unwrap() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    shards.len()
}

fn write_file(merged: &Merged<'_>, storage: Storage, path: &Path) {
    write_gguf(merged, storage, &mut std::fs::File::create(path).unwrap()).unwrap();
}

#[test]
fn exports_of_either_base_are_the_trained_policy() {
    for model in MODELS {
        for base in [fixture(model), fixture(&format!("{model}.gguf"))] {
            let checkpoint = Checkpoint::open(&base).unwrap();
            let policy = trained(&base);
            let merged = Merged::new(&checkpoint, policy.adapter()).unwrap();
            let wanted = logprobs(&policy);
            assert!(difference(&wanted, &logprobs(&plain(&base))) > 1e-2, "the adapter does something");

            let scratch = tempfile::tempdir().unwrap();
            write_folder(&merged, Some(Storage::F32), u64::MAX, scratch.path());
            let file = scratch.path().join("merged.gguf");
            write_file(&merged, Storage::F32, &file);
            for exported in [scratch.path(), &file] {
                let error = difference(&wanted, &logprobs(&plain(exported)));
                assert!(error < 2e-5, "{} from {}: {error}", exported.display(), base.display());
            }
        }
    }
}

#[test]
fn exported_words_are_those_of_the_base() {
    for model in MODELS {
        for base in [fixture(model), fixture(&format!("{model}.gguf"))] {
            let checkpoint = Checkpoint::open(&base).unwrap();
            let adapter = Adapter::none();
            let merged = Merged::new(&checkpoint, &adapter).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            write_folder(&merged, None, u64::MAX, scratch.path());
            let file = scratch.path().join("merged.gguf");
            write_file(&merged, Storage::F16, &file);
            for exported in [scratch.path(), &file] {
                let again = Checkpoint::open(exported).unwrap();
                let words = again.tokenizer().unwrap();
                check(&words, &format!("{model}/expected.json"));
                assert_eq!(words.eos_ids(), checkpoint.tokenizer().unwrap().eos_ids(), "{model}");
                assert_eq!(again.names(), checkpoint.names());
                for key in ["model_type", "hidden_size", "num_key_value_heads", "vocab_size", "tie_word_embeddings"] {
                    assert_eq!(again.config()[key], checkpoint.config()[key], "{model} {key}");
                }
            }
        }
    }
}

#[test]
fn shards_stay_below_their_limit_and_are_read_as_one() {
    let base = fixture("qwen3");
    let (checkpoint, policy) = (Checkpoint::open(&base).unwrap(), trained(&base));
    let merged = Merged::new(&checkpoint, policy.adapter()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let limit = 60_000;
    let count = write_folder(&merged, None, limit, scratch.path());
    assert!(count > 2, "{count} shards");
    for shard in hub_shards(&merged, None, limit).unwrap() {
        // The numbers, and a header of some lines.
        let len = std::fs::metadata(scratch.path().join(&shard.file)).unwrap().len();
        assert!(len < limit + 4000, "{} has {len} bytes", shard.file);
    }
    assert!(difference(&logprobs(&policy), &logprobs(&plain(scratch.path()))) < 2e-5);
    assert!(!scratch.path().join("model.safetensors").exists());
}

#[test]
fn fewer_bits_cost_little_and_take_less_room() {
    // Rows of 64 and 128 numbers, so that blocks of 32 fit.
    let base = fixture("llama");
    let (checkpoint, policy) = (Checkpoint::open(&base).unwrap(), trained(&base));
    let merged = Merged::new(&checkpoint, policy.adapter()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let wanted = logprobs(&policy);
    let sizes = [(Storage::F32, 2e-5), (Storage::F16, 2e-2), (Storage::Q8_0, 0.3)].map(|(storage, tolerance)| {
        let file: PathBuf = scratch.path().join(format!("{storage:?}.gguf"));
        write_file(&merged, storage, &file);
        let error = difference(&wanted, &logprobs(&plain(&file)));
        assert!(error < tolerance, "{storage:?}: {error}");
        std::fs::metadata(&file).unwrap().len()
    });
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
}

#[test]
fn an_adapter_of_another_model_and_a_storage_that_cannot_be_are_refused() {
    let checkpoint = Checkpoint::open(&fixture("qwen2")).unwrap();
    let refused = |random: crate::architecture::RandomModel| {
        let config = Config { random: Some(random), device: DeviceName::new("cpu"), ..Config::default() };
        let policy = Policy::load(&config, &Seed::new(1)).unwrap();
        let Err(error) = Merged::new(&checkpoint, policy.adapter()) else { panic!("it was merged") };
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    let deeper = crate::architecture::RandomModel {
        layers: 3,
        hidden_size: 32,
        intermediate_size: 48,
        ..crate::architecture::RandomModel::default()
    };
    assert!(refused(deeper).contains("model.layers.2"));
    assert!(refused(crate::architecture::RandomModel::default()).contains("shape"));
    let adapter = Adapter::none();
    let merged = Merged::new(&checkpoint, &adapter).unwrap();
    assert!(hub_shards(&merged, Some(Storage::Q8_0), 1).unwrap_err().is_input());
}
