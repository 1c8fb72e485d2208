//! A judge that prefers the sample with the higher reward.
//!
//! ```text
//! P(a ≻ b) = σ((r(a) − r(b)) / temperature)        certain at temperature 0, where equal rewards tie
//! ```
//!
//! At temperature 1 and with the reward of a reward model that is the model's own Bradley-Terry probability.

use super::{Contestant, Judge, Matchup};
use crate::Reward;
use schema::{Grade, Group};
use std::ptr;

/// A judge that compares by a reward; if either sample is ungraded, the comparison is missing.
pub struct ByReward {
    reward: Box<dyn Reward>,
    temperature: f64,
}

impl ByReward {
    /// A judge by this reward.
    pub fn new(reward: Box<dyn Reward>, temperature: f64) -> Self {
        Self { reward, temperature }
    }
}

impl Judge for ByReward {
    fn name(&self) -> &'static str {
        self.reward.name()
    }

    fn version(&self) -> String {
        format!("{}@{}", self.reward.version(), self.temperature)
    }

    fn is_symmetric(&self) -> bool {
        true
    }

    /// Compares pairs; each group is graded once, however many pairs its samples are in.
    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        let mut groups: Vec<&Group> = Vec::new();
        for group in pairs.iter().flat_map(|(a, b)| [a.group, b.group]) {
            if !groups.iter().any(|known| ptr::eq(*known, group)) {
                groups.push(group);
            }
        }
        let number =
            |of: &Contestant<'_>| groups.iter().position(|group| ptr::eq(*group, of.group)).unwrap_or_default();
        let numbers: Vec<(usize, usize)> = pairs.iter().map(|(a, b)| (number(a), number(b))).collect();
        let owned: Vec<Group> = groups.iter().map(|group| (*group).clone()).collect();
        let graded = self.reward.grade(&owned);
        let one = |((a, b), (of_a, of_b)): (&Matchup<'_>, &(usize, usize))| match (
            &graded[*of_a][a.index],
            &graded[*of_b][b.index],
        ) {
            (Grade::Value(a), Grade::Value(b)) => {
                Grade::of(wins(f64::from(*a), f64::from(*b), self.temperature) as f32)
            }
            (Grade::Missing(reason), _) | (_, Grade::Missing(reason)) => Grade::missing(reason),
        };
        pairs.iter().zip(&numbers).map(one).collect()
    }
}

/// The probability that the first of two rewards wins.
fn wins(a: f64, b: f64, temperature: f64) -> f64 {
    if temperature > 0.0 {
        return 1.0 / (1.0 + ((b - a) / temperature).exp());
    }
    if a == b { 0.5 } else { f64::from(a > b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::math_answer;
    use crate::tests::group;

    #[test]
    fn the_right_one_beats_the_wrong_one() {
        let judge = |temperature| {
            let reward = math_answer::Config::default().build().unwrap();
            ByReward::new(Box::new(reward), temperature)
        };
        let group = group("What is 7+15?", Some("22"), &["22", "21", "It is 22."]);
        let open = Group { prompt: schema::Prompt::user("Sing!"), ..group.clone() };
        let at = |index| Contestant { group: &group, index };
        let pairs = [(at(0), at(1)), (at(1), at(2)), (at(0), at(2)), (at(0), Contestant { group: &open, index: 0 })];
        let found = judge(0.0).compare(&pairs);
        assert_eq!(found.iter().map(Grade::value).collect::<Vec<_>>(), [Some(1.0), Some(0.0), Some(0.5), None]);
        assert_eq!(found[3], Grade::missing("the prompt has no answer"));
        assert_eq!(judge(0.0).compare(&[]), []);
        // σ(1/0.5) = 0.880797
        let soft = judge(0.5).compare(&pairs)[0].value().unwrap();
        assert!((soft - 0.880_797).abs() < 1e-6, "{soft}");
        assert_ne!(judge(0.0).version(), judge(0.5).version());
    }
}
