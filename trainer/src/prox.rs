//! Constraints on an update, applied to gates after the optimizer's step.
//!
//! A proximal operator pulls what the step produced towards a simple set. The soft threshold of SoRA is the first: it
//! sets gates to exactly zero, and the rank that a zero gate leads to can be cut away. Gates stay in f32, because
//! pruning asks for exact zeros.

mod soft_threshold;

pub use soft_threshold::{Form, SoftThreshold, Spacing, ThresholdScale, gate_l1, threshold_stages};

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// A constraint on gates.
pub trait Prox {
    /// Moves the gate in place, without gradient; `learning_rate` is that of the step just taken. Entries that the
    /// constraint removes become exactly zero.
    fn apply(&self, gate: &mut Tensor, learning_rate: f64);
}

/// The choice of a constraint in the config: `prox.soft_threshold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxConfig {
    /// The soft threshold of SoRA.
    SoftThreshold(SoftThreshold),
}

impl Default for ProxConfig {
    fn default() -> Self {
        Self::SoftThreshold(SoftThreshold::default())
    }
}

impl ProxConfig {
    /// The constraint.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn build(&self) -> crate::Result<Box<dyn Prox>> {
        match self {
            Self::SoftThreshold(prox) => {
                prox.validate()?;
                Ok(Box::new(prox.clone()))
            }
        }
    }
}
