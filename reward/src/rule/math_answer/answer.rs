//! Finding the final answer of a completion, and comparing it with the known one.

use super::Extract;
use super::number::{self, Reading};
use super::plain::plain;
use super::value::Value;
use regex::{Match, Regex};
use std::sync::LazyLock;

/// The prompt's answer.
pub(super) struct Answer(Value);

impl Answer {
    /// Reads a data set's answer: as it stands, or where a worked solution says that it is. `None` if it says nothing.
    pub(super) fn new(answer: &str) -> Option<Self> {
        let value = match boxed(answer).or_else(|| hash(answer)) {
            Some(marked) => Value::new(&plain(marked)),
            None => match (Value::new(&plain(answer)), clause(answer).map(plain)) {
                (Some(Value::Text(..)), Some(clause)) => {
                    match (Value::new(&clause), number::last(&clause, Reading::Stated)) {
                        (Some(Value::Text(..)), Some(number)) => Some(Value::Number(number)),
                        (value, _) => value,
                    }
                }
                (value, _) => value,
            },
        };
        value.map(Self)
    }

    /// Returns true if the final answer of a completion is this one.
    pub(super) fn is_final_in(&self, completion: &str, extract: Extract) -> bool {
        match extract {
            Extract::LastNumber => self.is_last_in(completion, Reading::Listed),
            Extract::Boxed => boxed(completion).is_some_and(|text| self.is(text)),
            Extract::Hash => hash(completion).is_some_and(|text| self.is_behind_mark(text)),
            Extract::BoxedThenLast => {
                if let Some(text) = boxed(completion) {
                    self.is(text)
                } else if let Some(text) = hash(completion) {
                    self.is_behind_mark(text)
                } else {
                    // A clause without a number ("the answer is below", "the answer is not 12") says nothing.
                    let clause = clause(completion).filter(|text| match self.0 {
                        Value::Number(_) => number::mentioned(&plain(text)),
                        _ => true,
                    });
                    self.is_last_in(clause.unwrap_or(completion), Reading::Stated)
                }
            }
        }
    }

    /// Returns true if the text as a whole is this answer.
    fn is(&self, text: &str) -> bool {
        Value::new(&plain(text)).is_some_and(|found| found.same(&self.0))
    }

    /// Returns true if the text behind a mark is this answer, or its last number is.
    fn is_behind_mark(&self, text: &str) -> bool {
        self.is(text) || self.is_last_in(text, Reading::Stated)
    }

    /// Returns true if the last number of the text is this answer, or the whole text if the answer is not a number.
    fn is_last_in(&self, text: &str, reading: Reading) -> bool {
        match &self.0 {
            Value::Number(number) => number::last(&plain(text), reading).is_some_and(|found| found.same(number)),
            _ => self.is(text),
        }
    }
}

/// The content of the last closed `\boxed{…}` or `\fbox{…}`; of nested boxes, in the inner one.
fn boxed(text: &str) -> Option<&str> {
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut last: Option<(usize, usize)> = None;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if !escaped => {
                let before = text[..at].trim_end_matches(' ');
                let is_box = before.ends_with("\\boxed") || before.ends_with("\\fbox");
                open.push(is_box.then_some(at + 1));
            }
            b'}' if !escaped => {
                if let Some(Some(start)) = open.pop()
                    && last.is_none_or(|(latest, _)| start > latest)
                {
                    last = Some((start, at));
                }
            }
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    last.map(|(start, end)| &text[start..end])
}

/// The rest of the line behind the last `####`.
fn hash(text: &str) -> Option<&str> {
    let (_, after) = text.rsplit_once("####")?;
    after.lines().next().or(Some(""))
}

/// The rest of the sentence behind the last "answer is", "Answer:" or "answer =". A mark behind a digit is a
/// factorial in `Answer: 5!` and `5! = 120`, and an exclamation in `The answer is 5!`.
fn clause(text: &str) -> Option<&str> {
    static STATES: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?i)\banswer\W{0,3}(?:is\b|:|=)[\s:*]*").expect("a fixed expression compiles"));
    static ENDS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\n|[.!?](?:\s|$)").expect("a fixed expression compiles"));
    let states = STATES.find_iter(text).last()?;
    let said = states.as_str().to_ascii_lowercase().contains("is");
    let after = &text[states.end()..];
    let ends = |end: &Match<'_>| {
        let digit = end.as_str().starts_with('!') && after[..end.start()].ends_with(|c: char| c.is_ascii_digit());
        !digit || said && !after[end.end()..].trim_start().starts_with('=')
    };
    let end = ENDS.find_iter(after).find(ends).map_or(after.len(), |end| end.start());
    Some(&after[..end])
}
