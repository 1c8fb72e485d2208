//! Typed access to a `config.json`, with errors that name the key.

use crate::dimensions::{Dimensions, RopeScaling};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// The fields of a `config.json`.
pub(super) struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    pub(super) fn new(config: &'a Value) -> Self {
        Self(config)
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A switch; off if it is missing.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(key, "true or false", value))
    }

    /// Refuses a config that turns on sliding-window attention, which the decoder does not have.
    ///
    /// # Errors
    /// If `use_sliding_window` is true, or a layer is of another type than `full_attention`.
    pub(super) fn refuse_sliding_window(&self) -> Result<()> {
        if self.flag("use_sliding_window")? {
            return Err(Error::input(
                "config.json: use_sliding_window = true is not supported; models that were released with it off work",
            ));
        }
        let kinds = self.get("layer_types").and_then(Value::as_array).into_iter().flatten();
        match kinds.into_iter().find(|kind| kind.as_str() != Some("full_attention")) {
            Some(kind) => Err(wrong("layer_types", "`full_attention` for each layer", kind)),
            None => Ok(()),
        }
    }

    fn positive(&self, key: &str) -> Result<i64> {
        self.optional(key)?.ok_or_else(|| Error::input(format!("config.json: `{key}` is missing")))
    }

    /// A positive whole number, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn optional(&self, key: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_i64().filter(|number| (1..=1 << 32).contains(number));
        number.map(Some).ok_or_else(|| wrong(key, "a positive whole number", value))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |value| above_zero(key, value))
    }

    /// The sizes that all families share, with biases and norms per head off.
    ///
    /// # Errors
    /// If a size is missing or not a positive whole number, or a setting is not supported.
    pub(super) fn dimensions(&self) -> Result<Dimensions> {
        let hidden = self.positive("hidden_size")?;
        let heads = self.positive("num_attention_heads")?;
        let kv_heads = self.optional("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Error::input(format!(
                "config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        if let Some(activation) = self.get("hidden_act").filter(|activation| activation.as_str() != Some("silu")) {
            let activation = activation.as_str().map_or_else(|| activation.to_string(), str::to_owned);
            return Err(Error::input(format!("config.json: hidden_act `{activation}` is not supported, only silu is")));
        }
        let (rope_theta, rope_scaling) = self.rope()?;
        Ok(Dimensions {
            vocab: self.positive("vocab_size")?,
            hidden,
            intermediate: self.positive("intermediate_size")?,
            layers: self.positive("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim: self.optional("head_dim")?.unwrap_or(hidden / heads),
            norm_epsilon: self.number("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            max_position: self.optional("max_position_embeddings")?.unwrap_or(2048),
            tied_embeddings: self.flag("tie_word_embeddings")?,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
        })
    }

    /// Base and scaling of the rotary frequencies.
    ///
    /// transformers 5 writes `rope_parameters` where older versions wrote `rope_scaling` and `rope_theta`. Where both
    /// objects are there, `rope_scaling` counts and the other is left out; a `rope_theta` inside the object that counts
    /// goes before one beside it.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let (parameters, scaling) = (self.object("rope_parameters")?, self.object("rope_scaling")?);
        let counts = scaling.or(parameters);
        let inside = |object: Option<&'a Map<String, Value>>| {
            let theta = object.and_then(|object| object.get("rope_theta")).filter(|theta| !theta.is_null());
            theta.map(|theta| above_zero("rope_theta", theta)).transpose()
        };
        let theta = match inside(counts)? {
            Some(theta) => theta,
            None => self.number("rope_theta", 10_000.0)?,
        };
        if let Some(other) = inside(parameters)?.filter(|other| *other != theta) {
            return Err(Error::input(format!(
                "config.json: rope_scaling is beside rope_parameters, whose rope_theta ({other}) is then left out for \
                 {theta}; write rope_theta into rope_scaling, and remove rope_parameters"
            )));
        }
        let mut keys = counts.into_iter().flat_map(Map::keys);
        if let Some(key) = keys.find(|key| !ROPE_KEYS.contains(&key.as_str())) {
            return Err(Error::input(format!("config.json: `{key}` of the rotary embedding is not supported")));
        }
        if let Some(part) = counts.and_then(|object| object.get("partial_rotary_factor")) {
            refuse_partial_rotation(part)?;
        }
        if let Some(part) = self.get("partial_rotary_factor") {
            refuse_partial_rotation(part)?;
        }
        Ok((theta, RopeScaling::parse(counts)?))
    }

    /// An object that is there and not empty.
    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields).filter(|fields| !fields.is_empty())),
            Some(other) => Err(wrong(key, "an object", other)),
        }
    }
}

/// Keys of a `rope_parameters` or `rope_scaling` object: those that are read, and numbers of scalings that are refused
/// by their type, which transformers passes over beside another type.
const ROPE_KEYS: [&str; 11] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
];

fn refuse_partial_rotation(part: &Value) -> Result<()> {
    if part.is_null() || part.as_f64() == Some(1.0) {
        return Ok(());
    }
    Err(Error::input(format!("config.json: partial_rotary_factor = {part} is not supported, only 1 is")))
}

fn above_zero(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|number| *number > 0.0).ok_or_else(|| wrong(key, "a number above 0", value))
}

fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    Error::input(format!("config.json: `{key}` must be {expected}, but is {value}"))
}
