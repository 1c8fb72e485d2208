//! A value by whether a regular expression matches.
//!
//! The engine is Rust's `regex`: no look-around and no back-references, and in return time linear in the text, so that
//! no completion can stall a run. `(?s)` lets `.` match line ends, `(?i)` ignores case.

use crate::reward::each;
use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The expression, and the values of a match and of none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The regular expression. It has no default: a reward must look for something.
    pub pattern: String,
    /// The part of the completion that must match.
    pub extent: Extent,
    /// The value of a completion that matches.
    pub matched: f32,
    /// The value of one that does not.
    pub unmatched: f32,
}

/// The part of a completion that must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// A match anywhere will do.
    Search,
    /// The whole completion must match.
    Whole,
}

impl Default for Config {
    fn default() -> Self {
        Self { pattern: String::new(), extent: Extent::Search, matched: 1.0, unmatched: 0.0 }
    }
}

impl Config {
    /// Compiles the expression.
    ///
    /// # Errors
    ///
    /// Fails if the expression is empty or does not compile, or a value is not finite.
    pub fn build(&self) -> Result<Regex> {
        if self.pattern.is_empty() {
            return Err(Error::input("`pattern` is missing; give a regular expression"));
        }
        if !(self.matched.is_finite() && self.unmatched.is_finite()) {
            return Err(Error::input("`matched` and `unmatched` must be finite numbers"));
        }
        let pattern = match self.extent {
            Extent::Search => self.pattern.clone(),
            Extent::Whole => format!("\\A(?:{})\\z", self.pattern),
        };
        let regex = ::regex::Regex::new(&pattern).map_err(|error| {
            let text = error.to_string();
            let cause = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Error::input(format!("`pattern` {:?} is not a regular expression: {cause}", self.pattern))
        })?;
        Ok(Regex { config: self.clone(), regex })
    }
}

/// One value if the expression matches, another if not.
pub struct Regex {
    config: Config,
    regex: ::regex::Regex,
}

impl Reward for Regex {
    fn name(&self) -> &'static str {
        "regex"
    }

    fn version(&self) -> String {
        fingerprint(1, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        let Config { matched, unmatched, .. } = self.config;
        Some(matched.min(unmatched)..=matched.max(unmatched))
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        let Config { matched, unmatched, .. } = self.config;
        each(groups, |_, sample| Grade::of(if self.regex.is_match(&sample.text) { matched } else { unmatched }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{group, values};

    fn check(config: &Config, text: &str, expected: f32) {
        let values = values(&mut config.build().unwrap(), &group("", None, &[text]));
        assert_eq!(values, [Some(expected)], "{text:?} under {config:?}");
    }

    #[test]
    fn a_search_looks_anywhere_and_a_whole_match_everywhere() {
        let search = Config { pattern: "[0-9]+|none".into(), ..Config::default() };
        check(&search, "it is 42.", 1.0);
        check(&search, "who knows", 0.0);
        let whole = Config { extent: Extent::Whole, matched: 0.5, unmatched: -1.0, ..search };
        check(&whole, "42", 0.5);
        check(&whole, "none", 0.5);
        check(&whole, "it is 42", -1.0);
        check(&whole, "42\n", -1.0);
    }

    #[test]
    fn a_bad_expression_is_the_configs_fault() {
        for (pattern, problem) in [("", "missing"), ("(", "unclosed group"), ("(?=a)", "look-around")] {
            let error = Config { pattern: pattern.into(), ..Config::default() }.build().err().expect("a bad pattern");
            assert!(error.is_input() && error.to_string().contains(problem), "{error}");
        }
    }
}
