//! Examples of a data set: completions written beforehand, one per prompt or two of which one is better.
//!
//! Their tokens are those that the model would have to sample, end-of-sequence token included. No policy sampled them, so
//! they have no behaviour log-probs, and they do not go into the store, which holds samples of policies.

use super::{Source, StepContext, StepRequest};
use crate::algorithm::Samples;
use crate::collected::{Collected, Completion, Completions, Example};
use crate::report::metrics;
use crate::{Error, Result};
use model::Policy;
use rollout::prompts::examples::{CHOSEN, COMPLETION, LABEL, MARGIN, REJECTED};
use rollout::prompts::{Epochs, RowKind};
use schema::Prompt;
use serde_json::Value;

/// Deals out examples.
pub(crate) struct Examples {
    prompts: Epochs,
    reader: Reader,
    /// For its tokenizer.
    policy: Policy,
}

impl Examples {
    pub(crate) fn new(prompts: Epochs, reader: Reader, policy: &Policy) -> Self {
        Self { prompts, reader, policy: policy.share() }
    }
}

impl Source for Examples {
    fn request(&mut self, context: &StepContext<'_>) -> Result<StepRequest> {
        let step = context.step;
        let Read { examples, cut, dropped } = self.reader.read(self.prompts.step(step)?, &self.policy)?;
        let completions = examples.iter().flat_map(Example::completions);
        let mut metrics = metrics::lengths(completions.map(|completion| (completion.ids.len(), completion.cut)));
        metrics.set("examples/cut", cut as f64);
        metrics.set("examples/dropped", dropped as f64);
        if let Some(passes) = self.prompts.passes(step) {
            metrics.set("epoch", passes);
        }
        Ok(StepRequest::existing(context, Collected::Examples(examples), metrics))
    }
}

/// Makes examples of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader {
    kind: Kind,
    /// Tokens of a prompt and one completion.
    max_length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Demonstrations,
    Labelled,
    Pairs,
}

/// The result of reading some rows.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// One example per row that is not dropped.
    pub(crate) examples: Vec<Example>,
    /// Demonstrations that were cut.
    pub(crate) cut: usize,
    /// Pairs with a completion that is too long, and demonstrations whose prompt leaves room for nothing.
    pub(crate) dropped: usize,
}

impl Reader {
    /// A reader of what a method trains on; `None` if the policy samples it.
    pub(crate) fn new(samples: Samples) -> Option<Self> {
        match samples {
            Samples::Sampled { .. } => None,
            Samples::Demonstrations { max_length } => Some(Self { kind: Kind::Demonstrations, max_length }),
            Samples::Labelled { max_length } => Some(Self { kind: Kind::Labelled, max_length }),
            Samples::Pairs { max_length } => Some(Self { kind: Kind::Pairs, max_length }),
        }
    }

    /// The columns that the rows must have.
    pub(crate) fn rows(self) -> RowKind {
        match self.kind {
            Kind::Demonstrations => RowKind::Demonstrations,
            Kind::Labelled => RowKind::Labelled,
            Kind::Pairs => RowKind::Pairs,
        }
    }

    /// One example per row, in order, less those that are dropped.
    ///
    /// # Errors
    /// If a row lacks a text, or its prompt cannot be rendered.
    pub(crate) fn read(self, rows: Vec<Prompt>, policy: &Policy) -> Result<Read> {
        let mut read = Read::default();
        for row in rows {
            let prompt_ids = policy.tokenizer().prompt_ids(&row)?;
            let room = self.max_length.saturating_sub(prompt_ids.len());
            let complete = |text| {
                let ids = policy.tokenizer().answer_ids(&row, text)?;
                Ok(Completion { ids, cut: false })
            };
            let mut completions = self.texts(&row)?.into_iter().map(complete).collect::<Result<Vec<_>>>()?;
            let too_long = completions.iter().any(|completion| completion.ids.len() > room);
            if room == 0 || (too_long && self.kind == Kind::Pairs) {
                read.dropped += 1;
                continue;
            }
            if too_long {
                read.cut += 1;
                for completion in &mut completions {
                    completion.ids.truncate(room);
                    completion.cut = true;
                }
            }
            read.examples.push(Example { prompt_ids, completions: Self::completions(&row, completions)? });
        }
        Ok(read)
    }

    fn completions(row: &Prompt, completions: Vec<Completion>) -> Result<Completions> {
        let mut completions = completions.into_iter();
        match (completions.next(), completions.next()) {
            (Some(chosen), Some(rejected)) => {
                let margin = row.metadata.get(MARGIN).and_then(Value::as_f64).unwrap_or_default();
                Ok(Completions::Pair { chosen, rejected, margin })
            }
            (Some(completion), None) => {
                let desirable = row.metadata.get(LABEL).and_then(Value::as_bool).unwrap_or(true);
                Ok(Completions::Demonstration { completion, desirable })
            }
            _ => Err(Error::runtime("a row has no completion")),
        }
    }

    fn texts(self, row: &Prompt) -> Result<Vec<&str>> {
        let names: &[&str] = match self.kind {
            Kind::Demonstrations | Kind::Labelled => &[COMPLETION],
            Kind::Pairs => &[CHOSEN, REJECTED],
        };
        let text = |name: &&str| row.metadata.get(*name).and_then(|text| text.as_str());
        names
            .iter()
            .map(|name| text(name).ok_or_else(|| Error::runtime(format!("a row has no text `{name}`"))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::Seed;
    use serde_json::json;

    fn policy() -> Policy {
        let config = serde_json::from_value(json!({"device": "cpu", "random": {}})).unwrap();
        Policy::load(&config, &Seed::new(0)).unwrap()
    }

    fn row(columns: &serde_json::Value) -> Prompt {
        Prompt { metadata: columns.as_object().unwrap().clone(), ..Prompt::user("1+1?") }
    }

    #[test]
    fn the_tokens_of_an_example_are_those_that_the_model_would_sample() {
        let policy = policy();
        let reader = Reader::new(Samples::Pairs { max_length: 100 }).unwrap();
        let rows = vec![row(&json!({"chosen": "2", "rejected": "33"}))];
        let Read { examples, cut, dropped } = reader.read(rows, &policy).unwrap();
        assert_eq!((examples.len(), cut, dropped), (1, 0, 0));
        assert_eq!(examples[0].prompt_ids, policy.tokenizer().prompt_ids(&Prompt::user("1+1?")).unwrap());
        // A byte is a token, and 257 ends the turn.
        let ids = |text: &[u8]| [&text.iter().map(|byte| u32::from(*byte)).collect::<Vec<_>>()[..], &[257]].concat();
        let completion = |text| Completion { ids: ids(text), cut: false };
        let (chosen, rejected) = (completion(b"2"), completion(b"33"));
        assert_eq!(examples[0].completions, Completions::Pair { chosen, rejected, margin: 0.0 });
    }

    #[test]
    fn the_margin_of_a_row_is_that_of_its_pair() {
        let reader = Reader::new(Samples::Pairs { max_length: 100 }).unwrap();
        let rows = vec![row(&json!({"chosen": "2", "rejected": "3", "margin": 0.5}))];
        let examples = reader.read(rows, &policy()).unwrap().examples;
        assert!(matches!(examples[0].completions, Completions::Pair { margin: 0.5, .. }), "{examples:?}");
    }

    #[test]
    fn a_row_is_desirable_as_its_label_says() {
        let reader = Reader::new(Samples::Labelled { max_length: 100 }).unwrap();
        let rows = [true, false].map(|label| row(&json!({"completion": "2", "label": label})));
        let examples = reader.read(rows.into(), &policy()).unwrap().examples;
        let desirable =
            |example: &Example| matches!(example.completions, Completions::Demonstration { desirable: true, .. });
        assert_eq!(examples.iter().map(desirable).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_is_too_long_is_cut_or_dropped_and_counted() {
        let policy = policy();
        let prompt = policy.tokenizer().prompt_ids(&Prompt::user("1+1?")).unwrap().len();
        let rows = || vec![row(&json!({"completion": "2345", "chosen": "2", "rejected": "2345"}))];
        let of = |samples| Reader::new(samples).unwrap().read(rows(), &policy).unwrap();
        let demonstration = |room| of(Samples::Demonstrations { max_length: prompt + room });
        let pair = |room| of(Samples::Pairs { max_length: prompt + room });
        let first = |read: &Read| read.examples[0].completions().next().unwrap().clone();

        let whole = demonstration(5);
        assert_eq!((whole.cut, first(&whole).cut), (0, false));
        let cut = demonstration(3);
        assert_eq!((cut.cut, first(&cut)), (1, Completion { ids: b"234".map(u32::from).into(), cut: true }));
        let nothing = demonstration(0);
        assert_eq!((nothing.dropped, nothing.examples.len()), (1, 0));

        assert_eq!(pair(5).dropped, 0);
        assert_eq!((pair(4).dropped, pair(4).examples.len()), (1, 0));
    }
}
