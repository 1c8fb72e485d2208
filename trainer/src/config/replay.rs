//! Config of replay: `[replay]`.

use crate::algorithm::{self, Algorithm};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use store::Scoring;
use store::replay::{FillRule, ReplaySampler};

/// `[replay]`: training on stored samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// Name or number of a run in the same store, of the same base model. Its groups are used by an algorithm with
    /// replay if the run's own past is too short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Learn from the samples of `run` alone, without sampling.
    pub offline: bool,
    /// Accept samples of `run` that were drawn with `top_k`, `top_p` or `min_p`. Their weights are too large, since the
    /// stored log-probabilities are those before the truncation.
    pub truncated: bool,
    /// Scoring whose grades the old samples are learned by: `"training"`, `"latest"`, or the number of a later one
    /// (`proxrl replay scorings`). Fresh samples keep the grades of their own step.
    #[serde(with = "number_or_word")]
    pub scoring: Scoring,
    /// Greatest age of an old sample in steps, counted in another run from its end; 0 for no limit.
    pub max_staleness: u64,
    /// Rule that draws whole groups.
    pub sampler: ReplaySampler,
    /// Old samples of the same prompt and another reward, which join a group whose rewards are all alike; none without
    /// the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fill: Option<FillRule>,
}

impl Replay {
    /// Returns an error if a rule is wrong in itself, or if the algorithm called `name` could not use old samples.
    pub(super) fn check(&self, algorithm: &dyn Algorithm, name: &str) -> Result<()> {
        self.sampler.check().map_err(|error| Error::input(error.to_string()))?;
        let samples = algorithm.needs().samples;
        let Some(group_size) = samples.group_size() else {
            return Err(Error::input(format!(
                "[replay] brings back samples that a policy drew, but algorithm.{name} learns from a data set; drop [replay]"
            )));
        };
        if self.offline && self.run.is_none() {
            return Err(Error::input(
                "replay.offline learns from another run's samples alone; name that run in replay.run",
            ));
        }
        if let Some(fill) = &self.fill {
            fill.check().map_err(|error| Error::input(error.to_string()))?;
            let reason = if self.offline {
                "joins old samples to fresh groups, but replay.offline samples none".into()
            } else if samples.compares().is_some() {
                format!("needs rewards alone, but algorithm.{name} compares samples")
            } else if group_size < 2 {
                format!("serves methods that compare the samples of a group, but algorithm.{name} does not")
            } else {
                return Ok(());
            };
            return Err(Error::input(format!("[replay.fill] {reason}; drop it")));
        }
        if !self.offline && algorithm.schedule(1).replay.is_none() {
            let others = algorithm::names_of(|other| other.schedule(1).replay.is_some()).join(" or algorithm.");
            return Err(Error::input(format!(
                "algorithm.{name} replays nothing, so [replay] would do nothing; set replay.offline = true to learn from replay.run alone, add [replay.fill], or use algorithm.{others}"
            )));
        }
        Ok(())
    }
}

/// A scoring as a number, or as the word `training` or `latest`.
mod number_or_word {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};
    use store::Scoring;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(i64),
        Word(String),
    }

    pub(super) fn serialize<S: Serializer>(scoring: &Scoring, serializer: S) -> Result<S::Ok, S::Error> {
        match scoring {
            Scoring::Number(number) => serializer.serialize_i64(*number),
            word => serializer.serialize_str(&word.to_string()),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scoring, D::Error> {
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Word(word) => word,
        };
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::replay::Stratified;

    #[test]
    fn a_scoring_is_a_number_or_a_word_and_every_key_comes_back() {
        let parse = |text: &str| toml::from_str::<Replay>(text);
        assert_eq!(parse("run = 'a'").unwrap(), Replay { run: Some("a".into()), ..Replay::default() });
        for (text, scoring) in [
            ("scoring = 3", Scoring::Number(3)),
            ("scoring = '3'", Scoring::Number(3)),
            ("scoring = 0", Scoring::Training),
            ("scoring = 'latest'", Scoring::Latest),
        ] {
            assert_eq!(parse(text).unwrap().scoring, scoring, "{text}");
        }
        let error = parse("scoring = 'newest'").unwrap_err().to_string();
        assert!(error.contains("`newest` is no scoring"), "{error}");
        let all = Replay {
            run: Some("a".into()),
            offline: true,
            truncated: true,
            scoring: Scoring::Number(2),
            max_staleness: 9,
            sampler: ReplaySampler::Stratified(Stratified { min_difference: 0.5 }),
            fill: Some(FillRule::default()),
        };
        assert_eq!(parse(&toml::to_string_pretty(&all).unwrap()).unwrap(), all);
    }
}
