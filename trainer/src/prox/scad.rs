//! The smoothly clipped absolute deviation (J. Fan and R. Li, JASA 96, 2001).
//!
//! ```text
//! p'(x) = ξ for x ≤ σ,  ξ (κ − x)/(κ − σ) for σ < x ≤ κ,  0 beyond;   p(0) = 0, p(−x) = p(x)
//! T(v)  = sign(v) max(|v| − ξ, 0)                        for |v| ≤ σ + ξ
//!       = sign(v) ((κ − σ)|v| − ξκ) / (κ − σ − ξ)        for σ + ξ < |v| ≤ κ
//!       = v                                              for |v| > κ
//! ```
//!
//! It is the soft threshold up to the shoulder σ, then a pull that fades and ends at the knee κ: small gates are
//! treated as under L1, large ones are left unchanged. The paper has σ = λ and κ = aλ with a = 3.7; here the knee is a
//! setting of its own, as in [`super::Mcp`], and the shoulder is κ/a.

use super::threshold::{self, ThresholdScale};
use super::{Form, Penalty, Prox, UpdateContext, map_gates};
use crate::{Error, Result};
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[prox.scad]`: the smoothly clipped absolute deviation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scad {
    /// Threshold: ξ itself if `scale` is `constant`, λ with `ξ = η λ` if it is `learning_rate`; 0 leaves gates
    /// unchanged.
    pub threshold: f64,
    /// Factor on the threshold: 1 (`constant`) or the learning rate (`learning_rate`).
    pub scale: ThresholdScale,
    /// Knee κ: gates of a larger magnitude are not pulled.
    pub knee: f64,
    /// Ratio of knee and shoulder: the pull begins to fade at `knee / a`. Above 1; the paper recommends 3.7.
    pub a: f64,
}

impl Default for Scad {
    /// The paper's a, and a knee at twice the initial gates.
    fn default() -> Self {
        Self { threshold: 1.0, scale: ThresholdScale::default(), knee: 2.0, a: 3.7 }
    }
}

impl Scad {
    fn shoulder(&self) -> f64 {
        self.knee / self.a
    }

    fn operator(&self, gate: &Tensor, threshold: f64) -> Tensor {
        let (size, width) = (gate.abs(), self.knee - self.shoulder());
        let fading = gate.sign() * (&size * width - threshold * self.knee) * (width - threshold).recip();
        let soft = Form::Textbook.apply(gate, threshold);
        soft.where_self(&size.le(self.shoulder() + threshold), &fading.where_self(&size.le(self.knee), gate))
    }
}

impl Prox for Scad {
    fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let threshold = self.scale.apply(self.threshold, context.learning_rate);
        map_gates(layers, |gate| self.operator(gate, threshold));
    }
}

impl Penalty for Scad {
    fn threshold(&self) -> f64 {
        self.threshold
    }

    fn at(&self, threshold: f64) -> Box<dyn Prox> {
        Box::new(Self { threshold, ..self.clone() })
    }

    fn validate(&self, threshold: f64, learning_rate: f64) -> Result<()> {
        threshold::validate("scad", threshold)?;
        if !(self.a.is_finite() && self.a > 1.0) {
            return Err(Error::input(format!("`prox.scad.a` is {}; it must be above 1, and 3.7 is usual", self.a)));
        }
        threshold::validate_bend("scad", self.scale.apply(threshold, learning_rate), self.knee - self.shoulder())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, context, gates, layer, minimises};
    use super::*;

    fn apply(gate: &[f64], threshold: f64, knee: f64, a: f64) -> Vec<f64> {
        let layer = layer(gate);
        Scad { threshold, scale: ThresholdScale::Constant, knee, a }.apply(&[&layer], context(1e-3));
        gates(&[&layer])
    }

    #[test]
    fn soft_then_fading_then_nothing() {
        let moved = apply(&[0.15, 0.6, -1.2, 1.9, 2.1], 0.2, 2.0, 3.7);
        close(&moved, &[0.0, 0.4, -1.072_961_373_4, 1.884_120_171_7, 2.1], 1e-9);
        // ξ = 0.25, σ = 0.5, κ = 2. At 1.25: (1.5·1.25 − 0.25·2) / (1.5 − 0.25) = 1.375/1.25 = 1.1.
        let moved = apply(&[0.2, -0.25, 0.5, -0.75, 1.25, 2.0, -2.5], 0.25, 2.0, 4.0);
        close(&moved, &[0.0, 0.0, 0.25, -0.5, 1.1, 2.0, -2.5], 1e-12);
        assert!(moved[..2].iter().all(|gate| *gate == 0.0));
    }

    #[test]
    fn minimises_its_objective() {
        for (threshold, knee, a) in [(0.3f64, 1.0f64, 3.7f64), (0.4, 2.0, 2.0), (0.6, 1.0, 3.7)] {
            let shoulder = knee / a;
            let penalty = |x: f64| {
                let x: f64 = x.abs();
                let faded = |x: f64| ((knee - shoulder).powi(2) - (knee - x).powi(2)) / (2.0 * (knee - shoulder));
                threshold * (x.min(shoulder) + faded(x.clamp(shoulder, knee)))
            };
            minimises(penalty, |v| apply(&[v], threshold, knee, a)[0]);
        }
    }

    #[test]
    fn settings_without_a_single_minimum_are_refused() {
        assert!(Scad::default().validate(0.1, 1e-3).is_ok());
        assert!(Scad { a: 1.0, ..Scad::default() }.validate(0.1, 1e-3).unwrap_err().is_input());
        assert!(Scad { knee: 1e-5, ..Scad::default() }.validate(0.1, 1e-3).unwrap_err().is_input());
    }
}
