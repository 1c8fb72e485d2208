//! The loss that the policy-gradient family shares: clipped surrogate, rollout weights, penalties, one number.
//!
//! ```text
//! ℓ_t = w_t · surrogate(r_t, A_t) + β KL(π ‖ π_ref)_t − c H_t          then aggregated
//! ```
//!
//! Each method's file fills in this struct from its own settings, so that a file reads as what is special about it.

use crate::algorithm::Outputs;
use crate::batch::Batch;
use crate::companion::Role;
use crate::objective::{
    EntropyBonus, KlEstimator, KlPenalty, LogProbs, MetricSums, RolloutCorrection, Surrogate, penalised,
};
use crate::{Error, Result};
use tch::Tensor;

/// The settings of the shared loss.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PolicyGradient {
    pub(crate) surrogate: Surrogate,
    /// Weight of the KL penalty in the loss; 0 for none.
    pub(crate) kl_coefficient: f64,
    pub(crate) kl_estimator: KlEstimator,
    /// Weight of the entropy bonus; 0 for none.
    pub(crate) entropy_coefficient: f64,
    pub(crate) correction: RolloutCorrection,
}

impl PolicyGradient {
    /// Returns `true` if every sample has a gradient, even with an advantage of zero.
    pub(crate) fn penalises(&self) -> bool {
        self.kl_coefficient != 0.0 || self.entropy_coefficient != 0.0
    }

    /// The share of this batch in the loss.
    pub(crate) fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        let (rows, policy) = (&batch.rows, outputs.logprobs);
        let proximal = batch.proximal_logprobs.as_ref().map_or_else(|| policy.detach(), Tensor::shallow_clone);
        let logprobs = LogProbs { policy, proximal: &proximal, behaviour: batch.behaviour() };
        let tokens = self.surrogate.token_losses(logprobs, batch.signal.advantages(), rows);
        sums.add_clips(&tokens, rows);

        let weights = self.correction.weights(&proximal, batch.behaviour(), rows);
        if self.correction != RolloutCorrection::Off {
            sums.add_tokens("rollout_correction/weight", &weights, rows);
        }
        let reference = batch.logprobs_of(Role::Reference);
        if let Some(reference) = reference {
            sums.add_tokens("kl", &KlEstimator::K3.estimate(policy, reference), rows);
        }
        let penalties: Vec<KlPenalty<'_>> = reference
            .map(|reference| KlPenalty { coefficient: self.kl_coefficient, estimator: self.kl_estimator, reference })
            .into_iter()
            .collect();
        let bonus = outputs.entropy.map(|entropy| EntropyBonus { coefficient: self.entropy_coefficient, entropy });
        let losses = penalised(&(tokens.losses * weights), policy, &penalties, bonus, rows);
        batch.denominator.aggregate(&losses, rows)
    }
}

/// Refuses the first setting that is not a finite number of at least 0.
pub(crate) fn not_negative(algorithm: &str, settings: &[(&str, f64)]) -> Result<()> {
    match settings.iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
        Some((key, value)) => {
            Err(Error::input(format!("algorithm.{algorithm}.{key} must be 0 or more, but is {value}")))
        }
        None => Ok(()),
    }
}

/// Refuses the first count that is 0.
pub(crate) fn at_least_one(algorithm: &str, settings: &[(&str, usize)]) -> Result<()> {
    match settings.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => Err(Error::input(format!("algorithm.{algorithm}.{key} must be at least 1, but is 0"))),
        None => Ok(()),
    }
}

/// Refuses a dual clip that would bind on every token with a negative advantage.
pub(crate) fn dual_clip(algorithm: &str, value: f64) -> Result<()> {
    if value != 0.0 && value.partial_cmp(&1.0) != Some(std::cmp::Ordering::Greater) {
        return Err(Error::input(format!(
            "algorithm.{algorithm}.dual_clip must be above 1 (3 is usual) or 0 for none, but is {value}"
        )));
    }
    Ok(())
}

/// A setting that 0 turns off.
pub(crate) fn unless_zero(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}
