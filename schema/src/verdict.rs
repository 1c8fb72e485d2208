//! The verdict on one sample: the grades of its reward functions, and its comparisons with other samples.

use crate::{Comparison, Grade, Rival};
use serde::{Deserialize, Serialize};

/// One reward function's grade of one sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardPart {
    /// The reward function's name, as in the config: the column `rewards/<name>/mean` of the metrics.
    pub name: String,
    /// The version of the reward function (its code and its settings), which tells rescored rows apart.
    pub version: String,
    /// The weight of the grade in the sum.
    pub weight: f64,
    /// The grade, before weighting.
    pub grade: Grade,
}

/// The rewards and the comparisons of one sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One part per reward function, in the config's order.
    pub rewards: Vec<RewardPart>,
    /// One entry per comparison, in the order in which they were made.
    pub comparisons: Vec<Comparison>,
}

impl Verdict {
    /// A verdict without comparisons.
    pub fn of_rewards(rewards: Vec<RewardPart>) -> Self {
        Self { rewards, comparisons: Vec::new() }
    }

    /// Returns true if a judge has compared the sample with others, with or without success.
    pub fn is_compared(&self) -> bool {
        !self.comparisons.is_empty()
    }

    /// The probability that the sample beats this rival; `None` if they were not compared, or the judge failed.
    pub fn beats(&self, rival: Rival) -> Option<f64> {
        self.comparisons.iter().find(|comparison| comparison.rival == rival)?.win.value().map(f64::from)
    }

    /// The mean probability of beating a rival, over the comparisons that succeeded; `None` if none did.
    pub fn win_rate(&self) -> Option<f64> {
        let known: Vec<f64> =
            self.comparisons.iter().filter_map(|comparison| comparison.win.value().map(f64::from)).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    /// The weighted sum of the rewards. It is `None` if any part with a weight is ungraded: such a sample is not
    /// trained on, and never counted as a zero.
    pub fn total(&self) -> Option<f32> {
        let weighted = self.rewards.iter().filter(|part| part.weight != 0.0);
        let mut total = 0.0;
        let mut any = false;
        for part in weighted {
            total += part.weight * f64::from(part.grade.value()?);
            any = true;
        }
        any.then_some(total as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(weight: f64, value: Option<f32>) -> RewardPart {
        let grade = value.map_or(Grade::missing("timed out"), Grade::Value);
        RewardPart { name: "exact".into(), version: "1".into(), weight, grade }
    }

    fn total(parts: &[(f64, Option<f32>)]) -> Option<f32> {
        Verdict::of_rewards(parts.iter().map(|(weight, value)| part(*weight, *value)).collect()).total()
    }

    #[test]
    fn total_is_the_weighted_sum() {
        assert_eq!(total(&[(1.0, Some(1.0)), (0.5, Some(-1.0))]), Some(0.5));
    }

    #[test]
    fn an_ungraded_part_leaves_the_sample_ungraded_unless_it_has_no_weight() {
        assert_eq!(total(&[(1.0, Some(1.0)), (0.5, None)]), None);
        assert_eq!(total(&[(1.0, Some(1.0)), (0.0, None)]), Some(1.0));
        assert_eq!(total(&[]), None);
    }

    #[test]
    fn comparisons_are_found_by_their_rival_and_do_not_count_as_rewards() {
        let comparison = |rival, win| Comparison { judge: "length".into(), version: "1".into(), rival, win };
        let verdict = Verdict {
            rewards: vec![part(1.0, Some(1.0))],
            comparisons: vec![
                comparison(Rival::Own(1), Grade::Value(0.75)),
                comparison(Rival::Opponent(1), Grade::missing("timed out")),
            ],
        };
        assert!(verdict.is_compared() && verdict.total() == Some(1.0));
        assert_eq!(verdict.beats(Rival::Own(1)), Some(0.75));
        assert_eq!(verdict.win_rate(), Some(0.75));
        assert_eq!((verdict.beats(Rival::Opponent(1)), verdict.beats(Rival::Own(2))), (None, None));
        assert!(!Verdict::of_rewards(vec![part(1.0, Some(1.0))]).is_compared());
        assert_eq!(Verdict::default().win_rate(), None);
    }
}
