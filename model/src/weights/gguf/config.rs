//! The hub's `config.json`, made from a GGUF file's metadata, and the reverse.
//!
//! Most keys only change their names. Two facts must be read off the tensors: embeddings are tied if there is no
//! output matrix, and Llama 3's rope scaling is stored as the factors it leads to, one per pair of a head.

use crate::dimensions::RopeScaling;
use crate::family;
use crate::gguf::{Header, Metadata, Pairs};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The problem with the config, as a clause.
type Problem = String;

/// Builds the config. `divisors` is the content of the tensor `rope_freqs.weight`, if there is one.
///
/// # Errors
/// A clause if metadata or the embedding are missing, or the divisors are not of Llama 3's form.
pub(super) fn from_header(header: &Header, divisors: Option<&[f32]>) -> Result<Value, Problem> {
    let metadata = &header.metadata;
    let architecture = metadata.text("general.architecture").ok_or("metadata `general.architecture` is missing")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let integer = |name: &str| metadata.integer(&key(name));
    let needed = |name: &str| {
        integer(name)
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("metadata `{}` is missing or not positive", key(name)))
    };
    let has = |tensor: &str| header.tensors.contains_key(tensor);

    let hidden = needed("embedding_length")?;
    let heads = needed("attention.head_count")?;
    let head_dim = integer("attention.key_length").or(integer("rope.dimension_count")).unwrap_or(hidden / heads);
    let theta = metadata.number(&key("rope.freq_base")).unwrap_or(10_000.0);
    let embeddings = header.tensors.get("token_embd.weight").ok_or("tensor `token_embd.weight` is missing")?;

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.into(), value);
    set("model_type", json!(architecture));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(needed("feed_forward_length")?));
    set("num_hidden_layers", json!(needed("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(integer("attention.head_count_kv").unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("vocab_size", json!(embeddings.shape[0]));
    set("max_position_embeddings", json!(needed("context_length")?));
    let epsilon = key("attention.layer_norm_rms_epsilon");
    set("rms_norm_eps", json!(metadata.number(&epsilon).ok_or_else(|| format!("metadata `{epsilon}` is missing"))?));
    set("rope_theta", json!(theta));
    set("rope_scaling", rope_scaling(metadata, divisors, architecture, head_dim, theta)?);
    set("tie_word_embeddings", json!(!has("output.weight")));
    if architecture != "qwen2" {
        // Qwen2 always has these biases and no switch for them.
        set("attention_bias", json!(has("blk.0.attn_q.bias")));
        set("mlp_bias", json!(has("blk.0.ffn_up.bias")));
    }
    for (name, stored) in
        [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")]
    {
        if let Some(id) = metadata.token(stored) {
            set(name, json!(id));
        }
    }
    Ok(Value::Object(config))
}

fn rope_scaling(
    metadata: &Metadata,
    divisors: Option<&[f32]>,
    architecture: &str,
    head_dim: i64,
    theta: f64,
) -> Result<Value, Problem> {
    let original = metadata.number(&format!("{architecture}.rope.scaling.original_context_length"));
    if let Some(divisors) = divisors {
        return llama3_scaling(divisors, head_dim, theta, original);
    }
    let factor = metadata.number(&format!("{architecture}.rope.scaling.factor"));
    match metadata.text(&format!("{architecture}.rope.scaling.type")) {
        None | Some("none") => Ok(Value::Null),
        Some(kind) => Ok(json!({
            "rope_type": kind,
            "factor": factor.unwrap_or(1.0),
            "original_max_position_embeddings": original,
        })),
    }
}

/// Llama 3's scaling from the divisors that it gives each frequency.
///
/// A divisor is `1 / (keep + (1 − keep) / factor)` with `keep = (original / wavelength − low) / (high − low)`, clamped
/// to [0, 1]. The slowest pair has `keep = 0`, so the largest divisor is `factor`; `low = 1` and `high = 4` in every
/// model that uses this; any pair between gives `original`. The result must reproduce the divisors.
fn llama3_scaling(divisors: &[f32], head_dim: i64, theta: f64, original: Option<f64>) -> Result<Value, Problem> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const TOLERANCE: f64 = 1e-3;
    let wavelength = |pair: usize| std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
    let divisors: Vec<f64> = divisors.iter().map(|divisor| f64::from(*divisor)).collect();
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    if factor < 1.0 + TOLERANCE {
        return Ok(Value::Null);
    }
    let between =
        divisors.iter().position(|divisor| *divisor > 1.0 + TOLERANCE && *divisor < factor * (1.0 - TOLERANCE));
    let original = match (between, original) {
        (Some(pair), _) => {
            let keep = (1.0 / divisors[pair] - 1.0 / factor) / (1.0 - 1.0 / factor);
            (wavelength(pair) * (LOW + keep * (HIGH - LOW))).round()
        }
        (None, Some(original)) => original,
        (None, None) => 8192.0,
    };
    let reproduced = divisors.iter().enumerate().all(|(pair, divisor)| {
        let keep = ((original / wavelength(pair) - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        (1.0 / (keep + (1.0 - keep) / factor) / divisor - 1.0).abs() < TOLERANCE
    });
    if !reproduced {
        return Err("tensor `rope_freqs.weight` is not of Llama 3's form, and no other is supported".into());
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }))
}

/// The metadata of a hub folder's model, without its tokenizer.
///
/// # Errors
/// If the family or one of its settings is not supported.
pub(in super::super) fn hub_metadata(path: &Path, config: &Value) -> crate::Result<Pairs> {
    let d = family::dimensions(config)?;
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let key = |name: &str| format!("{family}.{name}");
    let mut pairs = Pairs::default();
    pairs.text("general.architecture", family);
    pairs.text("general.type", "model");
    pairs.text("general.name", &path.file_name().map_or_else(|| family.into(), |name| name.to_string_lossy()));
    for (name, value) in [
        ("context_length", d.max_position),
        ("embedding_length", d.hidden),
        ("block_count", d.layers),
        ("feed_forward_length", d.intermediate),
        ("attention.head_count", d.heads),
        ("attention.head_count_kv", d.kv_heads),
        ("attention.key_length", d.head_dim),
        ("attention.value_length", d.head_dim),
        ("rope.dimension_count", d.head_dim),
        ("vocab_size", d.vocab),
    ] {
        pairs.integer(&key(name), value as u32);
    }
    pairs.number(&key("attention.layer_norm_rms_epsilon"), d.norm_epsilon);
    pairs.number(&key("rope.freq_base"), d.rope_theta);
    if let RopeScaling::Linear { factor } = d.rope_scaling {
        pairs.text(&key("rope.scaling.type"), "linear");
        pairs.number(&key("rope.scaling.factor"), factor);
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The divisors of a Llama 3 model, by the definition.
    fn divisors(factor: f64, original: f64, head_dim: i64, theta: f64) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|pair| {
                let wavelength = std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
                let keep = ((original / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
                (1.0 / (keep + (1.0 - keep) / factor)) as f32
            })
            .collect()
    }

    #[test]
    fn llama3_scaling_is_recovered_from_its_divisors() {
        // Llama 3.2 1B: factor 32 over an original context of 8192, head size 64.
        let scaling = llama3_scaling(&divisors(32.0, 8192.0, 64, 500_000.0), 64, 500_000.0, None).unwrap();
        assert_eq!(scaling["factor"], 32.0);
        assert_eq!(scaling["original_max_position_embeddings"], 8192.0);
        assert_eq!(scaling["rope_type"], "llama3");
    }

    #[test]
    fn other_divisors_are_refused() {
        let mut divisors = divisors(32.0, 8192.0, 64, 500_000.0);
        divisors[3] = 2.0;
        assert!(llama3_scaling(&divisors, 64, 500_000.0, None).unwrap_err().contains("rope_freqs"));
    }

    #[test]
    fn no_scaling_is_null() {
        assert_eq!(llama3_scaling(&[1.0; 32], 64, 500_000.0, None).unwrap(), Value::Null);
    }
}
