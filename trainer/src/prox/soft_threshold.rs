//! The soft threshold: the proximal operator of `ξ ‖g‖₁` (SoRA, N. Ding et al., EMNLP 2023).
//!
//! ```text
//! T(v) = sign(v) · max(|v| − ξ, 0)                          textbook: zero for |v| ≤ ξ
//! T(v) = v − sign(v) ξ where |v| > ξ, then 0 where |·| < ξ   published code: zero for |v| < 2ξ
//! ```
//!
//! SoRA exists in two forms, and the config supports both. The paper describes one gradient step on the task loss and
//! one threshold `ξ = η λ`. The published code differs in four ways, each a setting of its own:
//!
//! | | paper | published code |
//! |---|---|---|
//! | operator | `form = "textbook"` | `form = "published"`: the *shrunk* value is compared with ξ, so the dead zone is twice as wide, and an entry of exactly ±ξ stays |
//! | threshold | `scale = "learning_rate"` | `scale = "constant"` (3e-4 in its main script) |
//! | L1 in the loss as well | `l1_coefficient = 0` | `l1_coefficient = 10` |
//! | step of the gates | plain gradient: `rule = "shared"` in `[optimizer.adamw.gate]`, but for a unit that all gates share | Adam without decay, ε = 1e-6 before the bias correction: `rule = "adam"` |
//!
//! Under Adam every gate moves by about the learning rate whatever its gradient, so that a threshold λ of 1 or more closes
//! gates in the order of their initial values; under `shared` it closes those whose gradients are small.

use super::threshold::{self, ThresholdScale};
use super::{Penalty, Prox, UpdateContext, map_gates};
use crate::optimizer::{FARTHEST_STEP, GateRule};
use crate::{Error, Result};
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Form of the thresholding operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The proximal operator of the L1 norm.
    #[default]
    Textbook,
    /// Operator of SoRA's published code, with twice the dead zone.
    Published,
}

impl Form {
    /// Returns the thresholded gate, of the same shape.
    pub fn apply(self, gate: &Tensor, threshold: f64) -> Tensor {
        match self {
            Self::Textbook => gate.sign() * (gate.abs() - threshold).clamp_min(0.0),
            Self::Published => {
                let shrunk = (gate - gate.sign() * threshold).where_self(&gate.abs().gt(threshold), gate);
                shrunk.masked_fill(&shrunk.abs().lt(threshold), 0.0)
            }
        }
    }
}

/// `[prox.soft_threshold]`: the proximal operator of the L1 norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoftThreshold {
    /// Threshold: ξ itself if `scale` is `constant`, λ with `ξ = η λ` if it is `learning_rate`; 0 leaves gates
    /// unchanged. λ is in units of the root mean square of the gates' gradients under the optimizer's rule `shared`.
    pub threshold: f64,
    /// Factor on the threshold: 1 (`constant`) or the learning rate (`learning_rate`).
    pub scale: ThresholdScale,
    /// Form of the operator: `textbook` (the paper) or `published` (SoRA's code).
    pub form: Form,
    /// Weight of the mean `|g|` that is added to the loss; 0 for none, 10 in SoRA's published script.
    #[serde(alias = "sparse_lambda")]
    pub l1_coefficient: f64,
}

impl Default for SoftThreshold {
    /// The paper's form. At this strength gates close that are worth less to the loss than the root mean square of all gates.
    fn default() -> Self {
        Self { threshold: 1.0, scale: ThresholdScale::default(), form: Form::default(), l1_coefficient: 0.0 }
    }
}

impl Prox for SoftThreshold {
    fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let threshold = self.scale.apply(self.threshold, context.learning_rate);
        map_gates(layers, |gate| self.form.apply(gate, threshold));
    }
}

impl Penalty for SoftThreshold {
    fn threshold(&self) -> f64 {
        self.threshold
    }

    fn at(&self, threshold: f64) -> Box<dyn Prox> {
        Box::new(Self { threshold, ..self.clone() })
    }

    fn validate(&self, threshold: f64, _learning_rate: f64) -> Result<()> {
        threshold::validate("soft_threshold", threshold)?;
        threshold::validate("soft_threshold.l1_coefficient", self.l1_coefficient)
    }
}

impl SoftThreshold {
    /// Holds the threshold against the largest step of a gate under the optimizer's rule, since beyond it every gate closes
    /// whatever it is worth. Under Adam, where configs of earlier versions had such thresholds, that is a warning.
    ///
    /// # Errors
    /// If the threshold is far above the gradients of all gates.
    pub(super) fn warning(&self, rule: Option<GateRule>, learning_rate: f64) -> Result<Option<String>> {
        let fall = self.scale.apply(self.threshold, learning_rate);
        let steps = if learning_rate > 0.0 { fall / learning_rate } else { 0.0 };
        match rule {
            Some(GateRule::Shared) if steps >= FARTHEST_STEP => Err(Error::input(format!(
                "prox.soft_threshold takes {fall:.1e} from every gate in an update, {steps:.0} times the step of a gate of common worth, so every gate would close; a threshold of about 1 closes gates that are worth less than others. To train as earlier versions did, set optimizer.adamw.gate.rule = \"adam\" and model.adapter.sora.gate_init = \"normal\""
            ))),
            Some(GateRule::Adam) if steps >= 1.0 => Ok(Some(format!(
                "prox.soft_threshold closes gates whatever they are worth: Adam moves a gate by about {learning_rate:.1e} in an update, and the threshold takes {fall:.1e} from it; remove optimizer.adamw.gate.rule, or lower the threshold"
            ))),
            _ => Ok(None),
        }
    }
}

/// Returns the L1 term that SoRA's published code adds to the loss: `coefficient · Σ|g| / (number of gate entries)`, a
/// scalar with gradient; `None` if there are no gates. The coefficient is 10 in its main script, and 0 in the paper's
/// form, which relies on the threshold alone.
pub fn gate_l1(layers: &[&LowRank], coefficient: f64) -> Option<Tensor> {
    let gates: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.gate.as_ref()).collect();
    let entries: usize = gates.iter().map(|gate| gate.numel()).sum();
    let total = gates.iter().map(|gate| gate.abs().sum(None)).reduce(|total, sum| total + sum)?;
    Some(total * (coefficient / entries.max(1) as f64))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, context, gates, layer, minimises, values};
    use super::*;
    use tch::Kind;

    fn apply(form: Form, gate: &[f64], threshold: f64) -> Vec<f64> {
        let layer = layer(gate);
        let prox = SoftThreshold { threshold, scale: ThresholdScale::Constant, form, l1_coefficient: 0.0 };
        prox.apply(&[&layer], context(1e-3));
        gates(&[&layer])
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
    fn the_textbook_form_minimises_its_objective() {
        minimises(|x| 0.3 * x.abs(), |v| apply(Form::Textbook, &[v], 0.3)[0]);
    }

    #[test]
    fn an_entry_of_exactly_the_threshold() {
        assert_eq!(apply(Form::Textbook, &[0.25, -0.25], 0.25), [0.0, 0.0]);
        assert_eq!(apply(Form::Published, &[0.25, -0.25], 0.25), [0.25, -0.25]);
    }

    #[test]
    fn zeros_are_exact_in_single_precision_and_storage_is_kept() {
        let mut layer = layer(&[0.1, -0.1, 0.5]);
        layer.gate = layer.gate.map(|gate| gate.detach().to_kind(Kind::Float).set_requires_grad(true));
        let handle = layer.gate.as_ref().unwrap().shallow_clone();
        let prox = SoftThreshold { threshold: 100.0, ..SoftThreshold::default() };
        prox.apply(&[&layer], context(1e-3));
        assert_eq!(values(&handle.ne(0.0)), [0.0, 0.0, 1.0]);
        close(&values(&handle), &[0.0, 0.0, 0.4], 1e-7);
        assert!(handle.requires_grad());
    }

    #[test]
    fn a_threshold_of_zero_changes_nothing() {
        for form in [Form::Textbook, Form::Published] {
            assert_eq!(apply(form, &[0.3, 0.0, -1e-9], 0.0), [0.3, 0.0, -1e-9]);
        }
    }

    #[test]
    fn the_l1_term_and_its_gradient() {
        let layer = layer(&[0.5, -0.002, 0.0005, 0.0, -1.2]);
        let loss = gate_l1(&[&layer], 10.0).unwrap();
        close(&[loss.double_value(&[])], &[3.405], 1e-9);
        loss.backward();
        close(&values(&layer.gate.as_ref().unwrap().grad()), &[2.0, -2.0, 2.0, 0.0, -2.0], 1e-12);
        assert!(gate_l1(&[], 10.0).is_none());
    }
}
