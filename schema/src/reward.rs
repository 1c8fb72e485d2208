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

/// How the names of parts begin that say how a sample fared against another one; rewards must not be called so.
pub const COMPARISON: &str = "beats_";

/// Whom a sample was compared with: the place of another sample in its own group, or in its opponent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    /// Of the same group.
    Own(usize),
    /// Of the group that another policy drew for the same prompt.
    Opponent(usize),
}

impl Rival {
    /// The name of the part that holds the probability that a sample beats this one: `beats_3`, `beats_opponent_3`.
    pub fn part_name(self) -> String {
        match self {
            Self::Own(place) => format!("{COMPARISON}{place}"),
            Self::Opponent(place) => format!("{COMPARISON}opponent_{place}"),
        }
    }
}

impl Part {
    /// Whether this says how the sample fared against another one, and not what it is worth.
    pub fn is_comparison(&self) -> bool {
        self.name.starts_with(COMPARISON)
    }
}

/// The reward of one sample: its parts, of which the total is a view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// One entry per reward function, in the config's order.
    pub parts: Vec<Part>,
}

impl Verdict {
    /// Whether a judge has compared the sample with others, with or without success.
    pub fn is_compared(&self) -> bool {
        self.parts.iter().any(Part::is_comparison)
    }

    /// The probability that the sample beats this one; `None` if a judge could not say, or was not asked.
    pub fn beats(&self, rival: Rival) -> Option<f64> {
        let name = rival.part_name();
        self.parts.iter().find(|part| part.name == name)?.value.map(f64::from)
    }

    /// The mean probability of beating those that the sample was compared with; `None` if no comparison succeeded.
    pub fn win_rate(&self) -> Option<f64> {
        let compared = self.parts.iter().filter(|part| part.is_comparison());
        let known: Vec<f64> = compared.filter_map(|part| part.value.map(f64::from)).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

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

    #[test]
    fn comparisons_are_found_by_whom_they_are_with() {
        let named = |rival: Rival, value| Part { name: rival.part_name(), ..part(0.0, value) };
        let parts = vec![part(1.0, Some(1.0)), named(Rival::Own(1), Some(0.75)), named(Rival::Opponent(1), None)];
        let verdict = Verdict { parts };
        assert!(verdict.is_compared() && verdict.total() == Some(1.0));
        assert_eq!(verdict.parts[2].name, "beats_opponent_1");
        assert_eq!(verdict.beats(Rival::Own(1)), Some(0.75));
        assert_eq!(verdict.win_rate(), Some(0.75));
        assert_eq!((verdict.beats(Rival::Opponent(1)), verdict.beats(Rival::Own(2))), (None, None));
        assert!(!Verdict { parts: vec![part(1.0, Some(1.0))] }.is_compared());
    }
}
