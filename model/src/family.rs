//! Network families: which decoder a hub's `config.json` describes.
//!
//! A family is one file with one function: it reads `config.json` into [`Dimensions`], whose switches (biases, norms
//! per head, rotary scaling) select the family's variant of the shared decoder.

mod llama;
mod qwen2;
mod qwen3;

use crate::dimensions::{Dimensions, RopeScaling};
use crate::{Error, Result};
use serde_json::Value;

/// A function that reads a family's `config.json`.
type ReadConfig = fn(&Value) -> Result<Dimensions>;

/// The families by the hub's `model_type`. A new family is one file and its line here.
const FAMILIES: &[(&str, ReadConfig)] =
    &[("llama", llama::dimensions), ("qwen2", qwen2::dimensions), ("qwen3", qwen3::dimensions)];

/// Reads the sizes of a network from the hub's `config.json`.
///
/// # Errors
/// If the `model_type` or a setting is not supported, or a size is missing or not a positive whole number.
pub fn dimensions(config: &Value) -> Result<Dimensions> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, read) = FAMILIES.iter().find(|(name, _)| *name == model_type).ok_or_else(|| {
        Error::input(format!("model_type `{model_type}` is not supported; known families: {}", known()))
    })?;
    read(config)
}

/// Typed access to a `config.json`, with errors that name the key.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn new(config: &'a Value) -> Self {
        Self(config)
    }

    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Refuses a config that turns on sliding-window attention, which the decoder does not have.
    fn refuse_sliding_window(&self) -> Result<()> {
        if self.flag("use_sliding_window") {
            return Err(Error::input(
                "config.json: use_sliding_window = true is not supported; models that were released with it off work",
            ));
        }
        Ok(())
    }

    fn positive(&self, key: &str) -> Result<i64> {
        self.optional(key)?.ok_or_else(|| Error::input(format!("config.json: `{key}` is missing")))
    }

    fn optional(&self, key: &str) -> Result<Option<i64>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_i64().filter(|number| (1..=1 << 32).contains(number)).map(Some).ok_or_else(|| {
                Error::input(format!("config.json: `{key}` must be a positive whole number, but is {value}"))
            }),
        }
    }

    /// The sizes that all families share, with biases and norms per head off.
    fn dimensions(&self) -> Result<Dimensions> {
        let hidden = self.positive("hidden_size")?;
        let heads = self.positive("num_attention_heads")?;
        let kv_heads = self.optional("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Error::input(format!(
                "config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        let activation = self.0.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::input(format!("config.json: hidden_act `{activation}` is not supported, only silu is")));
        }
        // transformers 5 writes `rope_parameters` where older versions wrote `rope_scaling` and `rope_theta`.
        let rope = self.0.get("rope_parameters").or(self.0.get("rope_scaling")).filter(|value| !value.is_null());
        let theta = self.0.get("rope_theta").or(rope.and_then(|rope| rope.get("rope_theta"))).and_then(Value::as_f64);
        Ok(Dimensions {
            vocab: self.positive("vocab_size")?,
            hidden,
            intermediate: self.positive("intermediate_size")?,
            layers: self.positive("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim: self.optional("head_dim")?.unwrap_or(hidden / heads),
            norm_epsilon: self.0.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: RopeScaling::parse(rope)?,
            max_position: self.optional("max_position_embeddings")?.unwrap_or(2048),
            tied_embeddings: self.flag("tie_word_embeddings"),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
        })
    }
}
