//! The minimax concave penalty (C.-H. Zhang, Annals of Statistics 38, 2010): firm thresholding.
//!
//! ```text
//! p(x) = ξ (|x| − x²/2κ) for |x| ≤ κ, and ξ κ/2 beyond
//! T(v) = 0                                     for |v| ≤ ξ
//!      = sign(v) (|v| − ξ) / (1 − ξ/κ)         for ξ < |v| ≤ κ
//!      = v                                     for |v| > κ
//! ```
//!
//! Near zero it is the soft threshold. The pull weakens as the gate grows and ends at the knee κ, so an open rank is
//! not shrunk in every step, as it is under L1. In the paper κ = γλ; here the knee is a setting of its own, so that it
//! does not move with the learning rate that scales ξ.

use super::threshold::{self, ThresholdScale};
use super::{Penalty, Prox, UpdateContext, map_gates};
use crate::Result;
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[prox.mcp]`: the minimax concave penalty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mcp {
    /// Threshold: ξ itself if `scale` is `constant`, λ with `ξ = η λ` if it is `learning_rate`; 0 leaves gates
    /// unchanged.
    pub threshold: f64,
    /// Factor on the threshold: 1 (`constant`) or the learning rate (`learning_rate`).
    pub scale: ThresholdScale,
    /// Knee κ: gates of a larger magnitude are not pulled.
    pub knee: f64,
}

impl Default for Mcp {
    /// The knee is at twice the initial gates.
    fn default() -> Self {
        Self { threshold: 1.0, scale: ThresholdScale::default(), knee: 2.0 }
    }
}

impl Mcp {
    fn operator(&self, gate: &Tensor, threshold: f64) -> Tensor {
        let firm = gate.sign() * (gate.abs() - threshold).clamp_min(0.0) * (1.0 - threshold / self.knee).recip();
        firm.where_self(&gate.abs().le(self.knee), gate)
    }
}

impl Prox for Mcp {
    fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let threshold = self.scale.apply(self.threshold, context.learning_rate);
        map_gates(layers, |gate| self.operator(gate, threshold));
    }
}

impl Penalty for Mcp {
    fn threshold(&self) -> f64 {
        self.threshold
    }

    fn at(&self, threshold: f64) -> Box<dyn Prox> {
        Box::new(Self { threshold, ..self.clone() })
    }

    fn validate(&self, threshold: f64, learning_rate: f64) -> Result<()> {
        threshold::validate("mcp", threshold)?;
        threshold::validate_bend("mcp", self.scale.apply(threshold, learning_rate), self.knee)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, context, gates, layer, minimises};
    use super::*;

    fn apply(gate: &[f64], threshold: f64, knee: f64) -> Vec<f64> {
        let layer = layer(gate);
        Mcp { threshold, scale: ThresholdScale::Constant, knee }.apply(&[&layer], context(1e-3));
        gates(&[&layer])
    }

    #[test]
    fn shrinks_small_gates_and_leaves_large_ones() {
        close(&apply(&[0.2, -0.9, 1.4, 1.6], 0.3, 1.5), &[0.0, -0.75, 1.375, 1.6], 1e-12);
        // ξ = 0.2, κ = 1: between them (|v| − 0.2) / 0.8.
        let moved = apply(&[0.1, -0.2, 0.6, -0.6, 1.0, 1.5, -3.0], 0.2, 1.0);
        close(&moved, &[0.0, 0.0, 0.5, -0.5, 1.0, 1.5, -3.0], 1e-12);
        assert!(moved[..2].iter().all(|gate| *gate == 0.0));
    }

    #[test]
    fn minimises_its_objective() {
        for (threshold, knee) in [(0.3, 1.0), (0.9, 1.0), (0.05, 2.0)] {
            let penalty = |x: f64| {
                let x = x.abs();
                threshold * if x <= knee { x - x * x / (2.0 * knee) } else { knee / 2.0 }
            };
            minimises(penalty, |v| apply(&[v], threshold, knee)[0]);
        }
    }

    #[test]
    fn a_bend_narrower_than_a_step_is_refused() {
        let mcp = Mcp { threshold: 10.0, knee: 0.5, ..Mcp::default() };
        assert!(mcp.validate(10.0, 1e-3).is_ok());
        let error = mcp.validate(10.0, 0.1).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("prox.mcp"), "{error}");
        assert!(Mcp { knee: f64::NAN, ..mcp }.validate(1.0, 1e-3).is_err());
    }
}
