//! The soft threshold: the proximal operator of `ξ ‖g‖₁` (SoRA, N. Ding et al., EMNLP 2023).
//!
//! ```text
//! T(v) = sign(v) · max(|v| − ξ, 0)                          textbook: zero for |v| ≤ ξ
//! T(v) = v − sign(v) ξ where |v| > ξ, then 0 where |·| < ξ   published code: zero for |v| < 2ξ
//! ```
//!
//! SoRA's published code shrinks first and compares the *shrunk* value with ξ, so its dead zone is twice as wide, and an
//! entry of exactly ±ξ stays as it is. It also uses a constant ξ, where the paper has ξ = learning rate · λ: with a rate
//! that decays to zero, a constant ξ ends in pure shrinkage.

use super::Prox;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which of the two operators.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The proximal operator of the L1 norm.
    #[default]
    Textbook,
    /// What SoRA's published code computes.
    Published,
}

/// What the threshold is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdScale {
    /// `threshold` itself.
    Constant,
    /// `threshold` times the learning rate of the step.
    #[default]
    LearningRate,
}

/// `prox.soft_threshold`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftThreshold {
    /// λ if scaled by the learning rate, ξ if constant; 0 leaves gates alone.
    pub threshold: f64,
    /// What the threshold is multiplied by.
    pub scale: ThresholdScale,
    /// Which operator.
    pub form: Form,
}

impl Default for SoftThreshold {
    /// The paper's form, at a strength at which gates that nothing needs fall by a tenth of an Adam step each update.
    fn default() -> Self {
        Self { threshold: 0.1, scale: ThresholdScale::default(), form: Form::default() }
    }
}

impl SoftThreshold {
    /// Refuses a threshold below zero or not finite.
    pub(super) fn validate(&self) -> Result<()> {
        if self.threshold.is_finite() && self.threshold >= 0.0 {
            return Ok(());
        }
        let found = self.threshold;
        Err(Error::input(format!("`soft_threshold.threshold` is {found}; it must be a number of at least 0")))
    }
}

impl Prox for SoftThreshold {
    fn apply(&self, gate: &mut Tensor, learning_rate: f64) {
        let _guard = tch::no_grad_guard();
        let threshold = match self.scale {
            ThresholdScale::Constant => self.threshold,
            ThresholdScale::LearningRate => self.threshold * learning_rate,
        };
        let moved = match self.form {
            Form::Textbook => gate.sign() * (gate.abs() - threshold).clamp_min(0.0),
            Form::Published => {
                let shrunk = (&*gate - gate.sign() * threshold).where_self(&gate.abs().gt(threshold), gate);
                shrunk.masked_fill(&shrunk.abs().lt(threshold), 0.0)
            }
        };
        gate.copy_(&moved);
    }
}

/// The L1 term that SoRA's published code adds to the loss: `coefficient · Σ|g| / (number of gate entries)`, a scalar
/// with gradient. The coefficient is 10 in its main script, and 0 in the paper's form, where the threshold does it all.
///
/// `None` if there are no gates.
pub fn gate_l1(gates: &[Tensor], coefficient: f64) -> Option<Tensor> {
    let entries: usize = gates.iter().map(Tensor::numel).sum();
    let total = gates.iter().map(|gate| gate.abs().sum(None)).reduce(|total, sum| total + sum)?;
    Some(total * (coefficient / entries.max(1) as f64))
}

/// How the thresholds of a sparsifying schedule are spaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equal differences.
    #[default]
    Linear,
    /// Equal ratios; the first threshold must be above zero. SoRA's `exp_linear`.
    #[serde(alias = "exp_linear")]
    Geometric,
    /// Equal differences of `exp(ξ)`, all but linear for thresholds far below 1. SoRA's `log_linear`.
    LogLinear,
}

/// The thresholds of SoRA's sparsifying schedule: `stages` values from `first` to `last`. Training starts with the
/// first; each later one starts from the weights that the stage before it left, with a fresh optimizer and schedule.
///
/// # Errors
/// If there is no stage, or equal ratios are asked for from a threshold that is not above zero.
pub fn threshold_stages(first: f64, last: f64, stages: usize, spacing: Spacing) -> Result<Vec<f64>> {
    if stages == 0 {
        return Err(Error::input("a sparsifying schedule of 0 stages; give at least 1"));
    }
    if spacing == Spacing::Geometric && (first <= 0.0 || last <= 0.0) {
        return Err(Error::input(format!(
            "a geometric sparsifying schedule from {first} to {last}; both ends must be above 0, or use `linear`"
        )));
    }
    let between = |low: f64, high: f64, stage: usize| low + (high - low) * stage as f64 / (stages - 1).max(1) as f64;
    let threshold = |stage| match spacing {
        Spacing::Linear => between(first, last, stage),
        Spacing::Geometric => between(first.ln(), last.ln(), stage).exp(),
        Spacing::LogLinear => between(first.exp(), last.exp(), stage).ln(),
    };
    Ok((0..stages).map(threshold).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(actual.len(), expected.len());
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() <= tolerance), "{actual:?} {expected:?}");
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double)).unwrap()
    }

    fn apply(form: Form, gate: &[f64], threshold: f64) -> Vec<f64> {
        let mut gate = Tensor::from_slice(gate).set_requires_grad(true);
        SoftThreshold { threshold, scale: ThresholdScale::Constant, form }.apply(&mut gate, 1e-3);
        values(&gate)
    }

    #[test]
    fn the_two_forms_differ_between_one_and_two_thresholds() {
        let gate = [-0.35, -0.25, -0.15, -0.05, 0.05, 0.15, 0.25, 0.35];
        let textbook = apply(Form::Textbook, &gate, 0.1);
        close(&textbook, &[-0.25, -0.15, -0.05, 0.0, 0.0, 0.05, 0.15, 0.25], 1e-12);
        let published = apply(Form::Published, &gate, 0.1);
        close(&published, &[-0.25, -0.15, 0.0, 0.0, 0.0, 0.0, 0.15, 0.25], 1e-12);
        assert!(textbook[3..5].iter().chain(&published[2..6]).all(|entry| *entry == 0.0));
    }

    #[test]
    fn an_entry_of_exactly_the_threshold() {
        assert_eq!(apply(Form::Textbook, &[0.25, -0.25], 0.25), [0.0, 0.0]);
        assert_eq!(apply(Form::Published, &[0.25, -0.25], 0.25), [0.25, -0.25]);
    }

    #[test]
    fn zeros_are_exact_in_single_precision_and_storage_is_kept() {
        let mut gate = Tensor::from_slice(&[0.1_f32, -0.1, 0.5]).set_requires_grad(true);
        let model = gate.shallow_clone();
        let prox = SoftThreshold { threshold: 100.0, ..SoftThreshold::default() };
        prox.apply(&mut gate, 1e-3);
        assert_eq!(values(&model.ne(0.0)), [0.0, 0.0, 1.0]);
        close(&values(&model), &[0.0, 0.0, 0.4], 1e-7);
        assert!(gate.requires_grad());
    }

    #[test]
    fn a_threshold_of_zero_changes_nothing() {
        for form in [Form::Textbook, Form::Published] {
            assert_eq!(apply(form, &[0.3, 0.0, -1e-9], 0.0), [0.3, 0.0, -1e-9]);
        }
    }

    #[test]
    fn the_l1_term_and_its_gradient() {
        let gate = Tensor::from_slice(&[0.5, -0.002, 0.0005, 0.0, -1.2]).set_requires_grad(true);
        let loss = gate_l1(std::slice::from_ref(&gate), 10.0).unwrap();
        close(&[loss.double_value(&[])], &[3.405], 1e-9);
        loss.backward();
        close(&values(&gate.grad()), &[2.0, -2.0, 2.0, 0.0, -2.0], 1e-12);
        assert!(gate_l1(&[], 10.0).is_none());
    }

    #[test]
    fn stages_of_a_sparsifying_schedule() {
        let geometric = threshold_stages(1e-4, 7e-4, 7, Spacing::Geometric).unwrap();
        close(&geometric, &[1e-4, 1.3831e-4, 1.9129e-4, 2.6458e-4, 3.6593e-4, 5.0611e-4, 7e-4], 1e-8);
        let linear = threshold_stages(0.0, 7e-4, 7, Spacing::Linear).unwrap();
        close(&linear, &[0.0, 1.166_67e-4, 2.333_33e-4, 3.5e-4, 4.666_67e-4, 5.833_33e-4, 7e-4], 1e-9);
        let log_linear = threshold_stages(1e-4, 7e-4, 7, Spacing::LogLinear).unwrap();
        close(&log_linear, &[1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4], 1e-7);
        assert_eq!(threshold_stages(0.5, 1.0, 1, Spacing::Linear).unwrap(), [0.5]);
        assert!(threshold_stages(0.0, 1.0, 3, Spacing::Geometric).unwrap_err().is_input());
        assert!(threshold_stages(0.0, 1.0, 0, Spacing::Linear).unwrap_err().is_input());
    }
}
