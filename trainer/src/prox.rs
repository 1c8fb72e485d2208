//! Constraints on an update, applied to gated low-rank layers after the optimizer's step.
//!
//! A proximal operator maps the result `v` of the step to `argmin ½(x − v)² + p(x)`, where `p` is a penalty on gates,
//! or projects it onto a set. It makes gates exactly zero, and a rank with a zero gate can be pruned. A config names at
//! most one penalty, each a file here:
//!
//! ```text
//! soft_threshold   ξ |g|: every gate shrinks alike (SoRA)
//! mcp, scad        the same near zero, nothing beyond a knee: open gates are not shrunk
//! group_sparse     the tightest convex bound below "at most this share of ranks, or of modules"
//! ```
//!
//! Beside it may stand a budget of ranks over all layers, a bound on the norms that a closing gate could hide in, and
//! the stages of a rising threshold. Gates stay in f32, because pruning requires exact zeros.

mod constraints;
mod group_sparse;
mod mcp;
mod norm_bound;
#[cfg(test)]
mod planted;
mod rank_budget;
mod scad;
mod soft_threshold;
mod stages;
#[cfg(test)]
mod testing;
mod threshold;

pub use constraints::{Constraints, RunExtent};
pub use group_sparse::{Cost, Group, GroupSparse};
pub use mcp::Mcp;
pub use norm_bound::NormBound;
pub use rank_budget::RankBudget;
pub use scad::Scad;
pub use soft_threshold::{Form, SoftThreshold, gate_l1};
pub use stages::{Spacing, Stages, threshold_stages};
pub use threshold::ThresholdScale;

use crate::Result;
use crate::optimizer::GateRule;
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Position of an update in the run, and its learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateContext {
    /// Learning rate of the gates in the step just taken.
    pub learning_rate: f64,
    /// Training step, counted from 1.
    pub step: u64,
    /// Training steps of the whole run.
    pub steps: u64,
}

/// A constraint on gated layers.
pub trait Prox {
    /// Applies the constraint in place, without gradient. Penalties and budgets move gates, a bound on norms moves `A`
    /// and `B`. Gates that the constraint removes become exactly zero. Layers without a gate are left unchanged.
    fn apply(&self, layers: &[&LowRank], context: UpdateContext);
}

/// A constraint with a threshold as its strength, which the stages of a run may raise.
trait Penalty: Prox {
    /// Returns the threshold of the first stage.
    fn threshold(&self) -> f64;

    /// Returns the same penalty at another threshold.
    fn at(&self, threshold: f64) -> Box<dyn Prox>;

    /// Checks the settings at a threshold and the largest learning rate of the gates; returns an error for one outside
    /// its range.
    fn validate(&self, threshold: f64, learning_rate: f64) -> Result<()>;
}

/// `[prox]`: constraints on the gates of a sparse adapter. At most one of the four penalties, and the three that may
/// stand beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxConfig {
    /// Soft threshold of `SoRA`: every gate shrinks by the same amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_threshold: Option<SoftThreshold>,
    /// Minimax concave penalty: small gates shrink, gates beyond the knee do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Mcp>,
    /// Smoothly clipped absolute deviation: as the soft threshold up to a shoulder, then fading to nothing at the knee.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scad: Option<Scad>,
    /// Weighted group sparse envelope: only a given share of ranks or modules stays open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_sparse: Option<GroupSparse>,
    /// Stages of a rising threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// Budget of open ranks over all layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_budget: Option<RankBudget>,
    /// Bound on the norms of the rows of `A` and the columns of `B`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_bound: Option<NormBound>,
}

impl ProxConfig {
    /// A warning about a threshold that decides alone, whatever a gate is worth; `learning_rate` is the largest one of the
    /// gates.
    ///
    /// # Errors
    /// If every gate would close within a few updates.
    pub(crate) fn warning(&self, rule: Option<GateRule>, learning_rate: f64) -> Result<Option<String>> {
        self.soft_threshold.as_ref().map_or(Ok(None), |penalty| penalty.warning(rule, learning_rate))
    }
}

/// Replaces every gate by `operator(gate)`, in place.
fn map_gates(layers: &[&LowRank], operator: impl Fn(&Tensor) -> Tensor) {
    let _guard = tch::no_grad_guard();
    for gate in layers.iter().filter_map(|layer| layer.gate.as_ref()) {
        gate.shallow_clone().copy_(&operator(gate));
    }
}

#[cfg(test)]
mod tests;
