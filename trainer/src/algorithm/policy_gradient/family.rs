//! The shared part of the methods without a critic: common settings, and everything but advantages, ratio and
//! aggregation.
//!
//! ```text
//! advantages  →  w_t · surrogate(r_t, A_t) + β KL_t − c H_t  →  one number
//! ```
//!
//! A method's file holds its own settings, its advantages, the level and clip of its ratio, and its aggregation of
//! token losses ([`Method`]); everything else is here. `[algorithm.grpo]` has a switch for most of the differences
//! between these methods; the others have only the settings that define them.

use super::surrogate_loss::{PolicyGradient, at_least_one, not_negative};
use crate::algorithm::{Algorithm, Evidence, FilterBy, Needs, Outputs, Samples, Schedule};
use crate::batch::{self, Batch, SequenceLogprobs, Signal, Signals, ZeroAdvantage};
use crate::collected::Sequence;
use crate::companion::{Companion, Consults, Role};
use crate::objective::{
    Aggregation, Denominator, KlEstimator, Level, MetricSums, RolloutCorrection, Rows, Scale, Surrogate,
    group_advantages,
};
use crate::{Error, Result};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Settings of every method of the family; [`settings!`] documents them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared {
    pub(super) kl_coefficient: f64,
    pub(super) entropy_coefficient: f64,
    pub(super) mask_truncated_completions: bool,
    pub(super) epochs: usize,
    pub(super) minibatches: usize,
    pub(super) rollout_correction: RolloutCorrection,
    pub(super) normalise_correction: bool,
}

impl Default for Shared {
    /// No penalty, no bonus, no correction, one update per step, in which the ratio is 1 and the clip has no effect.
    fn default() -> Self {
        Self {
            kl_coefficient: 0.0,
            entropy_coefficient: 0.0,
            mask_truncated_completions: false,
            epochs: 1,
            minibatches: 1,
            rollout_correction: RolloutCorrection::Off,
            normalise_correction: false,
        }
    }
}

/// Declares the settings of a method: its own, each with its default, then those shared by the family.
macro_rules! settings {
    (
        $(#[$about:meta])*
        pub struct $method:ident, $key:literal {
            $($(#[$note:meta])* $field:ident: $type:ty = $default:expr,)*
        }
        shared: $shared:expr
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $method {
            $($(#[$note])* pub $field: $type,)*
            /// Weight β of the KL penalty towards the reference policy; 0 for none.
            #[serde(alias = "beta")]
            pub kl_coefficient: f64,
            /// Weight of the entropy bonus; 0 for none.
            pub entropy_coefficient: f64,
            /// Leave completions that were truncated at the token limit out of the loss (DAPO's overlong filtering).
            pub mask_truncated_completions: bool,
            /// Passes over the samples of a step.
            #[serde(alias = "num_iterations")]
            pub epochs: usize,
            /// Optimizer updates in one pass.
            pub minibatches: usize,
            /// Correction of the mismatch between the sampler's and the trainer's log-probabilities.
            pub rollout_correction: $crate::objective::RolloutCorrection,
            /// Divide the correction's weights by their mean over the step's tokens, so that they do not shrink
            /// updates.
            #[serde(alias = "rollout_is_batch_normalize")]
            pub normalise_correction: bool,
        }

        impl Default for $method {
            fn default() -> Self {
                let shared: $crate::algorithm::policy_gradient::family::Shared = $shared;
                Self {
                    $($field: $default,)*
                    kl_coefficient: shared.kl_coefficient,
                    entropy_coefficient: shared.entropy_coefficient,
                    mask_truncated_completions: shared.mask_truncated_completions,
                    epochs: shared.epochs,
                    minibatches: shared.minibatches,
                    rollout_correction: shared.rollout_correction,
                    normalise_correction: shared.normalise_correction,
                }
            }
        }

        impl $crate::algorithm::policy_gradient::family::Settings for $method {
            const KEY: &'static str = $key;

            fn shared(&self) -> $crate::algorithm::policy_gradient::family::Shared {
                $crate::algorithm::policy_gradient::family::Shared {
                    kl_coefficient: self.kl_coefficient,
                    entropy_coefficient: self.entropy_coefficient,
                    mask_truncated_completions: self.mask_truncated_completions,
                    epochs: self.epochs,
                    minibatches: self.minibatches,
                    rollout_correction: self.rollout_correction,
                    normalise_correction: self.normalise_correction,
                }
            }
        }
    };
}
pub(in crate::algorithm) use settings;

/// Settings declared by [`settings!`].
pub trait Settings {
    /// Name of the method in the config.
    const KEY: &'static str;

    /// Returns the settings shared by the family.
    fn shared(&self) -> Shared;
}

/// Level of the clipped ratio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioOf {
    /// One ratio per sequence.
    #[default]
    Sequence,
    /// One ratio per token.
    #[serde(alias = "sequence_token")]
    Token,
}

/// Position of the KL penalty towards the reference policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Penalty {
    /// In the loss of each token, by this estimator.
    Loss(KlEstimator),
    /// In the reward, as k1: advantages are computed from the rest.
    Reward,
}

/// A method of the family, by its differences from the others.
pub trait Method: Settings {
    /// Returns the surrogate: the level of the ratio, and its clip.
    fn surrogate(&self) -> Surrogate;

    /// Returns the aggregation of token losses; a mean over tokens by default.
    fn aggregation(&self) -> Aggregation {
        Aggregation::TokenMean
    }

    /// Returns the position of the KL penalty.
    fn penalty(&self) -> Penalty;

    /// Computes the advantages of each sample; those of GRPO by default. Log-probabilities are present if the penalty
    /// is in the reward and not 0.
    fn advantages(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        group_relative(evidence, Scale::Group, SCALE_EPSILON)
    }

    /// Returns the smallest group that it can learn from.
    fn group_size(&self) -> usize {
        2
    }

    /// Returns the largest number of sampling rounds per step.
    fn max_rounds(&self) -> usize {
        1
    }

    /// Returns the rewards by which rounds of sampling tell groups apart.
    fn filter_by(&self) -> FilterBy {
        FilterBy::Total
    }

    /// Adapts the state that depends on a step's metrics, after its updates.
    fn adapt(&mut self, _metrics: &Metrics) {}

    /// Returns the adapted state, to be saved.
    fn memory(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Restores a saved state; returns false if it is not this method's.
    fn remember(&mut self, memory: &serde_json::Value) -> bool {
        memory.is_null()
    }
}

impl<M: Method> Algorithm for M {
    fn needs(&self) -> Needs {
        let shared = self.shared();
        let penalised = shared.kl_coefficient != 0.0;
        let signal_reads_logprobs = (penalised && self.penalty() == Penalty::Reward) || normalises(&shared);
        let consults = if signal_reads_logprobs { Consults::Signal } else { Consults::Loss };
        Needs {
            samples: Samples::sampled(self.group_size()),
            companions: penalised.then(|| Companion::reference(consults)).into_iter().collect(),
            signal_reads_logprobs,
            zero_advantage: if loss(self).penalises() { ZeroAdvantage::Compute } else { ZeroAdvantage::Skip },
            ..Needs::default()
        }
    }

    fn warning(&self) -> Option<String> {
        let by_sequence = self.surrogate().level != Level::Token;
        (by_sequence && self.aggregation() == Aggregation::TokenMean).then(|| {
            let name = Self::KEY;
            format!(
                "algorithm.{name} takes one ratio per sequence but a mean over tokens, so a sequence counts by its length, which is not the sequence objective; set algorithm.{name}.aggregation = \"sequence_mean_token_mean\""
            )
        })
    }

    fn schedule(&self, _step: u64) -> Schedule {
        let shared = self.shared();
        Schedule {
            epochs: shared.epochs,
            minibatches: shared.minibatches,
            max_rounds: self.max_rounds(),
            filter_by: self.filter_by(),
            ..Schedule::default()
        }
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let signals = self.advantages(evidence, metrics);
        let shared = self.shared();
        match mean_weight(shared.rollout_correction, evidence).filter(|_| normalises(&shared)) {
            Some(mean) => {
                metrics.set("rollout_correction/mean_weight", mean);
                scaled(signals, 1.0 / mean)
            }
            None => signals,
        }
    }

    fn trains_on(&self, sequence: &Sequence<'_>) -> bool {
        !(self.shared().mask_truncated_completions && sequence.truncated)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(self.aggregation(), trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        loss(self).loss(batch, outputs, sums)
    }

    fn finish_step(&mut self, metrics: &mut Metrics, _samples: usize) {
        self.adapt(metrics);
    }

    fn state(&self) -> serde_json::Value {
        self.memory()
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        let own = self.remember(state);
        if own { Ok(()) } else { Err(Error::input("the checkpoint holds the state of another algorithm")) }
    }
}

/// The shared loss with this method's settings.
pub(in crate::algorithm) fn loss<M: Method>(method: &M) -> PolicyGradient {
    let shared = method.shared();
    let (kl_coefficient, kl_estimator) = match method.penalty() {
        Penalty::Loss(estimator) => (shared.kl_coefficient, estimator),
        Penalty::Reward => (0.0, KlEstimator::K1),
    };
    PolicyGradient {
        surrogate: method.surrogate(),
        kl_coefficient,
        kl_estimator,
        entropy_coefficient: shared.entropy_coefficient,
        correction: shared.rollout_correction,
    }
}

fn normalises(shared: &Shared) -> bool {
    shared.normalise_correction && shared.rollout_correction != RolloutCorrection::Off
}

/// The mean weight of all judged tokens of the step; `None` if it is 0, or without scores. Dividing advantages by it
/// divides the weights, for every surrogate is proportional to both.
fn mean_weight(correction: RolloutCorrection, evidence: &Evidence<'_>) -> Option<f64> {
    let (mut lengths, mut mask) = (Vec::new(), Vec::new());
    let (mut behaviour, mut proximal): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for (group, scores) in evidence.groups().into_iter().zip(evidence.logprobs?) {
        let judged = group.group().samples.iter().zip(scores).zip(group.rewards());
        for ((sample, scores), _) in judged.filter(|(_, reward)| reward.is_some()) {
            lengths.push(sample.len());
            mask.extend(&sample.mask);
            behaviour.extend(&sample.logprobs);
            proximal.extend(&scores.policy);
        }
    }
    let rows = Rows::new(&lengths, &mask, model::device::HOST).ok()?;
    let weights = correction.weights(&Tensor::from_slice(&proximal), &Tensor::from_slice(&behaviour), &rows);
    Some(rows.mean(&weights).double_value(&[])).filter(|mean| *mean > 0.0)
}

fn scaled(mut signals: Signals, factor: f64) -> Signals {
    for signal in signals.iter_mut().flatten().flatten() {
        match signal {
            Signal::Advantage(advantage) => *advantage *= factor,
            Signal::TokenAdvantages { advantages, .. } => {
                for advantage in advantages.iter_mut() {
                    *advantage = (f64::from(*advantage) * factor) as f32;
                }
            }
            _ => {}
        }
    }
    signals
}

/// The settings, if the shared ones and these numbers make sense.
pub(in crate::algorithm) fn checked<S: Settings>(settings: S, own: &[(&str, f64)]) -> Result<S> {
    let shared = settings.shared();
    not_negative(S::KEY, own)?;
    not_negative(S::KEY, &[("kl_coefficient", shared.kl_coefficient)])?;
    if !shared.entropy_coefficient.is_finite() {
        return Err(Error::input(format!("algorithm.{}.entropy_coefficient must be a number", S::KEY)));
    }
    at_least_one(S::KEY, &[("epochs", shared.epochs), ("minibatches", shared.minibatches)])?;
    shared
        .rollout_correction
        .check()
        .map_err(|problem| Error::input(format!("algorithm.{}.rollout_correction: {problem}", S::KEY)))?;
    Ok(settings)
}

/// The rewards of each group.
pub(in crate::algorithm) fn rewards(evidence: &Evidence<'_>) -> Vec<Vec<Option<f64>>> {
    let group = |group: &GradedGroup| group.rewards().into_iter().map(|reward| reward.map(f64::from)).collect();
    evidence.groups().into_iter().map(group).collect()
}

/// The rewards of each group, less `coefficient` times the KL divergence of each completion: the sum of its tokens' k1.
pub(in crate::algorithm) fn penalised_rewards(evidence: &Evidence<'_>, coefficient: f64) -> Vec<Vec<Option<f64>>> {
    let mut rewards = rewards(evidence);
    let Some(scores) = evidence.logprobs.filter(|_| coefficient != 0.0) else { return rewards };
    for ((rewards, group), scores) in rewards.iter_mut().zip(evidence.groups()).zip(scores) {
        for ((reward, sample), scores) in rewards.iter_mut().zip(&group.group().samples).zip(scores) {
            let trained = k1(scores).into_iter().zip(&sample.mask).filter(|(_, trained)| **trained);
            let divergence: f64 = trained.map(|(k1, _)| k1).sum();
            *reward = reward.map(|reward| reward - coefficient * divergence);
        }
    }
    rewards
}

/// The k1 estimate at each token: `log π − log π_ref`.
pub(in crate::algorithm) fn k1(scores: &SequenceLogprobs) -> Vec<f64> {
    scores.log_ratios_to(Role::Reference)
}

/// Rewards less the mean of their group, divided as `scale` says.
pub(in crate::algorithm) fn group_relative(evidence: &Evidence<'_>, scale: Scale, epsilon: f64) -> Signals {
    batch::advantages(group_advantages(&rewards(evidence), scale, epsilon))
}

/// Added to the deviation that rewards are divided by, as in TRL.
pub(super) const SCALE_EPSILON: f64 = 1e-4;

#[cfg(test)]
mod tests;
