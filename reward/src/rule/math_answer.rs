//! Right if the final answer has the value of the prompt's answer.
//!
//! Two questions: *what is the final answer?* ([`Extract`]) and *is it the same?* Numbers are compared by value, as
//! exact fractions, so that `0.5`, `1/2`, `\frac{1}{2}` and `50%` agree while `0.33` and `1/3` do not. In brackets a comma
//! separates: pairs, intervals and tuples agree element by element if their brackets do, sets in any order. Other
//! answers are compared as normalised text. The grammar in `number.rs` tells numbers from strings that only look like
//! one.
//!
//! Only one number may stand for the answer. A reward that asks whether the right number occurs anywhere is hacked at
//! once: the model lists numbers. A completion from which no answer can be extracted is wrong, not ungraded; a prompt
//! without an answer leaves its samples ungraded, and so does one of whose answer nothing is left: `""`, `\boxed{}`,
//! `$$`.

mod answer;
mod brackets;
mod cursor;
mod expression;
mod number;
mod plain;
mod quantity;
mod surd;
mod value;

use crate::reward::against_answer;
use crate::{Result, Reward, fingerprint};
use answer::Answer;
use schema::{Grade, Group};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Settings of the rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The position of the final answer.
    pub extract: Extract,
}

/// The position of the final answer in a completion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// In the last `\boxed{…}`; without one, after the last `####`; else in the last sentence that says "the answer
    /// is …" or "Answer: …"; else it is the last number.
    #[default]
    BoxedThenLast,
    /// The last number of the text, whatever the text says.
    LastNumber,
    /// In the last `\boxed{…}`, nowhere else.
    Boxed,
    /// After the last `####` (the form of GSM8K), nowhere else.
    Hash,
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Never fails: every setting is valid.
    pub fn build(&self) -> Result<MathAnswer> {
        Ok(MathAnswer { config: self.clone() })
    }
}

/// 1 if the final answer is right, else 0; ungraded without an answer to compare with.
pub struct MathAnswer {
    config: Config,
}

impl Reward for MathAnswer {
    fn name(&self) -> &'static str {
        "math_answer"
    }

    fn version(&self) -> String {
        fingerprint(2, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(0.0..=1.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        let extract = self.config.extract;
        against_answer(groups, Answer::new, |answer, text| answer.is_final_in(text, extract))
    }
}

#[cfg(test)]
mod tests;
