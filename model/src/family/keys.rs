//! The keys of a `config.json`, apart from those that are read.
//!
//! A key that changes the network is read or refused by its name ([`FOREIGN`]); one that does not is known
//! ([`HARMLESS`]). An unknown key is warned of: it may be a tool's mark, or another network.

use crate::{Error, Result};
use serde_json::Value;

/// Keys that are read by `family/fields.rs` or a family.
const READ: [&str; 20] = [
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Keys that change nothing of what the network computes for a prompt: names, formats, ids of tokens (read by the
/// tokenizer), settings of training, of generation and of transformers' outputs. `sliding_window` and
/// `max_window_layers` count only with `use_sliding_window`, and `pretraining_tp` only cuts a product into parts.
const HARMLESS: [&str; 81] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "ignore_keys_at_rope_validation",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "sliding_window",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention_2",
    "use_return_dict",
    "vocab_file",
    "max_new_tokens",
    "language",
];

/// Keys that make another network of it, in transformers or in code that comes with a model, and the decoder lacks.
const FOREIGN: [&str; 38] = [
    "add_cross_attention",
    "alibi",
    "attention_chunk_size",
    "attention_multiplier",
    "attention_out_bias",
    "attn_logit_softcapping",
    "auto_map",
    "clip_qkv",
    "cross_attention_hidden_size",
    "embedding_multiplier",
    "final_logit_softcapping",
    "hidden_activation",
    "is_encoder_decoder",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "moe_intermediate_size",
    "no_rope_layers",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",
    "num_nextn_predict_layers",
    "original_max_position_embeddings",
    "parallel_attn",
    "pruned_heads",
    "q_lora_rank",
    "qk_layernorm",
    "quantization",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
    "rotary_pct",
    "scale_attn_weights",
    "scale_embedding",
    "use_mrope",
    "use_qk_norm",
    "vision_config",
];

/// Refuses keys that make another network, and warns of keys that are not known.
///
/// # Errors
/// If a key of [`FOREIGN`] is set.
pub(super) fn check(config: &Value) -> Result<()> {
    let fields = || config.as_object().into_iter().flatten().filter(|(_, value)| !is_off(value));
    if let Some((key, value)) = fields().find(|(key, _)| FOREIGN.contains(&key.as_str())) {
        let value: String = value.to_string().chars().take(60).collect();
        return Err(Error::input(format!(
            "config.json: `{key}` is set ({value}), which changes the network and is not supported; use a model without it"
        )));
    }
    let unknown: Vec<&str> = fields().map(|(key, _)| key.as_str()).filter(|key| !is_known(key)).collect();
    if !unknown.is_empty() {
        tracing::warn!(
            "config.json has keys that are not known here and change nothing: {}; does one of them change the network?",
            unknown.join(", ")
        );
    }
    Ok(())
}

fn is_known(key: &str) -> bool {
    READ.contains(&key) || HARMLESS.contains(&key)
}

/// True for the values by which a setting says that it is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::dimensions;
    use serde_json::json;

    /// The keys that transformers 5.24 writes for the three families.
    const WRITTEN: [&str; 28] = [
        "architectures",
        "attention_bias",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "pretraining_tp",
        "rms_norm_eps",
        "rope_parameters",
        "sliding_window",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
        "use_sliding_window",
    ];

    fn config(family: &str, key: &str, value: Value) -> Value {
        let mut config = json!({
            "model_type": family, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 262,
        });
        config[key] = value;
        config
    }

    #[test]
    fn each_key_has_one_meaning() {
        for key in WRITTEN.iter().chain(&["vocab_size"]) {
            assert!(is_known(key), "{key}");
        }
        for key in FOREIGN {
            assert!(!is_known(key), "{key}");
        }
        assert!(READ.iter().all(|key| !HARMLESS.contains(key)));
    }

    #[test]
    fn a_key_of_another_network_is_refused_by_name() {
        for family in ["llama", "qwen2", "qwen3"] {
            for key in FOREIGN {
                let error = dimensions(&config(family, key, json!(2))).unwrap_err();
                assert!(error.is_input() && error.to_string().contains(&format!("`{key}` is set (2)")), "{error}");
                assert!(dimensions(&config(family, key, Value::Null)).is_ok(), "{key}");
            }
            for key in HARMLESS {
                assert!(dimensions(&config(family, key, json!(2))).is_ok(), "{key}");
            }
        }
    }
}
