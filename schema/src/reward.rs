//! What a sample was worth, part by part.

use serde::{Deserialize, Serialize};

/// Whether a part of the reward could be judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartStatus {
    /// The value is the judgement.
    Judged,
    /// The grader does not apply to this sample, or could not judge it; the text says why.
    Unjudged(String),
}

/// One reward function's judgement of one sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The reward function's name, as in the config: the column `rewards/<name>/mean` of the metrics.
    pub name: String,
    /// The version of the reward function (its code and its settings), so that re-scored rows can be told apart.
    pub version: String,
    /// Its weight in the sum.
    pub weight: f64,
    /// Its value, before weighting; `None` if it could not be judged.
    pub value: Option<f32>,
    /// Whether and why not.
    pub status: PartStatus,
}

/// The reward of one sample: its parts, of which the total is a view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One entry per reward function, in the config's order.
    pub parts: Vec<Part>,
}

impl Verdict {
    /// The weighted sum of the parts, or `None` if any part with a weight could not be judged: such a sample is
    /// not trained on, and is never counted as a zero.
    pub fn total(&self) -> Option<f32> {
        let weighted = self.parts.iter().filter(|part| part.weight != 0.0);
        let mut total = 0.0;
        let mut any = false;
        for part in weighted {
            total += part.weight * f64::from(part.value?);
            any = true;
        }
        any.then_some(total as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(weight: f64, value: Option<f32>) -> Part {
        let status = if value.is_some() { PartStatus::Judged } else { PartStatus::Unjudged("timed out".into()) };
        Part { name: "exact".into(), version: "1".into(), weight, value, status }
    }

    #[test]
    fn total_is_the_weighted_sum() {
        let verdict = Verdict { parts: vec![part(1.0, Some(1.0)), part(0.5, Some(-1.0))] };
        assert_eq!(verdict.total(), Some(0.5));
    }

    #[test]
    fn an_unjudged_part_leaves_the_sample_unjudged_unless_it_has_no_weight() {
        assert_eq!(Verdict { parts: vec![part(1.0, Some(1.0)), part(0.5, None)] }.total(), None);
        assert_eq!(Verdict { parts: vec![part(1.0, Some(1.0)), part(0.0, None)] }.total(), Some(1.0));
        assert_eq!(Verdict { parts: vec![] }.total(), None);
    }
}
