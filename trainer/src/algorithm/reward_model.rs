//! Reward models: a scalar head that learns from pairs which answer is better (see
//! [`bradley_terry`](crate::objective::bradley_terry) for the loss).
//!
//! The score of an answer is the head's value of the hidden state after its last token, the end-of-sequence token; the
//! head starts at zero and the backbone learns through its adapter. Both answers of a pair share one pass over their
//! prompt, and a pair is never parted. A checkpoint has the head in `critic.safetensors` beside the adapter; a reward
//! `model = { path = "runs/reward_model" }` judges by it.

use super::policy_gradient::not_negative;
use super::sft::long_enough;
use super::{Algorithm, Credit, Credits, CriticNeeds, Evidence, Needs, Outputs, Reads, Samples, ZeroCredit};
use crate::Result;
use crate::batch::Batch;
use crate::objective::{Aggregation, Denominator, MetricSums, Rows, bradley_terry};
use rollout::prompts::examples::MARGIN;
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Kind, Tensor};

/// `[algorithm.reward_model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardModel {
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
    /// How strongly the scores of a pair are drawn to a mean of zero, λ; 0 for not at all.
    pub center_rewards_coefficient: f64,
    /// Multiplies the learning rate of the head, which starts at zero with nothing to build on.
    pub head_learning_rate_scale: f64,
}

impl Default for RewardModel {
    fn default() -> Self {
        Self { max_length: 1024, center_rewards_coefficient: 0.0, head_learning_rate_scale: 1.0 }
    }
}

impl RewardModel {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
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
            samples: Samples::Pairs,
            reads: Reads::Ends,
            max_length: self.max_length,
            critic: Some(CriticNeeds { own_adapter: false, learning_rate_scale: self.head_learning_rate_scale }),
            zero_credit: ZeroCredit::Compute,
            ..Needs::default()
        }
    }

    /// The margin of its pair is what each sample carries to the loss.
    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        let margin =
            |group: &GradedGroup| group.group().prompt.metadata.get(MARGIN).and_then(Value::as_f64).unwrap_or_default();
        let samples = |group: &GradedGroup| group.group().samples.len();
        evidence.groups.iter().map(|group| vec![Some(Credit::Whole(margin(group))); samples(group)]).collect()
    }

    /// Pairs, of which each has two trained places.
    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        let pairs = trained_per_sequence.len() as f64 / 2.0;
        Denominator::of(Aggregation::TokenSumOverConstant(pairs), trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let Some(values) = outputs.values else { return Tensor::from(0.0) };
        let (chosen, rejected) = sides(values, &batch.rows);
        let (margins, _) = sides(&batch.advantages, &batch.rows);
        measure(&chosen.detach(), &rejected.detach(), tally);
        let losses = bradley_terry(&chosen, &rejected, &margins, self.center_rewards_coefficient);
        losses.sum(None) / batch.denominator.divisor()
    }
}

/// The numbers at the ends of the chosen and of the rejected answers, `[pair]` each; `x` is `[token]`.
fn sides(x: &Tensor, rows: &Rows) -> (Tensor, Tensor) {
    let pairs = rows.sequence_sum(x).reshape([-1, 2]);
    (pairs.select(1, 0), pairs.select(1, 1))
}

/// TRL's metrics: `accuracy` and `margin` over pairs, `min_reward`, `mean_reward` and `max_reward` over answers.
fn measure(chosen: &Tensor, rejected: &Tensor, tally: &mut MetricSums) {
    let pairs = chosen.numel() as f64;
    tally.add("accuracy", &chosen.gt_tensor(rejected).sum(Kind::Double), pairs);
    tally.add("margin", &(chosen - rejected).sum(Kind::Double), pairs);
    tally.add("mean_reward", &(chosen + rejected).sum(Kind::Double), 2.0 * pairs);
    tally.lowest("min_reward", &chosen.minimum(rejected).min());
    tally.highest("max_reward", &chosen.maximum(rejected).max());
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use crate::batch::{Cut, Material, mini_batches};
    use crate::objective::testing::{check, check_slice, f64s, gradient, numeric_gradient};
    use crate::testing::scored;
    use schema::{Group, Seed};

    /// Two pairs, whose scores should differ by `margin`.
    fn pairs(margin: f64) -> Vec<GradedGroup> {
        let with_margin = |scored: GradedGroup| {
            let mut group: Group = scored.group().clone();
            group.prompt.metadata.insert(MARGIN.into(), margin.into());
            GradedGroup::new(group, scored.verdicts().to_vec()).unwrap()
        };
        scored(&[&[1.0, 0.0], &[1.0, 0.0]]).into_iter().map(with_margin).collect()
    }

    #[test]
    fn two_pairs_through_the_algorithm() {
        // Answers of one and two tokens; the numbers before their ends are not looked at.
        let values = [9.0, 1.2, 9.0, 9.0, 0.7, 9.0, 0.3, 9.0, 9.0, 0.9];
        let cut = Cut { micro_batch_tokens: 1000, vocab: 100, device: model::device::HOST };
        let expected = [(0.0, 0.0, 0.755_782_467_3), (0.5, 0.0, 1.040_241_252_9), (0.0, 0.01, 0.781_032_467_3)];
        for (margin, center_rewards_coefficient, expected) in expected {
            let settings = RewardModel { center_rewards_coefficient, ..RewardModel::default() };
            let algorithm = build(&super::super::Config::RewardModel(settings)).unwrap();
            let groups = pairs(margin);
            let credits = algorithm.credit(&Evidence { groups: &groups, scores: None }, &mut Metrics::new());
            let material = Material { groups: &groups, credits: &credits, scores: None };
            let batches = mini_batches(&material, &*algorithm, &algorithm.schedule(1), cut, 1, &Seed::new(0)).unwrap();
            let nothing = f64s(&[]);
            let loss = |values: &Tensor| {
                let outputs = Outputs { values: Some(values), ..Outputs::of(&nothing) };
                algorithm.loss(&batches[0].micro_batches[0], outputs, &mut MetricSums::new())
            };
            check(&loss(&f64s(&values)), &[expected]);
            let exact = gradient(&values, loss);
            assert!([0, 2, 3, 5, 7, 8].iter().all(|place| exact[*place] == 0.0), "{exact:?}");
            check_slice(&exact, &numeric_gradient(&values, loss));
        }
    }

    #[test]
    fn the_ends_of_a_pair_are_its_scores() {
        // Two pairs of answers with 2 and 1, and 1 and 1 tokens; each has one more place, its end.
        let ends = [false, false, true, false, true, false, true, false, true];
        let rows = Rows::new(&[3, 2, 2, 2], &ends, model::device::HOST).unwrap();
        let values = Tensor::from_slice(&[9.0, 9.0, 1.2, 9.0, 0.7, 9.0, 0.3, 9.0, 0.9]);
        let (chosen, rejected) = sides(&values, &rows);
        assert_eq!(Vec::<f64>::try_from(&chosen).unwrap(), [1.2, 0.3]);
        assert_eq!(Vec::<f64>::try_from(&rejected).unwrap(), [0.7, 0.9]);

        let mut tally = MetricSums::new();
        measure(&chosen, &rejected, &mut tally);
        let metrics = tally.metrics();
        assert_eq!(metrics.get("accuracy"), Some(0.5));
        // (0.5 − 0.6) / 2, and (1.2 + 0.3 + 0.7 + 0.9) / 4
        assert!((metrics.get("margin").unwrap() + 0.05).abs() < 1e-12);
        assert!((metrics.get("mean_reward").unwrap() - 0.775).abs() < 1e-12);
        assert_eq!((metrics.get("min_reward"), metrics.get("max_reward")), (Some(0.3), Some(1.2)));
    }
}
