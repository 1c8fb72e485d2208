//! Group-relative policy optimisation (Shao et al. 2024, `DeepSeekMath`, arXiv 2402.03300).
//!
//! A sample's credit is its reward less the mean of its group, so no critic is needed and only differences teach:
//!
//! ```text
//! A_i = (R_i − mean R) / (std R + ε)
//! ℓ_t = −min(r_t A, clip(r_t, 1 − low, 1 + high) A) + β KL(π ‖ π_ref)_t − c H_t
//! ```
//!
//! The defaults are those of today's practice and of TRL: token-mean aggregation (DAPO), no KL term, one update per
//! step, where the ratio is 1 and the clip does nothing. The reference policy is the network with its adapter off.

use super::policy_gradient::{self, PolicyGradient, unless_zero};
use super::{Algorithm, Credits, Evidence, Needs, Outputs, Schedule, ZeroCredit, whole};
use crate::Result;
use crate::batch::Batch;
use crate::objective::{
    Aggregation, Anchor, Clip, Denominator, KlEstimator, Level, RolloutCorrection, Scale, Surrogate, Tally,
    group_advantages,
};
use schema::{Finish, Metrics, Sample, ScoredGroup};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.grpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpo {
    /// How far the ratio may fall below 1 before its gradient is cut.
    #[serde(alias = "epsilon")]
    pub clip_low: f64,
    /// How far the ratio may rise above 1 before its gradient is cut.
    #[serde(alias = "epsilon_high")]
    pub clip_high: f64,
    /// Caps the ratio in the unclipped branch (two-sided clipping, INTELLECT-2); 0 for no cap.
    pub delta: f64,
    /// Caps the loss of tokens with negative advantage at this many advantages (dual clip); 0 for no cap.
    pub dual_clip: f64,
    /// Whether ratios are those of tokens or of whole sequences.
    #[serde(alias = "importance_sampling_level")]
    pub ratio_level: Level,
    /// Weight of the KL penalty towards the reference policy; 0 turns it off.
    #[serde(alias = "beta")]
    pub kl_coefficient: f64,
    /// How the KL penalty is estimated.
    pub kl_estimator: KlEstimator,
    /// Weight of the entropy bonus; 0 turns it off.
    pub entropy_coefficient: f64,
    /// How token losses become one loss.
    #[serde(alias = "loss_type")]
    pub aggregation: LossType,
    /// What centred rewards are divided by.
    pub scale_rewards: ScaleRewards,
    /// Added to the deviation that rewards are divided by.
    pub scale_epsilon: f64,
    /// Leave completions that were cut at the token limit out of the loss (DAPO's overlong filtering).
    pub mask_truncated_completions: bool,
    /// Passes over the samples of a step.
    #[serde(alias = "num_iterations")]
    pub epochs: usize,
    /// Optimizer updates in one pass.
    pub minibatches: usize,
    /// Correction of the mismatch between the sampler's and the trainer's log-probabilities.
    pub rollout_correction: RolloutCorrection,
}

/// How token losses become one loss, by the field's names.
pub type LossType = Aggregation;

/// What centred rewards are divided by: `group`, `batch` or `none`.
pub type ScaleRewards = Scale;

impl Default for Grpo {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            delta: 0.0,
            dual_clip: 0.0,
            ratio_level: Level::Token,
            kl_coefficient: 0.0,
            kl_estimator: KlEstimator::K3,
            entropy_coefficient: 0.0,
            aggregation: Aggregation::TokenMean,
            scale_rewards: Scale::Group,
            scale_epsilon: 1e-4,
            mask_truncated_completions: false,
            epochs: 1,
            minibatches: 1,
            rollout_correction: RolloutCorrection::Off,
        }
    }
}

impl Grpo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        let numbers = [
            ("clip_low", self.clip_low),
            ("clip_high", self.clip_high),
            ("delta", self.delta),
            ("kl_coefficient", self.kl_coefficient),
            ("scale_epsilon", self.scale_epsilon),
        ];
        policy_gradient::not_negative("grpo", &numbers)?;
        policy_gradient::dual_clip("grpo", self.dual_clip)?;
        policy_gradient::at_least_one("grpo", &[("epochs", self.epochs), ("minibatches", self.minibatches)])?;
        Ok(self)
    }

    fn policy_gradient(&self) -> PolicyGradient {
        PolicyGradient {
            surrogate: Surrogate {
                level: self.ratio_level,
                anchor: Anchor::Proximal,
                clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
                dual_clip: unless_zero(self.dual_clip),
                delta: unless_zero(self.delta),
            },
            kl_coefficient: self.kl_coefficient,
            kl_estimator: self.kl_estimator,
            entropy_coefficient: self.entropy_coefficient,
            correction: self.rollout_correction,
        }
    }
}

impl Algorithm for Grpo {
    fn needs(&self) -> Needs {
        let computed = if self.policy_gradient().penalises() { ZeroCredit::Compute } else { ZeroCredit::Skip };
        Needs { reference: self.kl_coefficient != 0.0, zero_credit: computed, ..Needs::default() }
    }

    fn schedule(&self, _step: u64) -> Schedule {
        Schedule { epochs: self.epochs, minibatches: self.minibatches, ..Schedule::default() }
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        let rewards: Vec<_> = evidence.groups.iter().map(ScoredGroup::rewards).collect();
        whole(group_advantages(&rewards, self.scale_rewards, self.scale_epsilon))
    }

    fn trains_on(&self, sample: &Sample) -> bool {
        !(self.mask_truncated_completions && sample.finish == Finish::Length)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(self.aggregation, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut Tally) -> Tensor {
        self.policy_gradient().loss(batch, outputs, tally)
    }
}
