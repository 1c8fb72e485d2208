//! A bound on the low-rank factors on either side of a gate.
//!
//! `ΔW = s Σᵢ gᵢ bᵢ aᵢᵀ` stays the same when a gate is halved and its row of `A` doubled. A penalty on gates alone can
//! therefore be evaded: gates shrink, rows grow, and the product does not change. After each step every row `aᵢ` of `A`
//! and every column `bᵢ` of `B` is projected onto the ball of radius `bound`, `x ← x · min(1, bound/‖x‖)`. A gate is
//! then at least as large as its share of `ΔW` divided by `s · bound²`.
//!
//! `A` starts with rows of norm about `1/√3 = 0.58` and `B` at zero, so a bound of 1 holds at the start.

use super::{Prox, UpdateContext};
use crate::{Error, Result};
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[prox.norm_bound]`: a bound on the factors beside a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormBound {
    /// Largest Euclidean norm of a row of `A` and of a column of `B`; above 0. The default, 1, holds for a fresh
    /// adapter.
    pub bound: f64,
}

impl Default for NormBound {
    fn default() -> Self {
        Self { bound: 1.0 }
    }
}

impl NormBound {
    pub(super) fn validate(&self) -> Result<()> {
        if self.bound.is_finite() && self.bound > 0.0 {
            return Ok(());
        }
        Err(Error::input(format!("`prox.norm_bound.bound` is {}; it must be a number above 0", self.bound)))
    }

    fn project(&self, tensor: &Tensor, axis: i64) {
        let norms = tensor.square().sum_dim_intlist([axis].as_slice(), true, None::<Kind>).sqrt();
        // A row of zeros has no direction: its factor is 1.
        let factor = (norms.clamp_min(self.bound).reciprocal() * self.bound).clamp_max(1.0);
        tensor.shallow_clone().copy_(&(tensor * factor));
    }
}

impl Prox for NormBound {
    fn apply(&self, layers: &[&LowRank], _context: UpdateContext) {
        let _guard = tch::no_grad_guard();
        for layer in layers.iter().filter(|layer| layer.gate.is_some()) {
            self.project(&layer.a, 1);
            self.project(&layer.b, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, context, layer, values};
    use super::*;

    #[test]
    fn long_rows_and_columns_are_shortened_and_short_ones_stay() {
        let mut layer = layer(&[1.0, 1.0]);
        // Rows (3, 4) and (0.3, 0.4); columns (0, 0, 0) and (0, 8, 6).
        layer.a = Tensor::from_slice(&[3.0f64, 4.0, 0.3, 0.4]).reshape([2, 2]).set_requires_grad(true);
        layer.b = Tensor::from_slice(&[0.0f64, 0.0, 0.0, 8.0, 0.0, 6.0]).reshape([3, 2]).set_requires_grad(true);
        NormBound { bound: 2.0 }.apply(&[&layer], context(1.0));
        close(&values(&layer.a), &[1.2, 1.6, 0.3, 0.4], 1e-12);
        close(&values(&layer.b), &[0.0, 0.0, 0.0, 1.6, 0.0, 1.2], 1e-12);
        assert!(layer.a.requires_grad());
        // A projection: the second time changes nothing.
        NormBound { bound: 2.0 }.apply(&[&layer], context(1.0));
        close(&values(&layer.a), &[1.2, 1.6, 0.3, 0.4], 1e-12);
    }

    #[test]
    fn layers_without_a_gate_and_senseless_bounds() {
        let layer = LowRank { gate: None, ..layer(&[1.0]) };
        let before = values(&layer.b);
        NormBound { bound: 0.1 }.apply(&[&layer], context(1.0));
        assert_eq!(values(&layer.b), before);
        for bound in [0.0, -1.0, f64::NAN] {
            assert!(NormBound { bound }.validate().unwrap_err().is_input());
        }
    }
}
