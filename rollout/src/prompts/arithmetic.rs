//! Sums, differences and products of two small numbers: a task with endless, free and checkable prompts.
//!
//! The questions are all ordered pairs `x, y` in 1..=max for each operation; differences only with x ≥ y, so that no
//! answer is negative. Training draws from them uniformly, for ever. The held-out questions are a fixed set, whatever
//! the run's seed, and neither they nor their twins are ever trained on: whoever has seen 7+15 has seen 15+7, and
//! 22-7 says what 22-15 is.

use super::examples::{CHOSEN, COMPLETION, REJECTED};
use super::{Form, Listed, PromptSource, RowKind, Sources};
use crate::{Error, Result};
use schema::{Prompt, Seed};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashSet;

/// `[prompts.arithmetic]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which operations: `+`, `-`, `*`.
    pub operations: Vec<Operation>,
    /// The largest operand; at most 1000.
    pub max: u32,
    /// How many questions to keep from training.
    pub held_out: usize,
    /// The question, with `{x}`, `{op}` and `{y}` where operands and operation go.
    pub template: String,
    /// For supervised learning, the completion, with `{answer}` and the marks of `template`.
    pub completion: String,
    /// For learning from pairs, the better completion, with the same marks and `{wrong}`.
    pub chosen: String,
    /// The worse one; `{wrong}` is a number near the answer.
    pub rejected: String,
    /// Whether the question is a user turn or raw text.
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

/// What is done to the operands.
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

impl Config {
    pub(super) fn open(&self, kind: RowKind, seed: &Seed) -> Result<Sources> {
        self.check()?;
        let (train, held_out) = split(&self.questions(), self.held_out);
        if held_out.len() < self.held_out || train.is_empty() {
            let problem = format!(
                "prompts.arithmetic: up to {} there are too few questions to keep {} from training; raise `max` or \
                 lower `held_out`",
                self.max, self.held_out
            );
            return Err(Error::input(problem));
        }
        let wrong = Seed::new(0).child("wrong");
        let row = |(question, place): (&Question, u64)| question.row(self, kind, &wrong.at(place));
        let held_out: Vec<Prompt> = held_out.iter().zip(0..).map(row).collect();
        let draws = Draws { config: self.clone(), kind, questions: train, seed: seed.child("arithmetic") };
        Ok(Sources {
            train: Box::new(draws),
            held_out: (!held_out.is_empty()).then(|| Box::new(Listed(held_out)) as Box<dyn PromptSource>),
        })
    }

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

/// Takes `count` questions out, and their twins with them: what may be trained on, what is held out.
fn split(questions: &[Question], count: usize) -> (Vec<Question>, Vec<Question>) {
    let mut taken = HashSet::new();
    let mut held_out = Vec::with_capacity(count);
    for place in Seed::new(0).child("held out").permutation(questions.len()) {
        let question = questions[place];
        for question in [question, question.twin()] {
            if held_out.len() < count && taken.insert(question) {
                held_out.push(question);
            }
        }
        if held_out.len() == count {
            break;
        }
    }
    // The last one's twin may not have found a place any more; it is not trained on either.
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
    /// The question that has the same numbers in it; itself if there is no other.
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

    /// The question with the completions that this kind of row has; `seed` draws what is wrong.
    fn row(self, config: &Config, kind: RowKind, seed: &Seed) -> Prompt {
        let mut prompt = self.prompt(config);
        let completions: &[(&str, &str)] = match kind {
            RowKind::Prompts => &[],
            RowKind::Demonstrations => &[(COMPLETION, &config.completion)],
            RowKind::Pairs => &[(CHOSEN, &config.chosen), (REJECTED, &config.rejected)],
        };
        let wrong = self.wrong(seed).to_string();
        let filled = completions
            .iter()
            .map(|(name, template)| ((*name).to_owned(), json!(self.fill(template).replace("{wrong}", &wrong))));
        prompt.metadata.extend(filled);
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

/// Questions drawn uniformly, with replacement, for ever.
struct Draws {
    config: Config,
    kind: RowKind,
    questions: Vec<Question>,
    seed: Seed,
}

impl PromptSource for Draws {
    fn len(&self) -> Option<u64> {
        None
    }

    fn prompt(&self, index: u64) -> Result<Prompt> {
        let place = self.seed.below(index, self.questions.len() as u64);
        let wrong = self.seed.child("wrong").at(index);
        Ok(self.questions[place as usize].row(&self.config, self.kind, &wrong))
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
    fn draws_follow_the_seed_and_reach_everything() {
        let open = |seed| config(&[Operation::Add], 3, 2).open(RowKind::Prompts, &Seed::new(seed)).unwrap();
        let (sources, again, other) = (open(1), open(1), open(2));
        assert_eq!(sources.train.len(), None);
        let draw = |sources: &Sources| -> Vec<String> {
            (0..200).map(|index| sources.train.prompt(index).unwrap().question().to_owned()).collect()
        };
        assert_eq!(draw(&sources), draw(&again));
        assert_ne!(draw(&sources), draw(&other));
        let held = |sources: &Sources| {
            let source = sources.held_out.as_ref().unwrap();
            (0..source.len().unwrap()).map(|index| source.prompt(index).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(held(&sources), held(&other), "the held-out questions do not follow the run's seed");
        let (train, _) = split(&config(&[Operation::Add], 3, 2).questions(), 2);
        assert_eq!(draw(&sources).into_iter().collect::<HashSet<_>>().len(), train.len());
    }

    #[test]
    fn rows_have_the_completions_of_their_kind_and_a_wrong_number_is_wrong() {
        let config = Config { rejected: "It is {wrong}.".into(), ..config(&[Operation::Subtract], 9, 5) };
        let rows = |kind| {
            let Sources { train, held_out } = config.open(kind, &Seed::new(0)).unwrap();
            let drawn = (0..300).map(move |index| train.prompt(index).unwrap());
            let held_out = held_out.unwrap();
            drawn.chain((0..5).map(|index| held_out.prompt(index).unwrap())).collect::<Vec<_>>()
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
        assert!(rows(RowKind::Prompts).iter().all(|row| row.metadata.len() == 3));
    }

    #[test]
    fn settings_without_sense_are_refused() {
        let problem = |config: Config| {
            let error = config.open(RowKind::Prompts, &Seed::new(0)).err().expect("a bad config");
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
