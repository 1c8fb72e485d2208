//! The sizes of a network and of its linear layers.

use crate::{Error, Result};
use serde_json::{Map, Value};

/// The sizes and switches of a decoder, as the hub's `config.json` gives them.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent key of the hub's config.json")]
pub struct Dimensions {
    /// Rows of the embedding in a config; in a loaded network the tokens, which have text.
    pub vocab: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Width inside the feed-forward layer.
    pub intermediate: i64,
    /// Decoder layers.
    pub layers: i64,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// Added to the mean square inside each RMS norm.
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Context length of the model, in tokens.
    pub max_position: i64,
    /// The output head is the embedding matrix.
    pub tied_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention output has a bias.
    pub output_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Queries and keys are normed per head.
    pub qk_norm: bool,
}

impl Dimensions {
    /// The number of parameters, tied ones counted once.
    pub fn parameters(&self) -> i64 {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        let layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden;
        let tables = if self.tied_embeddings { 1 } else { 2 };
        self.layers * layer + tables * self.vocab * self.hidden + self.hidden
    }
}

/// A linear layer that an adapter may attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// The hub's name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Columns of the weight, `[outputs, inputs]`.
    pub inputs: i64,
    /// Rows of the weight.
    pub outputs: i64,
}

impl LinearShape {
    /// The last part of the layer's name, such as `q_proj`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// True if `target` names this layer: by its short name, its full name, or as `all-linear`.
    pub(crate) fn is_target(&self, target: &str) -> bool {
        target == "all-linear" || self.short_name() == target || self.name == target
    }
}

/// The scaling of the rotary frequencies.
///
/// Llama 3 slows the slow pairs down so that longer contexts stay within the angles seen in training: wavelengths above
/// `original / low` are divided by `factor`, those below `original / high` are kept, and those between are
/// interpolated.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// Ratio of the new context length to that of pre-training.
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling.
    Llama3 {
        /// Divisor of slow frequencies.
        factor: f64,
        /// A frequency is slow if its wavelength exceeds `original / low`.
        low_freq_factor: f64,
        /// A frequency is kept if its wavelength is below `original / high`.
        high_freq_factor: f64,
        /// The context length of pre-training, in tokens.
        original_max_position: f64,
    },
}

impl RopeScaling {
    /// Reads the hub's `rope_scaling` or `rope_parameters` object; its absence means no scaling.
    ///
    /// # Errors
    /// If the type is not supported, or one of its numbers is missing.
    pub fn parse(object: Option<&Map<String, Value>>) -> Result<Self> {
        let Some(object) = object else { return Ok(Self::None) };
        let kind = ["rope_type", "type"].into_iter().find_map(|key| object.get(key)?.as_str()).unwrap_or("default");
        let number = |key: &str| {
            object.get(key).and_then(Value::as_f64).filter(|number| *number > 0.0).ok_or_else(|| {
                Error::input(format!("config.json: rope_scaling of type `{kind}` needs a number `{key}` above 0"))
            })
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: number("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position: number("original_max_position_embeddings")?,
            }),
            other => Err(Error::input(format!(
                "config.json: rope_scaling type `{other}` is not supported; default, linear and llama3 are"
            ))),
        }
    }

    /// The scaled form of an inverse frequency.
    pub(crate) fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let wavelength = std::f64::consts::TAU / frequency;
                let smooth =
                    (original_max_position / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let keep = smooth.clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn llama3_keeps_fast_pairs_and_slows_slow_ones() {
        let parse = |object: Value| RopeScaling::parse(object.as_object());
        let scaling = parse(json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        }))
        .unwrap();
        assert_eq!(scaling.apply(1.0), 1.0);
        assert!((scaling.apply(1e-5) - 1e-5 / 8.0).abs() < 1e-12);
        let error = parse(json!({"type": "yarn", "factor": 2.0})).unwrap_err().to_string();
        assert!(error.contains("`yarn` is not supported"), "{error}");
    }
}
