//! Rotary position embedding (Su et al. 2021), with the linear and Llama 3 scalings.
//!
//! Pair `i` of a head (elements `i` and `i + d/2`) turns by `position · θ^(-2i/d)`. Llama 3 slows the slow pairs
//! down so that longer contexts stay within the angles seen in training: wavelengths above `original / low` are
//! divided by `factor`, those below `original / high` are kept, and those between are interpolated.

use crate::{Error, Result};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// How the inverse frequencies are scaled.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// By how much the context grew.
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling.
    Llama3 {
        /// By how much slow frequencies are divided.
        factor: f64,
        /// `original / low` is the wavelength above which a frequency counts as slow.
        low_freq_factor: f64,
        /// `original / high` is the wavelength below which a frequency is kept.
        high_freq_factor: f64,
        /// The context length of pre-training, in tokens.
        original_max_position: f64,
    },
}

impl RopeScaling {
    /// Reads the hub's `rope_scaling` or `rope_parameters` object.
    pub fn parse(value: Option<&Value>) -> Result<Self> {
        let Some(object) = value.filter(|value| value.is_object()) else { return Ok(Self::None) };
        let kind = ["rope_type", "type"].iter().find_map(|key| object.get(key)?.as_str()).unwrap_or("default");
        let number = |key: &str| {
            object.get(key).and_then(Value::as_f64).ok_or_else(|| {
                Error::input(format!("config.json: rope_scaling of type `{kind}` needs a number `{key}`"))
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

    /// The scaled inverse frequency.
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

/// The inverse frequencies of one head size.
#[derive(Debug)]
pub(super) struct Rope {
    inverse_frequencies: Tensor,
    kind: Kind,
}

impl Rope {
    pub(super) fn new(head_dim: i64, theta: f64, scaling: &RopeScaling, device: Device, kind: Kind) -> Self {
        let frequencies: Vec<f64> = (0..head_dim / 2)
            .map(|pair| scaling.apply(theta.powf(-2.0 * pair as f64 / head_dim as f64)))
            .map(|frequency| f64::from(frequency as f32))
            .collect();
        let inverse_frequencies = Tensor::from_slice(&frequencies).to_kind(Kind::Float).to_device(device);
        Self { inverse_frequencies, kind }
    }

    /// Cosines and sines of each position, each `[token, 1, head_dim]`, computed in f32.
    pub(super) fn angles(&self, positions: &Tensor) -> Angles {
        let half = positions.to_kind(Kind::Float).unsqueeze(1) * self.inverse_frequencies.unsqueeze(0);
        let angles = Tensor::cat(&[&half, &half], 1).unsqueeze(1);
        Angles { cos: angles.cos().to_kind(self.kind), sin: angles.sin().to_kind(self.kind) }
    }
}

/// The rotation of each token of a batch.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Angles {
    /// Turns `[token, head, head_dim]` back.
    pub(super) fn rotate_back(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let turned = Tensor::cat(&[x.narrow(2, half, half), -x.narrow(2, 0, half)], 2);
        x * &self.cos + turned * &self.sin
    }

    /// Turns `[token, head, head_dim]`.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let turned = Tensor::cat(&[-x.narrow(2, half, half), x.narrow(2, 0, half)], 2);
        x * &self.cos + turned * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;
    use serde_json::json;

    #[test]
    fn position_zero_is_not_turned_and_lengths_are_kept() {
        let rope = Rope::new(4, 10_000.0, &RopeScaling::None, HOST, Kind::Float);
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]).reshape([2, 1, 4]);
        let y = rope.angles(&Tensor::from_slice(&[0i64, 5])).rotate(&x);
        assert!(y.get(0).allclose(&x.get(0), 1e-6, 1e-6, false));
        assert!((y.get(1).norm().double_value(&[]) - 30f64.sqrt()).abs() < 1e-5);
        // the first pair (1, 3) turns by 5 radians
        let expected = 1.0 * 5f64.cos() - 3.0 * 5f64.sin();
        assert!((y.double_value(&[1, 0, 0]) - expected).abs() < 1e-5);
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_slows_slow_ones() {
        let scaling = RopeScaling::parse(Some(&json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        })))
        .unwrap();
        assert_eq!(scaling.apply(1.0), 1.0);
        assert!((scaling.apply(1e-5) - 1e-5 / 8.0).abs() < 1e-12);
        let error = RopeScaling::parse(Some(&json!({"type": "yarn", "factor": 2.0}))).unwrap_err().to_string();
        assert!(error.contains("`yarn` is not supported"), "{error}");
    }
}
