//! The threshold of a penalty: a constant, or a multiple of the learning rate.
//!
//! The proximal step of `η λ |g|`, which belongs to a gradient step of length η, has the threshold `ξ = η λ`. `SoRA`'s
//! published code uses a constant ξ: with a rate that falls to zero, the end of training is then pure shrinkage.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Factor on a penalty's threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdScale {
    /// `threshold` itself.
    Constant,
    /// `threshold` times the learning rate of the step.
    #[default]
    LearningRate,
}

impl ThresholdScale {
    /// Returns ξ at this learning rate.
    pub fn apply(self, threshold: f64, learning_rate: f64) -> f64 {
        match self {
            Self::Constant => threshold,
            Self::LearningRate => threshold * learning_rate,
        }
    }
}

/// Returns an error for a threshold that is negative or not finite.
pub(super) fn validate(penalty: &str, threshold: f64) -> Result<()> {
    if threshold.is_finite() && threshold >= 0.0 {
        return Ok(());
    }
    Err(Error::input(format!("`prox.{penalty}.threshold` is {threshold}; it must be a number of at least 0")))
}

/// Returns an error if a concave penalty would have no single minimum: if `largest`, the largest threshold, is not
/// below `width`, the width of its bend.
pub(super) fn validate_bend(penalty: &str, largest: f64, width: f64) -> Result<()> {
    if width.is_finite() && largest < width {
        return Ok(());
    }
    Err(Error::input(format!(
        "`prox.{penalty}` moves a gate by up to {largest:.3e} in an update, but its bend is only {width:.3e} wide, so \
         the gate would jump; lower `threshold` or raise `knee`"
    )))
}
