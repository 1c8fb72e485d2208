//! Right if the completion is made of tagged sections in a given order.
//!
//! `<think>…</think><answer>…</answer>` and nothing around it: the format reward of DeepSeek-R1 (arXiv:2501.12948,
//! section 2.2.2). Each tag must occur exactly once, so that a completion cannot win by opening sections in passing.
//!
//! Some chat templates end the prompt with `<think>`, so that no completion holds it. `opening` names that text, which is
//! judged in front of a completion, unless the completion repeats it.

use crate::reward::each;
use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The sections, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The names of the sections, in order: `think` stands for `<think>…</think>`.
    pub tags: Vec<String>,
    /// The text with which the prompt opens the completion, such as `<think>`; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub opening: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { tags: vec!["think".into(), "answer".into()], opening: String::new() }
    }
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Fails if there are no tags, a tag has a bracket or a slash, or two are alike.
    pub fn build(&self) -> Result<Format> {
        let bad = |tag: &String| tag.is_empty() || tag.contains(['<', '>', '/']);
        if self.tags.is_empty() || self.tags.iter().any(bad) {
            return Err(Error::input("`tags` needs names without angle brackets, as in [\"think\", \"answer\"]"));
        }
        if self.tags.iter().enumerate().any(|(index, tag)| self.tags[..index].contains(tag)) {
            return Err(Error::input("`tags` holds a name twice"));
        }
        Ok(Format { config: self.clone() })
    }

    /// Refuses a prompt that ends with the opening mark of the first section, which completions then leave out, unless
    /// `opening` says so.
    ///
    /// # Errors
    ///
    /// Fails with the key to set. `prompt` is what the model continues, as text.
    pub fn check_prompt(&self, prompt: &str) -> Result<()> {
        let mark = format!("<{}>", self.tags.first().map_or("", |tag| tag));
        if self.opening.is_empty() && prompt.trim_end().ends_with(&mark) {
            return Err(Error::input(format!(
                "the prompt ends with `{mark}`, so no completion holds it and the rule would always give 0; set rule.format.opening = \"{mark}\""
            )));
        }
        Ok(())
    }
}

/// 1 if the completion has the form, else 0.
pub struct Format {
    config: Config,
}

impl Format {
    fn fits(&self, text: &str) -> bool {
        let Config { tags, opening } = &self.config;
        let text = text.trim();
        let opening = if text.starts_with(opening.trim()) { "" } else { opening };
        let text = &format!("{opening}{text}");
        let once = |mark: &str| text.matches(mark).count() == 1;
        if !tags.iter().all(|tag| once(&format!("<{tag}>")) && once(&format!("</{tag}>"))) {
            return false;
        }
        let mut rest = Some(text.trim());
        for tag in tags {
            rest = rest
                .and_then(|rest| rest.strip_prefix(&format!("<{tag}>")))
                .and_then(|rest| rest.split_once(&format!("</{tag}>")))
                .map(|(_, rest)| rest.trim_start());
        }
        rest == Some("")
    }
}

impl Reward for Format {
    fn name(&self) -> &'static str {
        "format"
    }

    fn version(&self) -> String {
        fingerprint(1, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(0.0..=1.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        each(groups, |_, sample| Grade::correct(self.fits(&sample.text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: bool) {
        assert_eq!(Config::default().build().unwrap().fits(text), expected, "{text:?}");
    }

    #[test]
    fn what_the_prompt_opened_is_judged_in_front_of_the_completion() {
        let config = Config { opening: "<think>\n".into(), ..Config::default() };
        let fits = |text: &str| config.build().unwrap().fits(text);
        assert!(fits("Two and two.\n</think>\n<answer>4</answer>"));
        assert!(fits("<think>Three and three.</think><answer>6</answer>"));
        assert!(!fits("Four.<answer>8</answer>"));
        assert!(!fits("a<think>b</think><answer>8</answer>"));
        let open = Config::default();
        let error = open.check_prompt("<|assistant|><think>\n").unwrap_err().to_string();
        assert!(error.contains("rule.format.opening = \"<think>\""), "{error}");
        assert!(open.check_prompt("What is <think> for?").is_ok() && config.check_prompt("<think>").is_ok());
    }

    #[test]
    fn sections_come_once_in_order_with_nothing_around() {
        check("<think>7 and 15</think>\n<answer>22</answer>\n", true);
        check("<think></think><answer></answer>", true);
        check("Well, <think>…</think><answer>22</answer>", false);
        check("<think>…</think><answer>22</answer> there", false);
        check("<think>…</think> so <answer>22</answer>", false);
        check("<answer>22</answer><think>…</think>", false);
        check("<think>…</think><think>…</think><answer>22</answer>", false);
        check("<think><answer>1</answer></think><answer>22</answer>", false);
        check("<think>…</think><answer>22", false);
        check("<think><answer></think></answer>", false);
        check("", false);
    }

    #[test]
    fn tags_must_be_names_that_differ() {
        for tags in [vec![], vec![""], vec!["<think>"], vec!["a", "a"]] {
            let config = Config { tags: tags.iter().map(ToString::to_string).collect(), ..Config::default() };
            assert!(config.build().err().expect("bad tags").is_input(), "{tags:?}");
        }
    }
}
