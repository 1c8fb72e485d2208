//! Preference models: a network that reads both answers of a pair and returns the probability that the first is better
//! (Munos et al. 2024, arXiv 2312.00886, section 3).
//!
//! A reward model gives each answer a number, so its preferences are always transitive. This model gives the pair a
//! logit, from both answers in one input, and is antisymmetric in their order, because the logit of the other order is
//! subtracted:
//!
//! ```text
//! P(a ≻ b) = σ(s(x, a, b) − s(x, b, a))          so that P(a ≻ b) + P(b ≻ a) = 1 for every network
//! ℓ = −log P(chosen ≻ rejected) + λ (s(x, chosen, rejected) + s(x, rejected, chosen))²
//! ```
//!
//! The input is the prompt, one answer with its end-of-sequence token, and the other with its own; `s` is the value of
//! a scalar head after the last token. Both orders share one pass over the prompt. The checkpoint has the form of a
//! [reward model](crate::algorithm::RewardModel)'s, with the same head and metrics, and `[judge]` with `model = { path =
//! "runs/preference_model" }` compares by it.

use super::reward_model::RewardModel;
use super::sft::long_enough;
use crate::Result;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Algorithm, Evidence, Needs, Outputs};
use crate::batch::{Batch, Signals};
use crate::collected::{Collected, Pair, Sequence, Side, Unit};
use crate::objective::{Denominator, MetricSums};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.preference_model]`: a preference model trained on pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceModel {
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
    /// Weight λ of the term that centres the logits of both orders at zero; 0 for none.
    pub center_rewards_coefficient: f64,
    /// Factor on the learning rate of the head, which starts at zero.
    pub head_learning_rate_scale: f64,
}

impl Default for PreferenceModel {
    fn default() -> Self {
        Self { max_length: 1024, center_rewards_coefficient: 0.0, head_learning_rate_scale: 1.0 }
    }
}

impl PreferenceModel {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        long_enough("preference_model", self.max_length)?;
        let numbers = [
            ("center_rewards_coefficient", self.center_rewards_coefficient),
            ("head_learning_rate_scale", self.head_learning_rate_scale),
        ];
        not_negative("preference_model", &numbers)?;
        Ok(self)
    }

    /// Returns the settings as those of a reward model, which is trained on ordered pairs.
    fn of_orders(&self) -> RewardModel {
        let Self { max_length, center_rewards_coefficient, head_learning_rate_scale } = *self;
        RewardModel { max_length, center_rewards_coefficient, head_learning_rate_scale }
    }
}

impl Algorithm for PreferenceModel {
    fn needs(&self) -> Needs {
        self.of_orders().needs()
    }

    /// Each pair in both orders. Probabilities have no margin.
    fn units<'a>(&self, collected: &'a Collected) -> Vec<Unit<'a>> {
        let both = |unit: Unit<'a>| {
            let Unit::Pair(Pair { prompt_ids, chosen, rejected, .. }) = unit else { return None };
            let joined = |first: &Side<'a>, second: &Side<'a>| Side {
                sequence: Sequence::joined(&first.sequence, &second.sequence),
                ..first.clone()
            };
            let (right, wrong) = (joined(&chosen, &rejected), joined(&rejected, &chosen));
            Some(Unit::Pair(Pair { prompt_ids, chosen: right, rejected: wrong, margin: 0.0 }))
        };
        collected.units().into_iter().filter_map(both).collect()
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        self.of_orders().signals(evidence, metrics)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        self.of_orders().denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        self.of_orders().loss(batch, outputs, sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::collected::PromptSequences;
    use crate::testing::collected;

    #[test]
    fn a_pair_is_read_in_both_orders() {
        let algorithm = build(&Config::PreferenceModel(PreferenceModel::default())).unwrap();
        // Completions of one and two tokens: 10 and 10, 11.
        let collected = collected(&*algorithm, &[&[1.0, 0.0]]);
        let units = algorithm.units(&collected);
        assert_eq!(units.len(), 1);
        let (first, second) = (units[0].sequence(0), units[0].sequence(1));
        assert_eq!((&first.ids[..], &second.ids[..]), (&[10, 10, 11][..], &[10, 11, 10][..]));
        assert!(first.is_consistent() && second.is_consistent());
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let config = PreferenceModel { center_rewards_coefficient: -1.0, ..PreferenceModel::default() };
        let error = build(&Config::PreferenceModel(config)).err().unwrap().to_string();
        assert!(error.contains("algorithm.preference_model.center_rewards_coefficient"), "{error}");
    }
}
