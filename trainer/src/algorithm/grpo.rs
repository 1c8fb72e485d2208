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

use super::{Algorithm, Needs, ZeroCredit};
use crate::batch::Batch;
use crate::objective::{
    Aggregation, Anchor, Clip, Denominator, EntropyBonus, KlEstimator, KlPenalty, Level, LogProbs, RolloutCorrection,
    Scale, Surrogate, Tally, group_advantages, penalised,
};
use crate::{Error, Result};
use model::Evaluation;
use schema::{Finish, Sample, ScoredGroup};
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
        let not_negative = [
            ("clip_low", self.clip_low),
            ("clip_high", self.clip_high),
            ("delta", self.delta),
            ("kl_coefficient", self.kl_coefficient),
            ("scale_epsilon", self.scale_epsilon),
        ];
        if let Some((key, value)) = not_negative.into_iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
            return Err(Error::input(format!("algorithm.grpo.{key} must be 0 or more, but is {value}")));
        }
        if self.dual_clip != 0.0 && self.dual_clip <= 1.0 {
            return Err(Error::input(format!(
                "algorithm.grpo.dual_clip must be above 1 (3 is usual) or 0 for none, but is {}",
                self.dual_clip
            )));
        }
        if self.epochs == 0 || self.minibatches == 0 {
            return Err(Error::input("algorithm.grpo.epochs and algorithm.grpo.minibatches must be at least 1"));
        }
        Ok(self)
    }

    fn surrogate(&self) -> Surrogate {
        let positive = |value: f64| (value > 0.0).then_some(value);
        Surrogate {
            level: self.ratio_level,
            anchor: Anchor::Proximal,
            clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
            dual_clip: positive(self.dual_clip),
            delta: positive(self.delta),
        }
    }
}

impl Algorithm for Grpo {
    fn needs(&self) -> Needs {
        let penalised = self.kl_coefficient != 0.0 || self.entropy_coefficient != 0.0;
        Needs {
            group_size: 2,
            reference: self.kl_coefficient != 0.0,
            epochs: self.epochs,
            minibatches: self.minibatches,
            zero_credit: if penalised { ZeroCredit::Compute } else { ZeroCredit::Skip },
        }
    }

    fn credit(&self, groups: &[ScoredGroup]) -> Vec<Vec<Option<f64>>> {
        let rewards: Vec<_> = groups.iter().map(ScoredGroup::rewards).collect();
        group_advantages(&rewards, self.scale_rewards, self.scale_epsilon)
    }

    fn trains_on(&self, sample: &Sample) -> bool {
        !(self.mask_truncated_completions && sample.finish == Finish::Length)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(self.aggregation, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, evaluation: &Evaluation, tally: &mut Tally) -> Tensor {
        let rows = &batch.rows;
        let policy = &evaluation.logprobs;
        let proximal = batch.proximal_logprobs.as_ref().map_or_else(|| policy.detach(), Tensor::shallow_clone);
        let logprobs = LogProbs { policy, proximal: &proximal, behaviour: &batch.behaviour_logprobs };
        let tokens = self.surrogate().token_losses(logprobs, &batch.advantages, rows);
        tally.add_clips(&tokens, rows);

        let weights = self.rollout_correction.weights(&proximal, &batch.behaviour_logprobs, rows);
        let penalties: Vec<KlPenalty<'_>> = batch
            .reference_logprobs
            .iter()
            .map(|reference| {
                tally.add_tokens("kl", &KlEstimator::K3.estimate(policy, reference), rows);
                KlPenalty { coefficient: self.kl_coefficient, estimator: self.kl_estimator, reference }
            })
            .collect();
        let bonus =
            evaluation.entropy.as_ref().map(|entropy| EntropyBonus { coefficient: self.entropy_coefficient, entropy });
        let losses = penalised(&(tokens.losses * weights), policy, &penalties, bonus, rows);
        batch.denominator.aggregate(&losses, rows)
    }
}
