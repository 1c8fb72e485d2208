//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024, KTO, arXiv 2402.01306): good and bad completions, no pairs.
//!
//! Each completion is a gain or a loss relative to the policy's average movement from the reference:
//!
//! ```text
//! desirable    ℓ = w_d (1 − σ(β (h − z₀)))          h = log(π / π_ref)(completion)
//! undesirable  ℓ = w_u (1 − σ(β (z₀ − h)))
//! z₀ = max(0, mean_j log(π / π_ref)(y_{j−1} | x_j))
//! ```
//!
//! `z₀` estimates `KL(π ‖ π_ref)` on completions of other prompts: each prompt of the step is paired with the
//! completion of the previous one, for which log-probabilities are computed without training on it. It is a mean over
//! the whole step, so micro-batches change nothing; a step needs at least two prompts. The column `label` of the data
//! set says which completions are desirable; of a pair it is the chosen one.

use super::pair_loss;
use crate::Result;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Algorithm, Evidence, Needs, Outputs, Samples};
use crate::batch::{Batch, SequenceLogprobs, Signal, Signals};
use crate::collected::{Collected, Completions, Example, Labelled, Sequence, Unit};
use crate::companion::{Companion, Consults, Role};
use crate::objective::preference::prospect;
use crate::objective::{Aggregation, Denominator, MetricSums};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[algorithm.kto]`: Kahneman-Tversky optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kto {
    /// Weight β of the pull towards the reference: the larger, the closer the policy stays to it.
    pub beta: f64,
    /// Weight of desirable completions.
    pub desirable_weight: f64,
    /// Weight of undesirable completions. With n of each, `desirable_weight · n_d / (undesirable_weight · n_u)` is best
    /// between 1 and 4/3.
    pub undesirable_weight: f64,
    /// Contents of the data set's rows: `labelled` or `pairs`.
    pub data: KtoData,
    /// Largest number of tokens of a prompt with a completion; a longer completion is truncated, a longer pair is left
    /// out.
    pub max_length: usize,
}

/// Contents of a data set's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoData {
    /// A completion and its `label`.
    #[default]
    Labelled,
    /// A pair: the chosen completion is desirable, the rejected one is not.
    Pairs,
}

impl Default for Kto {
    fn default() -> Self {
        Self { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0, data: KtoData::Labelled, max_length: 1024 }
    }
}

impl Kto {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        pair_loss::checked("kto", self.max_length, self.beta)?;
        let weights = [("desirable_weight", self.desirable_weight), ("undesirable_weight", self.undesirable_weight)];
        not_negative("kto", &weights)?;
        Ok(self)
    }
}

impl Algorithm for Kto {
    fn needs(&self) -> Needs {
        let max_length = self.max_length;
        Needs {
            samples: match self.data {
                KtoData::Labelled => Samples::Labelled { max_length },
                KtoData::Pairs => Samples::Pairs { max_length },
            },
            companions: vec![Companion::reference(Consults::Signal)],
            signal_reads_logprobs: true,
            ..Needs::default()
        }
    }

    /// The completions of each row with their labels, and the first completion of the row before it.
    fn units<'a>(&self, collected: &'a Collected) -> Vec<Unit<'a>> {
        let examples = collected.examples();
        let before = examples.iter().cycle().skip(examples.len().saturating_sub(1));
        let labelled = |(example, before): (&'a Example, &'a Example)| {
            let completions = match &example.completions {
                Completions::Demonstration { completion, desirable } => vec![(completion, *desirable)],
                Completions::Pair { chosen, rejected, .. } => vec![(chosen, true), (rejected, false)],
            };
            let sequence = |(completion, desirable)| (Sequence::of_completion(completion), desirable);
            Some(Unit::Labelled(Labelled {
                prompt_ids: &example.prompt_ids,
                completions: completions.into_iter().map(sequence).collect(),
                unrelated: Sequence::of_completion(before.completions().next()?),
            }))
        };
        examples.iter().zip(before).filter_map(labelled).collect()
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let baseline = unrelated_kl(evidence).max(0.0);
        metrics.set("kl", baseline);
        let signal = |desirable: bool| {
            let weight = if desirable { self.desirable_weight } else { self.undesirable_weight };
            Some(Signal::Labelled { desirable, weight, baseline })
        };
        let of_unit = |unit: &Unit<'_>| {
            let Unit::Labelled(labelled) = unit else { return Vec::new() };
            labelled.completions.iter().map(|(_, desirable)| signal(*desirable)).chain([None]).collect()
        };
        evidence.units.iter().map(of_unit).collect()
    }

    fn trains_on(&self, sequence: &Sequence<'_>) -> bool {
        !sequence.is_empty()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        let samples = trained_per_sequence.len() as f64;
        Denominator::of(Aggregation::TokenSumOverConstant(samples), trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        let rows = &batch.rows;
        let logprobs = rows.sequence_sum(outputs.logprobs);
        let ratio = match batch.logprobs_of(Role::Reference) {
            Some(reference) => &logprobs - rows.sequence_sum(reference),
            None => logprobs.shallow_clone(),
        };
        let (weight, baseline) = batch.signal.labels();
        for (side, chosen) in [("chosen", weight.gt(0.0)), ("rejected", weight.lt(0.0))] {
            let count = chosen.sum(Kind::Double).double_value(&[]);
            let mut add = |name: &str, values: Tensor| {
                sums.add(&format!("{name}/{side}"), &(values * chosen.to_kind(Kind::Double)).sum(Kind::Double), count);
            };
            add("rewards", &ratio * self.beta);
            add("logps", logprobs.shallow_clone());
        }
        let losses = prospect(&ratio, &weight.sign(), baseline, self.beta) * weight.abs();
        losses.sum(None) / batch.denominator.divisor().max(1e-9)
    }
}

/// The mean log-ratio of the unrelated completion of each unit, over units, in nats; 0 without log-probs or with one unit.
fn unrelated_kl(evidence: &Evidence<'_>) -> f64 {
    let Some(logprobs) = evidence.logprobs.filter(|logprobs| logprobs.len() > 1) else { return 0.0 };
    let ratio = |unit: &Vec<SequenceLogprobs>| {
        let Some(unrelated) = unit.last() else { return 0.0 };
        unrelated
            .policy
            .iter()
            .zip(unrelated.of(Role::Reference))
            .map(|(own, other)| f64::from(own - other))
            .sum::<f64>()
    };
    logprobs.iter().map(ratio).sum::<f64>() / logprobs.len() as f64
}

#[cfg(test)]
mod tests;
