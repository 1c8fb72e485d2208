//! A judge that prefers the sample with the higher reward.

use crate::{Contestant, Judge, Reward};
use schema::Group;

/// The higher value wins for certain; equal values draw; if either is unjudged, so is the comparison.
pub struct ByReward {
    reward: Box<dyn Reward>,
}

impl ByReward {
    /// A judge by this reward.
    pub fn new(reward: Box<dyn Reward>) -> Self {
        Self { reward }
    }
}

impl Judge for ByReward {
    fn name(&self) -> &'static str {
        self.reward.name()
    }

    fn version(&self) -> String {
        self.reward.version()
    }

    fn compare(&mut self, pairs: &[(Contestant<'_>, Contestant<'_>)]) -> Vec<Option<f64>> {
        let alone: Vec<Group> = pairs.iter().flat_map(|(a, b)| [only(a), only(b)]).collect();
        let values: Vec<Option<f32>> = self.reward.score(&alone).iter().map(|judged| judged[0].value()).collect();
        values.chunks_exact(2).map(|pair| Some(wins(pair[0]?, pair[1]?))).collect()
    }
}

/// The contestant's group with no other sample in it.
fn only(contestant: &Contestant<'_>) -> Group {
    let Group { prompt, prompt_ids, policy, settings, samples } = contestant.group;
    Group {
        prompt: prompt.clone(),
        prompt_ids: prompt_ids.clone(),
        policy: policy.clone(),
        settings: settings.clone(),
        samples: vec![samples[contestant.place].clone()],
    }
}

fn wins(a: f32, b: f32) -> f64 {
    if a > b {
        1.0
    } else if a < b {
        0.0
    } else {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::math_answer;
    use crate::tests::group;

    #[test]
    fn the_right_one_beats_the_wrong_one() {
        let reward = math_answer::Config::default().build().unwrap();
        let mut judge = ByReward::new(Box::new(reward));
        let group = group("What is 7+15?", Some("22"), &["22", "21", "It is 22."]);
        let open = Group { prompt: schema::Prompt::user("Sing!"), ..group.clone() };
        let at = |place| Contestant { group: &group, place };
        let pairs = [(at(0), at(1)), (at(1), at(2)), (at(0), at(2)), (at(0), Contestant { group: &open, place: 0 })];
        assert_eq!(judge.compare(&pairs), [Some(1.0), Some(0.0), Some(0.5), None]);
        assert_eq!(judge.compare(&[]), []);
    }
}
