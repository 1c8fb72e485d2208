//! Constraints on an update, applied to gated low-rank layers after the optimizer's step.
//!
//! A proximal operator moves what the step produced to `argmin ½(x − v)² + p(x)`, where `p` is a penalty on gates, or
//! onto a set. It makes gates exactly zero, and the rank that a zero gate leads to can be cut away. A config names at
//! most one penalty, each a file here:
//!
//! ```text
//! soft_threshold   ξ |g|: every gate falls alike (SoRA)
//! mcp, scad        the same near zero, nothing beyond a knee: open gates are not shrunk
//! group_sparse     the tightest convex bound below "at most this share of ranks, or of modules"
//! ```
//!
//! and beside it a budget of ranks over all layers, a bound on the norms that a closing gate could hide in, and the
//! stages of a rising threshold. Gates stay in f32, because pruning asks for exact zeros.

mod constraints;
mod group_sparse;
mod mcp;
mod norm_bound;
mod rank_budget;
mod scad;
mod soft_threshold;
mod stages;
#[cfg(test)]
mod testing;
mod threshold;

pub use constraints::{Constraints, Setting};
pub use group_sparse::{Cost, Group, GroupSparse};
pub use mcp::Mcp;
pub use norm_bound::NormBound;
pub use rank_budget::RankBudget;
pub use scad::Scad;
pub use soft_threshold::{Form, SoftThreshold, gate_l1};
pub use stages::{Spacing, Stages, threshold_stages};
pub use threshold::ThresholdScale;

use crate::Result;
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// When an update was taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// The gates' learning rate in the step just taken.
    pub learning_rate: f64,
    /// The training step, counted from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

/// A constraint on gated layers.
pub trait Prox {
    /// Moves gates in place, without gradient; a bound on norms moves `A` and `B`. Gates that the constraint removes
    /// become exactly zero. Layers without a gate are left alone.
    fn apply(&self, layers: &[&LowRank], moment: Moment);
}

/// A constraint whose strength is a threshold, which the stages of a run may raise.
trait Penalty: Prox {
    /// The strength of the first stage.
    fn threshold(&self) -> f64;

    /// The same penalty at another strength.
    fn at(&self, threshold: f64) -> Box<dyn Prox>;

    /// Refuses settings out of their range, at a threshold and the largest learning rate of the gates.
    fn validate(&self, threshold: f64, learning_rate: f64) -> Result<()>;
}

/// `[prox]`: constraints on gates. One of the four penalties, and what may stand beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxConfig {
    /// The soft threshold of `SoRA`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_threshold: Option<SoftThreshold>,
    /// The minimax concave penalty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Mcp>,
    /// The smoothly clipped absolute deviation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scad: Option<Scad>,
    /// The weighted group sparse envelope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_sparse: Option<GroupSparse>,
    /// A threshold that rises in stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// The most ranks that stay, over all layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_budget: Option<RankBudget>,
    /// The largest norm of a row of `A` and a column of `B`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_bound: Option<NormBound>,
}

/// Replaces every gate by what `operator` makes of it, in place.
fn map_gates(layers: &[&LowRank], operator: impl Fn(&Tensor) -> Tensor) {
    let _guard = tch::no_grad_guard();
    for gate in layers.iter().filter_map(|layer| layer.gate.as_ref()) {
        gate.shallow_clone().copy_(&operator(gate));
    }
}

#[cfg(test)]
mod tests;
