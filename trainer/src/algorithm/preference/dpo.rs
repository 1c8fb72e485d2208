//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290): preferences fit the policy itself.
//!
//! The optimum of reward minus `β KL` has the reward `β log(π / π_ref) + const`, so the Bradley-Terry loss of a reward
//! model becomes one of the policy:
//!
//! ```text
//! ℓ = −log σ(β h),   h = log(π / π_ref)(chosen) − log(π / π_ref)(rejected)
//! ```
//!
//! With a known share of wrong labels the loss is smoothed (conservative DPO) or corrected (robust DPO); `hinge` is the
//! loss of `SLiC`. See [`preference`](crate::objective::preference) for the forms.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::algorithm::Needs;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::objective::MetricSums;
use crate::objective::preference::{LabelNoise, hinge, sigmoid};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.dpo]`: direct preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpo {
    /// Weight β of the pull towards the reference: the larger, the closer the policy stays to it. 0.1 as in TRL.
    pub beta: f64,
    /// Loss on the margin: `sigmoid`, `robust` or `hinge`.
    #[serde(alias = "loss_type")]
    pub loss: DpoLoss,
    /// Assumed share of wrong labels, below one half; 0 trusts them all.
    pub label_smoothing: f64,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

/// Loss on the margin of a pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// Logistic loss; conservative DPO with a share of wrong labels.
    #[default]
    Sigmoid,
    /// Logistic loss, unbiased under the share of wrong labels.
    Robust,
    /// Hinge loss: the shortfall of the margin from 1.
    Hinge,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 0.1, loss: DpoLoss::Sigmoid, label_smoothing: 0.0, max_length: 1024 }
    }
}

impl Dpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("dpo", self.max_length, self.beta)?;
        not_negative("dpo", &[("label_smoothing", self.label_smoothing)])?;
        if self.label_smoothing >= 0.5 {
            return Err(Error::input(format!(
                "algorithm.dpo.label_smoothing must be below 0.5, where labels would say nothing, but is {}",
                self.label_smoothing
            )));
        }
        if self.loss == DpoLoss::Hinge && self.label_smoothing != 0.0 {
            return Err(Error::input("algorithm.dpo: the hinge loss knows no label_smoothing; set it to 0"));
        }
        Ok(Pairwise(self))
    }

    fn loss_of(&self, h: &Tensor) -> Tensor {
        let share = self.label_smoothing;
        match self.loss {
            DpoLoss::Sigmoid if share == 0.0 => sigmoid(h, self.beta, LabelNoise::None),
            DpoLoss::Sigmoid => sigmoid(h, self.beta, LabelNoise::Smooth(share)),
            DpoLoss::Robust => sigmoid(h, self.beta, LabelNoise::Robust(share)),
            DpoLoss::Hinge => hinge(h, self.beta),
        }
    }
}

impl PairLoss for Dpo {
    fn needs(&self) -> Needs {
        pair_loss::needs(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        self.loss_of(&pairs.logprobs.ratio_margin())
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
