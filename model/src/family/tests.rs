//! The key that counts of several, and the settings that are refused.

use super::*;
use crate::dimensions::RopeScaling;
use serde_json::json;

fn read_with(family: &str, keys: &Value) -> Result<Dimensions> {
    let mut config = json!({
        "model_type": family, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 262,
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    dimensions(&config)
}

const NAMES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Each of the keys, read by every family: base and scaling of the rotary frequencies.
#[test]
fn rope_scaling_counts_before_rope_parameters() {
    let plain = json!({"rope_type": "default", "rope_theta": 10_000.0});
    let linear = |factor: f64| RopeScaling::Linear { factor };
    for (keys, theta, scaling) in [
        (json!({}), 10_000.0, RopeScaling::None),
        (json!({"rope_theta": 5e5}), 5e5, RopeScaling::None),
        (json!({"rope_parameters": plain}), 10_000.0, RopeScaling::None),
        (json!({"rope_parameters": plain, "rope_scaling": null}), 10_000.0, RopeScaling::None),
        (json!({"rope_parameters": plain, "rope_scaling": {}}), 10_000.0, RopeScaling::None),
        (json!({"rope_parameters": plain, "rope_scaling": {"type": "linear", "factor": 2}}), 10_000.0, linear(2.0)),
        (
            json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {"type": "default"}}),
            10_000.0,
            RopeScaling::None,
        ),
        // Inside goes before beside.
        (json!({"rope_parameters": plain, "rope_theta": 7.0}), 10_000.0, RopeScaling::None),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2, "rope_theta": 9.0}, "rope_theta": 7.0}),
            9.0,
            linear(2.0),
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 7.0}), 7.0, linear(2.0)),
    ] {
        for family in NAMES {
            let found = read_with(family, &keys).unwrap();
            assert_eq!((found.rope_theta, &found.rope_scaling), (theta, &scaling), "{family}: {keys}");
        }
    }
}

#[test]
fn what_the_decoder_lacks_is_refused_by_every_family() {
    let plain = json!({"rope_type": "default", "rope_theta": 10_000.0});
    let kinds = ["yarn", "dynamic", "longrope", "proportional", "su"];
    let scalings = kinds.map(|kind| {
        let scaling = json!({"type": kind, "factor": 4.0, "original_max_position_embeddings": 64});
        (json!({"rope_parameters": plain, "rope_scaling": scaling}), "is not supported")
    });
    let others = [
        (json!({"rope_scaling": {"type": "linear"}}), "needs a number `factor`"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "`factor` above 0"),
        (json!({"rope_scaling": "yarn"}), "`rope_scaling` must be an object"),
        (json!({"rope_scaling": {"mrope_section": [1, 2]}}), "`mrope_section`"),
        (json!({"rope_parameters": {"full_attention": plain}}), "`full_attention`"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor = 0.5"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
        // transformers would go on with 10,000.
        (
            json!({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"type": "linear", "factor": 2}}),
            "rope_theta (500000) is then left out for 10000",
        ),
        (json!({"rope_theta": "10000"}), "`rope_theta` must be a number above 0"),
        (json!({"rms_norm_eps": "1e-6"}), "`rms_norm_eps` must be a number above 0"),
        (json!({"tie_word_embeddings": "true"}), "`tie_word_embeddings` must be true or false"),
        (json!({"hidden_act": "gelu"}), "hidden_act `gelu`"),
        (json!({"hidden_act": 1}), "hidden_act `1`"),
        (json!({"use_sliding_window": true}), "use_sliding_window"),
        (json!({"layer_types": ["sliding_attention"]}), "`layer_types`"),
        (json!({"quantization_config": {"bits": 4}}), "`quantization_config`"),
    ];
    for (keys, sentence) in scalings.into_iter().chain(others) {
        for family in NAMES {
            let error = read_with(family, &keys).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(sentence), "{family}, {keys}: {error}");
        }
    }
}

#[test]
fn a_head_size_that_is_missing_is_the_familys() {
    let without = |family: &str| read_with(family, &json!({"head_dim": null})).unwrap().head_dim;
    assert_eq!(NAMES.map(without), [8, 8, 128]);
}
