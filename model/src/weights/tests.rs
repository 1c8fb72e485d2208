//! Checkpoints of both formats, whole and damaged.

mod parity;

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::fs;

/// The fixtures that `testdata/make.py` writes.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// The real model's file, if the cache has it; tests that need it say so when they are skipped.
pub(crate) fn real_model() -> Option<PathBuf> {
    let file = crate::hub::models_folder().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.exists() {
        println!("skipped: {} is not there; `make test` fetches it", file.display());
        return None;
    }
    Some(file)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

fn error(path: &Path) -> String {
    let Err(error) = Checkpoint::open(path) else { panic!("{} opened", path.display()) };
    assert!(error.is_input(), "{error}");
    error.to_string()
}

/// A folder or file with this content, somewhere of its own.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn copy_of(fixture_name: &str) -> Self {
        let scratch = Self::new();
        for entry in fs::read_dir(fixture(fixture_name)).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, scratch.file(file.file_name().unwrap().to_str().unwrap())).unwrap();
        }
        scratch
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.file(name), bytes).unwrap();
        self.file(name)
    }
}

fn assert_same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        assert!(a.tensor(name).unwrap().equal(&b.tensor(name).unwrap()), "{name}");
    }
}

#[test]
fn both_formats_hold_the_same_model() {
    for model in ["llama", "llama2", "qwen2", "qwen3"] {
        let (folder, gguf) = (open(model), open(&format!("{model}.gguf")));
        assert_same_tensors(&folder, &gguf);
        for key in [
            "model_type",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "max_position_embeddings",
            "tie_word_embeddings",
        ] {
            assert_eq!(folder.config()[key], gguf.config()[key], "{model} {key}");
        }
        let epsilons = [folder.config(), gguf.config()].map(|config| config["rms_norm_eps"].as_f64().unwrap());
        assert!((epsilons[0] - epsilons[1]).abs() < 1e-11, "{epsilons:?}");
    }
    assert_eq!(open("qwen3.gguf").config()["head_dim"], 16);
    let scaling = open("llama.gguf").config()["rope_scaling"].clone();
    assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&json!("llama3"), &json!(4.0)));
    assert_eq!(scaling["original_max_position_embeddings"], 32.0);
    assert_eq!(open("llama2.gguf").config()["rope_scaling"], Value::Null);
}

#[test]
fn shards_hold_the_same_model() {
    assert_same_tensors(&open("qwen3"), &open("qwen3-sharded"));
}

#[test]
fn every_block_format_decodes_as_ggml_does() {
    let checkpoint = open("blocks.gguf");
    let bytes = fs::read(fixture("blocks.safetensors")).unwrap();
    let expected = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(expected.len(), 11);
    for (name, view) in expected.iter() {
        let wanted = Tensor::from_data_size(view.data(), &[3, 512], tch::Kind::Float);
        let tensor = checkpoint.tensor(name).unwrap();
        let error = (tensor.to_kind(tch::Kind::Float) - &wanted).abs().max().double_value(&[]);
        // The same f32 arithmetic, up to one rounding: numbers reach a few thousand.
        assert!(error <= 1e-6 * wanted.abs().max().double_value(&[]), "{name}: {error}");
    }
    assert_eq!(checkpoint.tensor("model.layers.1.mlp.up_proj.weight").unwrap().kind(), tch::Kind::Half);
    assert_eq!(checkpoint.tensor("model.layers.2.mlp.up_proj.weight").unwrap().kind(), tch::Kind::BFloat16);
}

#[test]
fn identity_follows_the_content() {
    let identity = open("qwen3").identity();
    assert_eq!(identity.len(), 64);
    assert_eq!(identity, open("qwen3").identity());
    assert_ne!(identity, open("qwen2").identity());

    let copy = Scratch::copy_of("qwen3");
    let config = fs::read_to_string(copy.file("config.json")).unwrap();
    copy.write("config.json", config.replace("5.23.0", "9.9.9").as_bytes());
    assert_eq!(identity, Checkpoint::open(copy.path()).unwrap().identity(), "a new version of the writer");
    copy.write("config.json", config.replace("10000.0", "10001.0").as_bytes());
    assert_ne!(identity, Checkpoint::open(copy.path()).unwrap().identity(), "another config");

    let copy = Scratch::copy_of("qwen3");
    let mut weights = fs::read(copy.file("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    copy.write("model.safetensors", &weights);
    assert_ne!(identity, Checkpoint::open(copy.path()).unwrap().identity(), "another weight");
}

#[test]
fn what_is_not_a_model_is_named() {
    let scratch = Scratch::new();
    assert!(error(&scratch.file("absent")).contains("no model here"));
    assert!(error(scratch.path()).contains("neither config.json nor a .gguf file"));
    assert!(error(&scratch.write("empty.gguf", b"")).contains("is empty"));
    assert!(error(&scratch.write("text.gguf", b"hello, this is text")).contains("not a GGUF file"));
    assert!(error(&scratch.write("model.safetensors", b"x")).contains("give the folder"));
    scratch.write("config.json", b"{");
    assert!(error(scratch.path()).contains("config.json: is not valid JSON"));
    fs::remove_file(scratch.file("model.safetensors")).unwrap();
    scratch.write("config.json", b"{}");
    assert!(error(scratch.path()).contains("neither model.safetensors nor model.safetensors.index.json"));
}

#[test]
fn a_folder_with_one_gguf_file_is_that_file() {
    let scratch = Scratch::new();
    fs::copy(fixture("qwen2.gguf"), scratch.file("a.gguf")).unwrap();
    assert_same_tensors(&Checkpoint::open(scratch.path()).unwrap(), &open("qwen2"));
    fs::copy(fixture("qwen2.gguf"), scratch.file("b.gguf")).unwrap();
    assert!(error(scratch.path()).contains("2 .gguf files"));
}

#[test]
fn damaged_safetensors_are_named() {
    let whole = fs::read(fixture("qwen2/model.safetensors")).unwrap();
    let copy = Scratch::copy_of("qwen2");
    for len in [1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        copy.write("model.safetensors", &whole[..len]);
        let error = error(copy.path());
        assert!(error.contains("model.safetensors: is not a complete safetensors file"), "{error}");
    }
    copy.write("model.safetensors", &[]);
    assert!(error(copy.path()).contains("is empty"));
    // A header that claims to be longer than the file.
    copy.write("model.safetensors", &[&u64::MAX.to_le_bytes()[..], &whole[8..]].concat());
    assert!(error(copy.path()).contains("is not a complete safetensors file"));
    // A tensor that claims more numbers than its bytes.
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(whole[8..8 + header_len].to_vec()).unwrap();
    let lie = header.replacen("\"shape\":[32]", "\"shape\":[64]", 1);
    assert_ne!(header, lie);
    copy.write("model.safetensors", &[&whole[..8], lie.as_bytes(), &whole[8 + header_len..]].concat());
    assert!(error(copy.path()).contains("is not a complete safetensors file"));
}

#[test]
fn missing_tensors_and_formats_are_named() {
    let checkpoint = open("qwen2");
    assert!(!checkpoint.contains("lm_head.weight") && checkpoint.contains("model.norm.weight"));
    let error = checkpoint.tensor("lm_head.weight").unwrap_err().to_string();
    assert!(error.contains("testdata/qwen2: holds no tensor `lm_head.weight`"), "{error}");
    let error = open("qwen2.gguf").tensor("lm_head.weight").unwrap_err().to_string();
    assert!(
        error.contains("qwen2.gguf: holds no tensor `lm_head.weight` (`output.weight` in ggml's words)"),
        "{error}"
    );

    let copy = Scratch::copy_of("qwen2");
    let whole = fs::read(copy.file("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let integers = String::from_utf8(whole[8..8 + header_len].to_vec()).unwrap().replace("\"F32\"", "\"I32\"");
    copy.write("model.safetensors", &[&whole[..8], integers.as_bytes(), &whole[8 + header_len..]].concat());
    let error = Checkpoint::open(copy.path()).unwrap().tensor("model.norm.weight").unwrap_err();
    assert!(error.is_input() && error.to_string().contains("tensor `model.norm.weight` is stored as I32"), "{error}");
}

#[test]
fn broken_indexes_are_named() {
    let copy = Scratch::copy_of("qwen3-sharded");
    let index = fs::read_to_string(copy.file("model.safetensors.index.json")).unwrap();
    let first = "model-00001-of-00003.safetensors";

    copy.write("model.safetensors.index.json", index.replace("model.norm.weight", "model.nor.weight").as_bytes());
    assert!(error(copy.path()).contains("holds no tensor `model.nor.weight`, although model.safetensors.index.json"));
    copy.write("model.safetensors.index.json", index.replace(first, "../secret").as_bytes());
    assert!(error(copy.path()).contains("plain file name"));
    copy.write("model.safetensors.index.json", b"{}");
    assert!(error(copy.path()).contains("has no object `weight_map`"));
    copy.write("model.safetensors.index.json", index.as_bytes());
    fs::remove_file(copy.file(first)).unwrap();
    let error = error(copy.path());
    assert!(error.contains(&format!("shard {first}")) && error.contains("is missing"), "{error}");
}

#[test]
fn a_cut_gguf_says_where() {
    let whole = fs::read(fixture("qwen2.gguf")).unwrap();
    let scratch = Scratch::new();
    let file = scratch.write("cut.gguf", &whole[..whole.len() - 1]);
    let message = error(&file);
    assert!(message.contains("cut.gguf: tensor `"), "{message}");
    assert!(message.contains(&format!("but the file has {}", whole.len() - 1)), "{message}");
    assert!(error(&scratch.write("cut.gguf", &whole[..200])).contains("was its download cut off?"));
}

/// Opens a file and reads everything in it: whatever the bytes, the answer is a value or an error in the input.
fn read_all(bytes: &[u8]) {
    let scratch = Scratch::new();
    let checkpoint = match Checkpoint::open(&scratch.write("damaged.gguf", bytes)) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(error.is_input(), "{error}"),
    };
    checkpoint.identity();
    for name in checkpoint.names() {
        if let Err(error) = checkpoint.tensor(name) {
            assert!(error.is_input(), "{error}");
        }
    }
    match checkpoint.tokenizer() {
        Ok(tokenizer) => assert!(tokenizer.vocab_size() <= bytes.len()),
        Err(error) => assert!(error.is_input(), "{error}"),
    }
}

/// The approximate end of the header of a GGUF fixture: most damage should fall on it.
fn header_len(bytes: &[u8]) -> usize {
    let name = b"blk.1.ffn_up.weight";
    bytes.windows(name.len()).rposition(|window| window == name).unwrap() + 64
}

#[test]
fn every_cut_of_a_gguf_is_an_error_or_a_model() {
    let whole = fs::read(fixture("blocks.gguf")).unwrap();
    (0..header_len(&whole)).step_by(3).chain((0..whole.len()).step_by(501)).for_each(|len| read_all(&whole[..len]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn flipped_bits_of_a_gguf_are_errors_or_a_model(
        file in prop::sample::select(vec!["blocks.gguf", "llama2.gguf", "qwen2.gguf"]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let mut bytes = fs::read(fixture(file)).unwrap();
        let header = header_len(&bytes);
        for (offset, bit) in flips {
            bytes[offset.index(header)] ^= 1 << bit;
        }
        read_all(&bytes);
    }

    #[test]
    fn absurd_numbers_in_a_gguf_are_errors_or_a_model(
        offset in any::<prop::sample::Index>(),
        number in prop::sample::select(vec![0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 1 << 40, (1 << 61) + 1]),
    ) {
        let mut bytes = fs::read(fixture("blocks.gguf")).unwrap();
        let offset = offset.index(header_len(&bytes) - 8);
        bytes[offset..offset + 8].copy_from_slice(&number.to_le_bytes());
        read_all(&bytes);
    }
}
