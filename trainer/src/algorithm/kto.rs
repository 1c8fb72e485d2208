//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024, KTO, arXiv 2402.01306): good and bad completions, no pairs.
//!
//! Each completion is a gain or a loss beside what the policy has moved on average:
//!
//! ```text
//! desirable    ℓ = w_d (1 − σ(β (h − z₀)))          h = log(π / π_ref)(completion)
//! undesirable  ℓ = w_u (1 − σ(β (z₀ − h)))
//! z₀ = max(0, mean_j log(π / π_ref)(y_{j−1} | x_j))
//! ```
//!
//! `z₀` estimates `KL(π ‖ π_ref)` on completions of other prompts: each prompt of the step is paired with the completion
//! of the one before it, which is scored and not trained on. It is a mean over the whole step, so micro-batches change
//! nothing; a step needs two prompts or more. Whether a completion is desirable is the column `label` of the data set;
//! of a pair the chosen one is.

use super::policy_gradient::not_negative;
use super::preference;
use super::{Algorithm, Credit, Credits, Evidence, Needs, Outputs, Samples, ZeroCredit};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::prospect;
use crate::objective::{Aggregation, Denominator, MetricSums};
use schema::{GradedGroup, Group, Metrics, Sample};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[algorithm.kto]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kto {
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Weight of desirable completions.
    pub desirable_weight: f64,
    /// Weight of undesirable completions. With n of each, `desirable_weight · n_d / (undesirable_weight · n_u)` is best
    /// between 1 and 4/3.
    pub undesirable_weight: f64,
    /// What the rows of the data set hold.
    pub data: KtoData,
    /// A completion of more tokens than this, prompt included, is cut at its end; a pair is left out.
    pub max_length: usize,
}

/// What the rows of a data set hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoData {
    /// A completion and its `label`.
    #[default]
    Labelled,
    /// A pair, of which the chosen one is desirable and the rejected one is not.
    Pairs,
}

impl Default for Kto {
    fn default() -> Self {
        Self { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0, data: KtoData::Labelled, max_length: 1024 }
    }
}

impl Kto {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::checked("kto", self.max_length, self.beta)?;
        let weights = [("desirable_weight", self.desirable_weight), ("undesirable_weight", self.undesirable_weight)];
        not_negative("kto", &weights)?;
        Ok(self)
    }
}

impl Algorithm for Kto {
    fn needs(&self) -> Needs {
        Needs {
            samples: match self.data {
                KtoData::Labelled => Samples::Demonstrations,
                KtoData::Pairs => Samples::Pairs,
            },
            max_length: self.max_length,
            reference: true,
            scored_credit: true,
            zero_credit: ZeroCredit::Compute,
            ..Needs::default()
        }
    }

    /// Behind its own samples each group gets the first one of the group before it, unjudged.
    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        let before = groups.iter().cycle().skip(groups.len().saturating_sub(1));
        groups.iter().zip(before).map(|(group, before)| with_stranger(group, before.group().samples.first()?)).collect()
    }

    /// The weight of a sample with the sign of its label, and `z₀` in the place of a return.
    fn credit(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Credits {
        let kl = stranger_kl(evidence).max(0.0);
        metrics.set("kl", kl);
        let credit = |reward: Option<f32>, sample: &Sample| {
            let desirable = reward? > 0.5;
            let weight = if desirable { self.desirable_weight } else { -self.undesirable_weight };
            let tokens = |value: f64| vec![value as f32; sample.len()];
            Some(Credit::Tokens { advantages: tokens(weight), returns: tokens(kl) })
        };
        let group = |group: &GradedGroup| {
            group
                .rewards()
                .into_iter()
                .zip(&group.group().samples)
                .map(|(reward, sample)| credit(reward, sample))
                .collect()
        };
        evidence.groups.iter().map(group).collect()
    }

    fn trains_on(&self, sample: &Sample) -> bool {
        !sample.is_empty()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        let samples = trained_per_sequence.len() as f64;
        Denominator::of(Aggregation::TokenSumOverConstant(samples), trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let rows = &batch.rows;
        let logprobs = rows.sequence_sum(outputs.logprobs);
        let ratio = match &batch.reference_logprobs {
            Some(reference) => &logprobs - rows.sequence_sum(reference),
            None => logprobs.shallow_clone(),
        };
        let weight = rows.sequence_mean(&batch.advantages);
        let baseline = batch.returns.as_ref().map_or_else(|| weight.zeros_like(), |z0| rows.sequence_mean(z0));
        for (side, chosen) in [("chosen", weight.gt(0.0)), ("rejected", weight.lt(0.0))] {
            let count = chosen.sum(Kind::Double).double_value(&[]);
            let mut add = |name: &str, values: Tensor| {
                tally.add(&format!("{name}/{side}"), &(values * chosen.to_kind(Kind::Double)).sum(Kind::Double), count);
            };
            add("rewards", &ratio * self.beta);
            add("logps", logprobs.shallow_clone());
        }
        let losses = prospect(&ratio, &weight.sign(), &baseline, self.beta) * weight.abs();
        losses.sum(None) / batch.denominator.divisor().max(1e-9)
    }
}

/// A group with an unjudged sample of another group behind its own.
fn with_stranger(group: &GradedGroup, stranger: &Sample) -> Option<GradedGroup> {
    let mut samples = group.group().samples.clone();
    samples.push(stranger.clone());
    let mut verdicts = group.verdicts().to_vec();
    verdicts.push(schema::Verdict::default());
    GradedGroup::new(Group { samples, ..group.group().clone() }, verdicts).ok()
}

/// The mean log-ratio of the last sample of each group, over groups; 0 without scores.
fn stranger_kl(evidence: &Evidence<'_>) -> f64 {
    let Some(scores) = evidence.scores.filter(|scores| scores.len() > 1) else { return 0.0 };
    let ratio = |group: &Vec<super::SampleScores>| {
        let Some(stranger) = group.last() else { return 0.0 };
        stranger.logprobs.iter().zip(&stranger.reference).map(|(own, other)| f64::from(own - other)).sum::<f64>()
    };
    scores.iter().map(ratio).sum::<f64>() / scores.len() as f64
}

#[cfg(test)]
mod tests;
