//! Anchored preference optimisation (D'Oosterlinck et al. 2024, arXiv 2408.06266): each completion has its own
//! direction.
//!
//! DPO constrains only a difference and lets both completions become less likely. Here each is anchored to the
//! reference, in the direction that fits the quality of the data relative to the policy:
//!
//! ```text
//! zero  ℓ = 1 − σ(β h_c) + σ(β h_r)              the chosen are better than the policy: up, and the rejected down
//! down  ℓ = σ(β h_c) + 1 − σ(β (h_c − h_r))      the policy is better than both: down, and the rejected more
//! ```
//!
//! TRL calls the two `apo_zero` and `apo_down`. They are unrelated to `[algorithm.apo]`, accelerated preference
//! optimisation.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::objective::MetricSums;
use crate::objective::preference::{anchored_down, anchored_zero};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.anchored]`: anchored preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anchored {
    /// Weight β of the pull towards the reference: the larger, the closer the policy stays to it.
    pub beta: f64,
    /// Direction of the chosen completions: `zero` (up) or `down`.
    pub form: AnchoredForm,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

/// Direction of the chosen completions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchoredForm {
    /// Up: the chosen completions are better than the policy's.
    #[default]
    #[serde(alias = "apo_zero")]
    Zero,
    /// Down: the policy's completions are better than the chosen ones.
    #[serde(alias = "apo_down")]
    Down,
}

impl Default for Anchored {
    fn default() -> Self {
        Self { beta: 0.1, form: AnchoredForm::Zero, max_length: 1024 }
    }
}

impl Anchored {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("anchored", self.max_length, self.beta)?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Anchored {
    fn needs(&self) -> Needs {
        pair_loss::needs(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let (chosen, rejected) = (pairs.logprobs.chosen_ratio(), pairs.logprobs.rejected_ratio());
        match self.form {
            AnchoredForm::Zero => anchored_zero(&chosen, &rejected, self.beta),
            AnchoredForm::Down => anchored_down(&chosen, &rejected, self.beta),
        }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
