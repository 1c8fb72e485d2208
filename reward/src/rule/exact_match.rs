//! Right if the completion is the answer, character by character.
//!
//! The strictest rule, for answers of a fixed wording: labels, names, codes. The settings name the differences that are
//! ignored. An answer of which they leave nothing but white space is none, and leaves its samples ungraded.

use crate::reward::against_answer;
use crate::{Result, Reward, fingerprint};
use schema::{Grade, Group};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The differences between completion and answer that are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Ignore white space at both ends.
    pub trim: bool,
    /// Ignore the difference between upper and lower case.
    pub ignore_case: bool,
    /// Ignore ASCII punctuation anywhere in the text.
    pub strip_punctuation: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { trim: true, ignore_case: false, strip_punctuation: false }
    }
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Never fails: every setting is valid.
    pub fn build(&self) -> Result<ExactMatch> {
        Ok(ExactMatch { config: self.clone() })
    }

    /// The part of an answer that must agree, if there is any.
    fn prepared(&self, answer: &str) -> Option<String> {
        Some(self.essence(answer)).filter(|answer| !answer.trim().is_empty())
    }

    /// The part of a text that must agree.
    fn essence(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if self.strip_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.trim { text.trim().to_owned() } else { text }
    }
}

/// 1 if the completion is the prompt's answer, else 0; ungraded without an answer.
pub struct ExactMatch {
    config: Config,
}

impl Reward for ExactMatch {
    fn name(&self) -> &'static str {
        "exact_match"
    }

    fn version(&self) -> String {
        fingerprint(2, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(0.0..=1.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        let config = &self.config;
        against_answer(groups, |answer| config.prepared(answer), |answer, text| config.essence(text) == *answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{group, values};

    fn check(config: &Config, answer: &str, text: &str, expected: f32) {
        let values = values(&mut config.build().unwrap(), &group("", Some(answer), &[text]));
        assert_eq!(values, [Some(expected)], "{text:?} against {answer:?} under {config:?}");
    }

    #[test]
    fn by_default_only_the_ends_may_differ() {
        let config = Config::default();
        check(&config, "Paris", " Paris\n", 1.0);
        check(&config, "Paris", "paris", 0.0);
        check(&config, "Paris", "Paris.", 0.0);
        check(&config, "Paris", "It is Paris", 0.0);
    }

    #[test]
    fn settings_loosen_or_tighten() {
        check(&Config { ignore_case: true, ..Config::default() }, "PARIS", "Paris", 1.0);
        check(&Config { strip_punctuation: true, ..Config::default() }, "Paris", "\"Paris\".", 1.0);
        check(&Config { trim: false, ..Config::default() }, "Paris", "Paris ", 0.0);
    }

    #[test]
    fn an_answer_that_says_nothing_leaves_its_samples_ungraded() {
        let strict = Config { trim: false, ..Config::default() };
        let words = Config { strip_punctuation: true, ..Config::default() };
        for (config, answer) in [(&strict, ""), (&strict, " "), (&Config::default(), "\n"), (&words, "...")] {
            let grades = config.build().unwrap().grade(&[group("", Some(answer), &["", answer])]);
            assert_eq!(
                grades[0],
                vec![Grade::missing("the prompt's answer is empty"); 2],
                "{answer:?} under {config:?}"
            );
        }
        check(&Config::default(), "...", "...", 1.0);
        check(&Config::default(), "Paris", "", 0.0);
    }
}
