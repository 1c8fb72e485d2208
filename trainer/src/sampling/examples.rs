//! Examples of a data set: completions that somebody wrote, one per prompt or two of which one is better.
//!
//! An example has the form of a sample, so that everything behind the source treats both alike: its ids are what the
//! model would have had to draw, end-of-sequence token included. But nobody drew it. Its log-probabilities are zero and
//! mean nothing, its verdict is what the data set says (1 for a demonstration and for the chosen one of a pair, 0 for the
//! rejected one and for a demonstration labelled false), and it does not go into the store, which holds what policies
//! drew.

use super::{Source, StepContext, StepRequest};
use crate::algorithm::Samples;
use crate::report::metrics;
use crate::{Error, Result};
use model::Policy;
use rollout::prompts::examples::{CHOSEN, COMPLETION, LABEL, REJECTED};
use rollout::prompts::{Epochs, RowKind};
use schema::{
    Finish, Grade, GradedGroup, Group, Metrics, PolicyVersion, Prompt, RewardPart, Sample, SamplerSettings, Verdict,
};

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
        let Read { groups, cut, dropped } = self.reader.read(self.prompts.step(step)?, &self.policy)?;
        let mut metrics = Metrics::new();
        metrics.merge(metrics::lengths(&groups));
        metrics.set("examples/cut", cut as f64);
        metrics.set("examples/dropped", dropped as f64);
        if let Some(passes) = self.prompts.passes(step) {
            metrics.set("epoch", passes);
        }
        Ok(StepRequest::existing(context, groups, metrics))
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
    Pairs,
}

/// What became of some rows.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// One group per row that is not dropped.
    pub(crate) groups: Vec<GradedGroup>,
    /// Demonstrations that were cut.
    pub(crate) cut: usize,
    /// Pairs with a completion that is too long, and demonstrations whose prompt leaves room for nothing.
    pub(crate) dropped: usize,
}

impl Reader {
    /// A reader for these samples; none if they are drawn.
    pub(crate) fn new(samples: Samples, max_length: usize) -> Option<Self> {
        let kind = match samples {
            Samples::Drawn { .. } => return None,
            Samples::Demonstrations => Kind::Demonstrations,
            Samples::Pairs => Kind::Pairs,
        };
        Some(Self { kind, max_length })
    }

    /// What the rows must hold.
    pub(crate) fn rows(self) -> RowKind {
        match self.kind {
            Kind::Demonstrations => RowKind::Demonstrations,
            Kind::Pairs => RowKind::Pairs,
        }
    }

    /// One example per row, in order, less those that are dropped.
    pub(crate) fn read(self, rows: Vec<Prompt>, policy: &Policy) -> Result<Read> {
        let mut read = Read::default();
        for row in rows {
            let prompt_ids = policy.tokenizer().prompt_ids(&row)?;
            let room = self.max_length.saturating_sub(prompt_ids.len());
            let mut samples =
                self.texts(&row)?.into_iter().map(|text| given(&row, text, policy)).collect::<Result<Vec<_>>>()?;
            let too_long = samples.iter().any(|sample| sample.len() > room);
            if room == 0 || (too_long && self.kind == Kind::Pairs) {
                read.dropped += 1;
                continue;
            }
            if too_long {
                read.cut += 1;
                for sample in &mut samples {
                    cut(sample, room, policy);
                }
            }
            read.groups.push(self.group(row, prompt_ids, samples)?);
        }
        Ok(read)
    }

    fn texts(self, row: &Prompt) -> Result<Vec<&str>> {
        let names: &[&str] = match self.kind {
            Kind::Demonstrations => &[COMPLETION],
            Kind::Pairs => &[CHOSEN, REJECTED],
        };
        let text = |name: &&str| row.metadata.get(*name).and_then(|text| text.as_str());
        names
            .iter()
            .map(|name| text(name).ok_or_else(|| Error::runtime(format!("a row has no text `{name}`"))))
            .collect()
    }

    fn group(self, prompt: Prompt, prompt_ids: Vec<u32>, samples: Vec<Sample>) -> Result<GradedGroup> {
        let bad = prompt.metadata.get(LABEL).is_some_and(|label| label == false);
        let values: &[f32] = match self.kind {
            Kind::Pairs => &[1.0, 0.0],
            Kind::Demonstrations if bad => &[0.0],
            Kind::Demonstrations => &[1.0],
        };
        let verdict = |value: &f32| {
            let grade = Grade::Value(*value);
            Verdict::of_rewards(vec![RewardPart { name: CHOSEN.into(), version: "1".into(), weight: 1.0, grade }])
        };
        let group = Group {
            prompt,
            prompt_ids,
            policy: PolicyVersion { version: 0, hash: "given".into() },
            settings: SamplerSettings::default(),
            samples,
        };
        GradedGroup::new(group, values.iter().map(verdict).collect()).map_err(|error| Error::runtime(error.to_string()))
    }
}

/// A text as the sample that it would have been.
fn given(prompt: &Prompt, text: &str, policy: &Policy) -> Result<Sample> {
    let ids = policy.tokenizer().answer_ids(prompt, text)?;
    let (mask, logprobs) = (vec![true; ids.len()], vec![0.0; ids.len()]);
    Ok(Sample { ids, mask, logprobs, finish: Finish::Eos, text: text.to_owned() })
}

fn cut(sample: &mut Sample, room: usize, policy: &Policy) {
    sample.ids.truncate(room);
    sample.mask.truncate(room);
    sample.logprobs.truncate(room);
    sample.finish = Finish::Length;
    sample.text = policy.tokenizer().decode(&sample.ids);
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
    fn an_example_is_the_sample_that_it_would_have_been() {
        let policy = policy();
        let reader = Reader::new(Samples::Pairs, 100).unwrap();
        let rows = vec![row(&json!({"chosen": "2", "rejected": "33"}))];
        let Read { groups, cut, dropped } = reader.read(rows, &policy).unwrap();
        assert_eq!((groups.len(), cut, dropped), (1, 0, 0));
        let group = groups[0].group();
        assert_eq!(group.prompt_ids, policy.tokenizer().prompt_ids(&Prompt::user("1+1?")).unwrap());
        // A byte is a token, and 257 ends the turn.
        assert_eq!(group.samples[0].ids, [u32::from(b'2'), 257]);
        assert_eq!(group.samples[1].ids, [u32::from(b'3'), u32::from(b'3'), 257]);
        assert!(group.samples.iter().all(|sample| sample.is_consistent() && sample.mask.iter().all(|on| *on)));
        assert_eq!(groups[0].rewards(), [Some(1.0), Some(0.0)]);
    }

    #[test]
    fn labels_are_verdicts() {
        let reader = Reader::new(Samples::Demonstrations, 100).unwrap();
        let rows =
            [json!(true), json!(false), json!(null)].map(|label| row(&json!({"completion": "2", "label": label})));
        let groups = reader.read(rows.into(), &policy()).unwrap().groups;
        assert_eq!(
            groups.iter().map(|group| group.rewards()[0]).collect::<Vec<_>>(),
            [Some(1.0), Some(0.0), Some(1.0)]
        );
    }

    #[test]
    fn what_is_too_long_is_cut_or_dropped_and_counted() {
        let policy = policy();
        let prompt = policy.tokenizer().prompt_ids(&Prompt::user("1+1?")).unwrap().len();
        let rows = || vec![row(&json!({"completion": "2345", "chosen": "2", "rejected": "2345"}))];
        let read = |samples, room| Reader::new(samples, prompt + room).unwrap().read(rows(), &policy).unwrap();

        let whole = read(Samples::Demonstrations, 5);
        assert_eq!((whole.cut, whole.groups[0].group().samples[0].finish), (0, Finish::Eos));
        let cut = read(Samples::Demonstrations, 3);
        let sample = &cut.groups[0].group().samples[0];
        assert_eq!((cut.cut, &sample.text[..], sample.finish, sample.len()), (1, "234", Finish::Length, 3));
        assert!(sample.is_consistent());
        let nothing = read(Samples::Demonstrations, 0);
        assert_eq!((nothing.dropped, nothing.groups.len()), (1, 0));

        assert_eq!(read(Samples::Pairs, 5).dropped, 0);
        let pair = read(Samples::Pairs, 4);
        assert_eq!((pair.dropped, pair.groups.len()), (1, 0));
    }
}
