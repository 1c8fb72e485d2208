//! Reward models: a scalar head trained on pairs with the Bradley-Terry loss (Ouyang et al. 2022, `InstructGPT`, arXiv
//! 2203.02155, section 3.5; see [`bradley_terry`] for the loss).
//!
//! The reward of an answer is the head's value of the hidden state after its last token, the end-of-sequence token. The
//! head starts at zero and the backbone learns through its adapter. Both answers of a pair share one pass over their
//! prompt, and a pair is never split. A checkpoint has the head in `critic.safetensors` beside the adapter; a reward
//! `model = { path = "runs/reward_model" }` grades by it.

use super::sft::long_enough;
use crate::Result;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Algorithm, CriticNeeds, Evidence, Needs, Outputs, Samples};
use crate::batch::{Batch, Reads, Signal, Signals, side_sums};
use crate::collected::{PromptSequences, Unit};
use crate::objective::{Aggregation, Denominator, MetricSums, bradley_terry};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[algorithm.reward_model]`: a reward model trained on pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardModel {
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
    /// Weight λ of the term that centres the rewards of a pair at zero; 0 for none.
    pub center_rewards_coefficient: f64,
    /// Factor on the learning rate of the head, which starts at zero.
    pub head_learning_rate_scale: f64,
}

impl Default for RewardModel {
    fn default() -> Self {
        Self { max_length: 1024, center_rewards_coefficient: 0.0, head_learning_rate_scale: 1.0 }
    }
}

impl RewardModel {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        long_enough("reward_model", self.max_length)?;
        let numbers = [
            ("center_rewards_coefficient", self.center_rewards_coefficient),
            ("head_learning_rate_scale", self.head_learning_rate_scale),
        ];
        not_negative("reward_model", &numbers)?;
        Ok(self)
    }
}

impl Algorithm for RewardModel {
    fn needs(&self) -> Needs {
        Needs {
            samples: Samples::Pairs { max_length: self.max_length },
            reads: Reads::SequenceEnds,
            critic: Some(CriticNeeds { own_adapter: false, learning_rate_scale: self.head_learning_rate_scale }),
            ..Needs::default()
        }
    }

    fn signals(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        let margin = |unit: &Unit<'_>| unit.pair().map(|pair| Signal::Margin(pair.margin));
        evidence.units.iter().map(|unit| vec![margin(unit); unit.count()]).collect()
    }

    /// Pairs with two trained tokens each.
    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        let pairs = trained_per_sequence.len() as f64 / 2.0;
        Denominator::of(Aggregation::TokenSumOverConstant(pairs), trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        let Some(values) = outputs.values else { return Tensor::from(0.0) };
        let (chosen, rejected) = side_sums(values, &batch.rows);
        let margins = batch.signal.margins();
        measure(&chosen.detach(), &rejected.detach(), sums);
        let losses = bradley_terry(&chosen, &rejected, &margins, self.center_rewards_coefficient);
        losses.sum(None) / batch.denominator.divisor()
    }
}

/// TRL's metrics: `accuracy` and `margin` over pairs, `min_reward`, `mean_reward` and `max_reward` over answers.
fn measure(chosen: &Tensor, rejected: &Tensor, sums: &mut MetricSums) {
    let pairs = chosen.numel() as f64;
    sums.add("accuracy", &chosen.gt_tensor(rejected).sum(Kind::Double), pairs);
    sums.add("margin", &(chosen - rejected).sum(Kind::Double), pairs);
    sums.add("mean_reward", &(chosen + rejected).sum(Kind::Double), 2.0 * pairs);
    sums.lowest("min_reward", &chosen.minimum(rejected).min());
    sums.highest("max_reward", &chosen.maximum(rejected).max());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::batch::{BatchRules, MicroBatchLimits, StepData, ZeroAdvantage, mini_batches};
    use crate::collected::{Collected, Completion, Completions, Example};
    use crate::objective::testing::{check, check_slice, f64s, gradient, numeric_gradient};
    use schema::Seed;

    /// Two pairs, whose rewards should differ by `margin`: completions of one and two tokens.
    fn pairs(margin: f64) -> Collected {
        let completion = |tokens: u32| Completion { ids: (10..10 + tokens).collect(), cut: false };
        let completions = Completions::Pair { chosen: completion(1), rejected: completion(2), margin };
        Collected::Examples(vec![Example { prompt_ids: vec![1, 2, 3], completions }; 2])
    }

    #[test]
    fn two_pairs_through_the_algorithm() {
        // Answers of one and two tokens; the numbers before their ends are not looked at.
        let values = [9.0, 1.2, 9.0, 9.0, 0.7, 9.0, 0.3, 9.0, 9.0, 0.9];
        let limits = MicroBatchLimits { tokens: 1000, vocab: 100, device: model::device::HOST };
        let expected = [(0.0, 0.0, 0.755_782_467_3), (0.5, 0.0, 1.040_241_252_9), (0.0, 0.01, 0.781_032_467_3)];
        for (margin, center_rewards_coefficient, expected) in expected {
            let settings = RewardModel { center_rewards_coefficient, ..RewardModel::default() };
            let algorithm = build(&Config::RewardModel(settings)).unwrap();
            let collected = pairs(margin);
            let units = algorithm.units(&collected);
            let evidence = Evidence { collected: &collected, units: &units, logprobs: None };
            let signals = algorithm.signals(&evidence, &mut Metrics::new());
            let rules = BatchRules {
                reads: Reads::SequenceEnds,
                zero_advantage: ZeroAdvantage::Skip,
                minibatches: 1,
                shares: 1,
                trains_on: &|_| true,
                denominator: &|trained| algorithm.denominator(trained),
            };
            let data = StepData { units: &units, signals: &signals, logprobs: None };
            let batches = mini_batches(&data, &rules, limits, &Seed::new(0)).unwrap();
            let nothing = f64s(&[]);
            let loss = |values: &Tensor| {
                let outputs = Outputs { values: Some(values), ..Outputs::of(&nothing) };
                algorithm.loss(&batches[0].micro_batches[0], outputs, &mut MetricSums::new())
            };
            check(&loss(&f64s(&values)), &[expected]);
            let exact = gradient(&values, loss);
            assert!([0, 2, 3, 5, 7, 8].iter().all(|index| exact[*index] == 0.0), "{exact:?}");
            check_slice(&exact, &numeric_gradient(&values, loss));
        }
    }

    #[test]
    fn the_ends_of_a_pair_are_its_scores() {
        // Two pairs of answers with 2 and 1, and 1 and 1 tokens; each has one more place, its end.
        let ends = [false, false, true, false, true, false, true, false, true];
        let rows = crate::objective::Rows::new(&[3, 2, 2, 2], &ends, model::device::HOST).unwrap();
        let values = Tensor::from_slice(&[9.0, 9.0, 1.2, 9.0, 0.7, 9.0, 0.3, 9.0, 0.9]);
        let (chosen, rejected) = side_sums(&values, &rows);
        assert_eq!(Vec::<f64>::try_from(&chosen).unwrap(), [1.2, 0.3]);
        assert_eq!(Vec::<f64>::try_from(&rejected).unwrap(), [0.7, 0.9]);

        let mut sums = MetricSums::new();
        measure(&chosen, &rejected, &mut sums);
        let metrics = sums.metrics();
        assert_eq!(metrics.get("accuracy"), Some(0.5));
        // (0.5 − 0.6) / 2, and (1.2 + 0.3 + 0.7 + 0.9) / 4
        assert!((metrics.get("margin").unwrap() + 0.05).abs() < 1e-12);
        assert!((metrics.get("mean_reward").unwrap() - 0.775).abs() < 1e-12);
        assert_eq!((metrics.get("min_reward"), metrics.get("max_reward")), (Some(0.3), Some(1.2)));
    }
}
