//! Sums, differences and products of two small numbers: endless prompts with answers that can be checked.
//!
//! The questions are all ordered pairs `x, y` in 1..=max for each operation; differences only with x ≥ y, so that no
//! answer is negative. Training samples them uniformly, without end. The held-out questions are the same for every seed.
//! Neither they nor their twins are trained on: 7+15 gives away 15+7, and 22-7 gives away 22-15.

use super::examples::{CHOSEN, COMPLETION, LABEL, REJECTED};
use super::{Form, PromptSource, RowKind, Sources};
use crate::{Error, Result};
use schema::{Prompt, Seed};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;
use std::path::Path;

/// `[prompts.arithmetic]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The operations: `+`, `-`, `*`.
    pub operations: Vec<Operation>,
    /// The largest operand; at most 1000.
    pub max: u32,
    /// Questions kept from training.
    pub held_out: usize,
    /// The question; `{x}`, `{op}` and `{y}` stand for operands and operation.
    pub template: String,
    /// For supervised learning, the completion, with `{answer}` and the marks of `template`.
    pub completion: String,
    /// For learning from pairs, the better completion, with the same marks and `{wrong}`.
    pub chosen: String,
    /// The worse one; `{wrong}` is a number near the answer.
    pub rejected: String,
    /// The form of the question: a user turn, or raw text.
    #[serde(rename = "as")]
    pub form: Form,
    /// A system turn to put before each question; none if empty.
    pub system: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            operations: vec![Operation::Add, Operation::Subtract],
            max: 20,
            held_out: 150,
            template: "What is {x}{op}{y}? Answer with a number.".into(),
            completion: "{answer}".into(),
            chosen: "{answer}".into(),
            rejected: "{wrong}".into(),
            form: Form::Chat,
            system: String::new(),
        }
    }
}

/// An operation on two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// x + y
    #[serde(rename = "+")]
    Add,
    /// x - y, never negative
    #[serde(rename = "-")]
    Subtract,
    /// x * y
    #[serde(rename = "*")]
    Multiply,
}

/// The files of the settings: none.
pub(super) fn files(_: &Config) -> Vec<&Path> {
    Vec::new()
}

/// Samples training questions uniformly with replacement; prompt `i` depends only on the seed and `i`.
///
/// # Errors
///
/// An input error if a setting is out of range, or `max` gives too few questions to hold out `held_out` of them.
pub(super) fn open(config: &Config, kind: RowKind, seed: &Seed) -> Result<Sources> {
    config.check()?;
    let (train, held_out) = split(&config.questions(), config.held_out);
    if held_out.len() < config.held_out || train.is_empty() {
        let problem = format!(
            "prompts.arithmetic: up to {} there are too few questions to keep {} from training; raise `max` or \
             lower `held_out`",
            config.max, config.held_out
        );
        return Err(Error::input(problem));
    }
    let wrong = Seed::new(0).child("wrong");
    let row = |(question, index): (&Question, u64)| question.row(config, kind, &wrong.at(index));
    let held_out = held_out.iter().zip(0..).map(row).collect();
    let (config, seed) = (config.clone(), seed.child("arithmetic"));
    let prompt = move |index| {
        let question = train[seed.below(index, train.len() as u64) as usize];
        question.row(&config, kind, &seed.child("wrong").at(index))
    };
    Ok(Sources::new(PromptSource::Endless(Box::new(prompt)), held_out))
}

impl Config {
    fn check(&self) -> Result<()> {
        let missing = ["{x}", "{op}", "{y}"].into_iter().find(|mark| !self.template.contains(mark));
        if let Some(mark) = missing {
            return Err(Error::input(format!("prompts.arithmetic: `template` lacks {mark}")));
        }
        if !(1..=1_000).contains(&self.max) {
            return Err(Error::input(format!("prompts.arithmetic: `max` ({}) must be in 1..=1000", self.max)));
        }
        let distinct: HashSet<&Operation> = self.operations.iter().collect();
        if self.operations.is_empty() || distinct.len() < self.operations.len() {
            return Err(Error::input("prompts.arithmetic: `operations` must name one or more, each once"));
        }
        self.form.check(&self.system)
    }

    fn questions(&self) -> Vec<Question> {
        let operands = 1..=self.max;
        let pairs = operands.clone().flat_map(|x| operands.clone().map(move |y| (x, y)));
        self.operations
            .iter()
            .flat_map(|operation| pairs.clone().map(|(x, y)| Question { operation: *operation, x, y }))
            .filter(|question| question.operation != Operation::Subtract || question.x >= question.y)
            .collect()
    }
}

/// Splits questions into those to train on and `count` held out, with the twins of the latter.
fn split(questions: &[Question], count: usize) -> (Vec<Question>, Vec<Question>) {
    let mut taken = HashSet::new();
    let mut held_out = Vec::with_capacity(count);
    for index in Seed::new(0).child("held out").permutation(questions.len()) {
        let question = questions[index];
        for question in [question, question.twin()] {
            if held_out.len() < count && taken.insert(question) {
                held_out.push(question);
            }
        }
        if held_out.len() == count {
            break;
        }
    }
    // The twin of the last one may be beyond `count`; it is not trained on either.
    let train = questions.iter().filter(|question| !taken.contains(question) && !taken.contains(&question.twin()));
    (train.copied().collect(), held_out)
}

/// One sum, difference or product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Question {
    operation: Operation,
    x: u32,
    y: u32,
}

impl Question {
    /// The other question with the same numbers; the question itself if there is none.
    fn twin(self) -> Self {
        let Self { operation, x, y } = self;
        match operation {
            Operation::Add | Operation::Multiply => Self { operation, x: y, y: x },
            // x - 0 is never asked.
            Operation::Subtract if x == y => self,
            Operation::Subtract => Self { operation, x, y: x - y },
        }
    }

    fn answer(self) -> u32 {
        match self.operation {
            Operation::Add => self.x + self.y,
            Operation::Subtract => self.x - self.y,
            Operation::Multiply => self.x * self.y,
        }
    }

    /// A number that is not the answer, at most ten away from it and not negative.
    fn wrong(self, seed: &Seed) -> u32 {
        let (answer, distance) = (self.answer(), 1 + seed.below(0, 10) as u32);
        if distance <= answer && seed.below(1, 2) == 0 { answer - distance } else { answer + distance }
    }

    fn op(self) -> &'static str {
        match self.operation {
            Operation::Add => "+",
            Operation::Subtract => "-",
            Operation::Multiply => "*",
        }
    }

    fn fill(self, template: &str) -> String {
        let (x, y, answer) = (self.x.to_string(), self.y.to_string(), self.answer().to_string());
        template.replace("{x}", &x).replace("{op}", self.op()).replace("{y}", &y).replace("{answer}", &answer)
    }

    /// The question with the completions of this kind of row; `seed` determines the wrong number, and the label.
    fn row(self, config: &Config, kind: RowKind, seed: &Seed) -> Prompt {
        let mut prompt = self.prompt(config);
        let good = seed.below(2, 2) == 0;
        let completions: &[(&str, &str)] = match kind {
            RowKind::Prompts => &[],
            RowKind::Demonstrations => &[(COMPLETION, &config.completion)],
            RowKind::Labelled if good => &[(COMPLETION, &config.chosen)],
            RowKind::Labelled => &[(COMPLETION, &config.rejected)],
            RowKind::Pairs => &[(CHOSEN, &config.chosen), (REJECTED, &config.rejected)],
        };
        let wrong = self.wrong(seed).to_string();
        let filled = completions
            .iter()
            .map(|(name, template)| ((*name).to_owned(), json!(self.fill(template).replace("{wrong}", &wrong))));
        prompt.metadata.extend(filled);
        if kind == RowKind::Labelled {
            prompt.metadata.insert(LABEL.into(), good.into());
        }
        prompt
    }

    fn prompt(self, config: &Config) -> Prompt {
        let (text, op) = (self.fill(&config.template), self.op());
        let mut prompt = Prompt::text("").with_answer(self.answer().to_string());
        prompt.input = config.form.input(&config.system, text);
        prompt.metadata.extend([("x".into(), json!(self.x)), ("y".into(), json!(self.y)), ("op".into(), json!(op))]);
        prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn config(operations: &[Operation], max: u32, held_out: usize) -> Config {
        Config { operations: operations.to_vec(), max, held_out, ..Config::default() }
    }

    #[test]
    fn all_pairs_and_no_negative_differences() {
        // 20 · 20 sums, and 1 + 2 + … + 20 differences.
        assert_eq!(config(&[Operation::Add], 20, 0).questions().len(), 400);
        let differences = config(&[Operation::Subtract], 20, 0).questions();
        assert_eq!(differences.len(), 210);
        assert!(differences.iter().all(|question| question.x >= question.y));
    }

    #[test]
    fn neither_a_held_out_question_nor_its_twin_is_trained_on() {
        use Operation::{Add, Multiply, Subtract};
        for (max, count) in [(3, 4), (6, 8), (9, 31), (20, 150), (20, 151), (99, 150)] {
            for operations in [&[Add][..], &[Subtract], &[Multiply], &[Add, Subtract], &[Add, Subtract, Multiply]] {
                let all = config(operations, max, count).questions();
                let (train, held_out) = split(&all, count);
                if all.len() < count {
                    continue;
                }
                assert_eq!(held_out.len(), count, "{operations:?} up to {max}");
                let numbers = |question: &Question| {
                    let Question { operation, x, y } = *question;
                    let third = question.answer();
                    let numbers = if operation == Subtract { [x, y, third] } else { [third, x, y] };
                    (format!("{operation:?}"), numbers.into_iter().collect::<BTreeSet<_>>())
                };
                let seen: HashSet<_> = train.iter().map(numbers).collect();
                assert!(held_out.iter().all(|question| !seen.contains(&numbers(question))), "{operations:?} to {max}");
                // Nothing is thrown away but, at most, one twin.
                assert!(train.len() + held_out.len() + 1 >= all.len());
                assert_eq!(held_out.iter().collect::<HashSet<_>>().len(), count);
            }
        }
    }

    #[test]
    fn a_prompt_says_it_all() {
        let question = Question { operation: Operation::Subtract, x: 22, y: 7 };
        let prompt = question.prompt(&Config::default());
        assert_eq!(prompt, {
            let mut expected = Prompt::user("What is 22-7? Answer with a number.").with_answer("15");
            expected.metadata = json!({"x": 22, "y": 7, "op": "-"}).as_object().unwrap().clone();
            expected
        });
        let text = Config { template: "{x} {op} {y} =".into(), form: Form::Text, ..Config::default() };
        assert_eq!(question.prompt(&text).input, schema::PromptInput::Text("22 - 7 =".into()));
    }

    #[test]
    fn samples_follow_the_seed_and_cover_every_question() {
        let open = |seed| super::open(&config(&[Operation::Add], 3, 2), RowKind::Prompts, &Seed::new(seed)).unwrap();
        let (sources, again, other) = (open(1), open(1), open(2));
        assert_eq!(sources.train.len(), None);
        let sample = |sources: &Sources| -> Vec<String> {
            (0..200).map(|index| sources.train.prompt(index).unwrap().question().to_owned()).collect()
        };
        assert_eq!(sample(&sources), sample(&again));
        assert_ne!(sample(&sources), sample(&other));
        let held = |sources: &Sources| {
            let source = sources.held_out.as_ref().unwrap();
            (0..source.len().unwrap()).map(|index| source.prompt(index).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(held(&sources), held(&other), "the held-out questions do not follow the run's seed");
        let (train, _) = split(&config(&[Operation::Add], 3, 2).questions(), 2);
        assert_eq!(sample(&sources).into_iter().collect::<HashSet<_>>().len(), train.len());
    }

    #[test]
    fn rows_have_the_completions_of_their_kind_and_a_wrong_number_is_wrong() {
        let config = Config { rejected: "It is {wrong}.".into(), ..config(&[Operation::Subtract], 9, 5) };
        let rows = |kind| {
            let Sources { train, held_out } = open(&config, kind, &Seed::new(0)).unwrap();
            let endless = (0..300).map(move |index| train.prompt(index).unwrap());
            let held_out = held_out.unwrap();
            endless.chain((0..5).map(|index| held_out.prompt(index).unwrap())).collect::<Vec<_>>()
        };
        for row in rows(RowKind::Demonstrations) {
            assert_eq!(row.metadata["completion"], json!(row.answer.unwrap()));
            assert!(!row.metadata.contains_key("chosen"));
        }
        let mut above = 0;
        for row in rows(RowKind::Pairs) {
            let answer: i64 = row.answer.unwrap().parse().unwrap();
            assert_eq!(row.metadata["chosen"], json!(answer.to_string()));
            let wrong = row.metadata["rejected"].as_str().unwrap();
            let wrong: i64 = wrong.trim_start_matches("It is ").trim_end_matches('.').parse().unwrap();
            assert!(wrong >= 0 && wrong != answer && (wrong - answer).abs() <= 10, "{wrong} for {answer}");
            above += usize::from(wrong > answer);
        }
        assert!(above < 305, "some wrong numbers are too small");
        let labelled = rows(RowKind::Labelled);
        for row in &labelled {
            let right = row.metadata["completion"] == json!(row.answer.as_ref().unwrap());
            assert_eq!(row.metadata["label"], json!(right), "{row:?}");
        }
        let good = labelled.iter().filter(|row| row.metadata["label"] == json!(true)).count();
        assert!((100..205).contains(&good), "{good} of 305 are good");
        assert!(rows(RowKind::Prompts).iter().all(|row| row.metadata.len() == 3));
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let problem = |config: Config| {
            let error = open(&config, RowKind::Prompts, &Seed::new(0)).err().expect("a bad config");
            assert!(error.is_input());
            error.to_string()
        };
        assert!(problem(config(&[Operation::Add], 3, 9)).contains("too few questions"));
        assert!(problem(config(&[Operation::Add], 3, 10)).contains("too few questions"));
        assert!(problem(config(&[Operation::Add], 0, 0)).contains("1..=1000"));
        assert!(problem(config(&[], 3, 0)).contains("`operations`"));
        assert!(problem(config(&[Operation::Add, Operation::Add], 3, 0)).contains("each once"));
        assert!(problem(Config { template: "{x}+{y}".into(), ..Config::default() }).contains("lacks {op}"));
        assert!(problem(Config { form: Form::Text, system: "Be brief.".into(), ..Config::default() }).contains("chat"));
    }
}
