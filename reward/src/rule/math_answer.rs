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
//!
//! In a statement ("the answer is …", behind `####`, or a text without a mark) a number counts for what the statement
//! comes to: `6/3` is 2, a sum left undone and `5x` are no number, and `not 12` takes 12 back. `5!` is 120, except in a
//! sentence: in `It is 5!` the mark is an exclamation.
//!
//! # Out of reach
//!
//! No algebra is done. These answers are right but graded 0, unless they are spelled as the prompt's answer is:
//!
//! - sums with roots or letters in another order or form: `1+\sqrt{2}` and `\sqrt{2}+1`, `2(x+1)` and `2x+2`;
//! - factors in another order, and decimals for fractions beside letters: `ba` and `ab`, `0.5x` and `x/2`;
//! - higher roots, logarithms and trigonometric functions that come out: `\sqrt[3]{8}`, `\sin 0`;
//! - intervals as inequalities or with reversed brackets: `x > 2` and `(2,\infty)`, `]0,1[` and `(0,1)`; the parts of
//!   unions in another order or form;
//! - matrices by element, solutions as equations (`x=1, y=2` and `(1,2)`), `\pm 2` and `\{-2, 2\}`;
//! - sets that hold one value twice, `\{5\}` for 5, and lists without brackets in another order: `3, 4` and `4, 3`;
//! - a comma as the decimal point: `3,14`; and rounded values: `0.33` for `1/3`, `3.14` for `\pi`;
//! - numbers in words, times, dates and units: `two`, `1/2/2024`, and `1 km` for `1000 m`. Units are not compared.
//!
//! Without brackets `1,200` is always 1200, never the list of 1 and 200. In a completion without a mark the last number
//! is the answer, even where the text gives it another role.

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
