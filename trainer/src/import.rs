//! Completions from elsewhere become a run of the store.
//!
//! The rows of a JSONL or Parquet file bring prompts and completions, perhaps answers and rewards. What they cannot
//! bring is the log-probability of each token under the policy that drew it, so a named model computes them instead,
//! and the rows are marked: their policy's `origin` is `imported`. Importance ratios against them correct from that
//! model and not from whoever wrote the text; only where the same model drew it are the two the same.
//!
//! A row of one `completion` joins the other rows of its prompt; a row of several `completions` is a group of its own.
//! Tokens come from the model's tokenizer, and a completion that is not said to be cut off ends in its
//! end-of-sequence token. Where a row has `completion_ids` that decode to its very text, as in an export of this
//! store, those are taken.

mod rows;

use crate::batch::{Cut, score_samples};
use crate::{Error, Result};
use model::Policy;
use rollout::prompts::Form;
use rows::{Completion, Row};
use schema::{Finish, Group, Part, PartStatus, Sample, SamplerSettings, ScoredGroup, Seed, Token, Verdict};
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;
use store::{NewRun, RunId, RunStatus, Store};

/// Groups that make a step.
const GROUPS_PER_STEP: usize = 64;

/// What to import, and how to read it.
#[derive(Debug, Clone, Serialize)]
pub struct Import<'a> {
    /// The file: `.jsonl` or `.parquet`.
    pub file: &'a Path,
    /// The model that computes the log-probabilities, without an adapter.
    pub model: &'a model::Config,
    /// What the run will be called.
    pub name: &'a str,
    /// The column with the prompt.
    pub prompt_column: &'a str,
    /// The column with the answer; the usual ones are looked for if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_column: Option<&'a str>,
    /// What a prompt that is plain text becomes.
    pub form: Form,
    /// The logits are divided by this before the log-probabilities are taken; greater than 0.
    pub temperature: f64,
    /// Tokens that one forward pass takes at most, unless a single completion has more.
    pub micro_batch_tokens: usize,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The run that holds it.
    pub run: RunId,
    /// How many prompts it asks.
    pub groups: u64,
    /// How many completions there are.
    pub samples: u64,
    /// How many tokens they have.
    pub tokens: u64,
    /// The mean log-probability of a token under the model: how likely it finds the text.
    pub mean_logprob: f64,
}

/// Reads the file, has the model score it, and appends it to the store as a run of its own; `progress` hears how many
/// completions are done. The store is opened by `open` once nothing can be wrong with the file or the model any more,
/// so that a wrong call makes no store.
pub fn import(
    open: impl FnOnce() -> Result<Store>,
    import: &Import<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported> {
    if !(import.temperature > 0.0 && import.temperature.is_finite()) {
        return Err(Error::input(format!("the temperature must be greater than 0, but is {}", import.temperature)));
    }
    let rows = rows::read(import)?;
    let scorer = Scorer { policy: Policy::load(import.model, &Seed::new(0))?.base(), import };
    let groups: Vec<ScoredGroup> = rows.into_iter().map(|row| scorer.group(row)).collect::<Result<_>>()?;
    let store = open()?;
    let run = store.begin_import(&NewRun {
        name: import.name.to_owned(),
        config: toml::to_string_pretty(import).map_err(|error| Error::runtime(error.to_string()))?,
        program_version: env!("CARGO_PKG_VERSION").into(),
        out_dir: import.file.to_owned(),
        model_hash: scorer.policy.identity().to_owned(),
        started_at: SystemTime::now(),
    })?;
    let done = scorer.append(&store, run, &groups, progress);
    let status = if done.is_ok() { RunStatus::Finished } else { RunStatus::Failed };
    let recorded = store.finish_run(run, status);
    let done = done?;
    recorded?;
    Ok(done)
}

/// The model that scores.
struct Scorer<'a> {
    policy: Policy,
    import: &'a Import<'a>,
}

impl Scorer<'_> {
    /// A row as a group, its log-probabilities still all zero.
    fn group(&self, row: Row) -> Result<ScoredGroup> {
        let prompt_ids = self.policy.tokenizer().prompt_ids(&row.prompt)?;
        let samples: Vec<Sample> = row.completions.iter().map(|it| self.sample(it)).collect::<Result<_>>()?;
        let verdicts = row.completions.iter().map(|completion| verdict(completion.reward)).collect();
        let longest = samples.iter().map(Sample::len).max().unwrap_or(0);
        let group = Group {
            prompt: row.prompt,
            prompt_ids,
            policy: self.policy.version().clone(),
            settings: SamplerSettings {
                temperature: self.import.temperature,
                max_new_tokens: longest as u32,
                ..SamplerSettings::default()
            },
            samples,
        };
        ScoredGroup::new(group, verdicts).map_err(|error| Error::runtime(error.to_string()))
    }

    fn sample(&self, completion: &Completion) -> Result<Sample> {
        let Completion { text, finish, ids, .. } = completion;
        let tokenizer = self.policy.tokenizer();
        let ids = match ids {
            Some(ids) if tokenizer.decode(ids) == *text => ids.clone(),
            _ => {
                let mut ids = tokenizer.encode(text)?;
                ids.extend(self.ending().filter(|_| *finish == Finish::Eos));
                ids
            }
        };
        let length = ids.len();
        Ok(Sample { ids, mask: vec![true; length], logprobs: vec![0.0; length], finish: *finish, text: text.clone() })
    }

    /// The end-of-sequence token that the network can draw.
    fn ending(&self) -> Option<Token> {
        let vocab = self.policy.network().dimensions().vocab;
        self.policy.tokenizer().eos_ids().iter().copied().find(|id| i64::from(*id) < vocab)
    }

    fn append(
        &self,
        store: &Store,
        run: RunId,
        groups: &[ScoredGroup],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Imported> {
        let mut done = Imported { run, groups: 0, samples: 0, tokens: 0, mean_logprob: 0.0 };
        let mut sum = 0.0;
        for (step, groups) in (1..).zip(groups.chunks(GROUPS_PER_STEP)) {
            let scored = self.scored(groups)?;
            store.append_step(run, step, &scored, None)?;
            let samples = || scored.iter().flat_map(|group| &group.group().samples);
            done.groups += scored.len() as u64;
            done.samples += samples().count() as u64;
            done.tokens += samples().map(Sample::len).sum::<usize>() as u64;
            sum += samples().flat_map(|sample| &sample.logprobs).map(|it| f64::from(*it)).sum::<f64>();
            progress(done.samples);
        }
        done.mean_logprob = sum / done.tokens.max(1) as f64;
        Ok(done)
    }

    /// The groups with the model's log-probabilities.
    fn scored(&self, groups: &[ScoredGroup]) -> Result<Vec<ScoredGroup>> {
        let cut = Cut {
            micro_batch_tokens: self.import.micro_batch_tokens,
            vocab: self.policy.network().dimensions().vocab,
            device: self.policy.device(),
        };
        let logprobs = score_samples(groups, cut, |packed| {
            vec![self.policy.logprobs(packed, self.import.temperature, self.policy.adapter())]
        })?;
        groups.iter().zip(logprobs).map(|(scored, logprobs)| with_logprobs(scored, logprobs)).collect()
    }
}

/// `logprobs` holds one column per sample.
fn with_logprobs(scored: &ScoredGroup, logprobs: Vec<Vec<Vec<f32>>>) -> Result<ScoredGroup> {
    let mut group = scored.group().clone();
    for (sample, logprobs) in group.samples.iter_mut().zip(logprobs) {
        sample.logprobs = logprobs.concat();
    }
    ScoredGroup::new(group, scored.verdicts().to_vec()).map_err(|error| Error::runtime(error.to_string()))
}

/// A row without a reward has no part at all: a later scoring can give it one.
fn verdict(reward: Option<f32>) -> Verdict {
    let part = |value| Part {
        name: "imported".into(),
        version: "imported".into(),
        weight: 1.0,
        value: Some(value),
        status: PartStatus::Judged,
    };
    Verdict { parts: reward.map(part).into_iter().collect() }
}

#[cfg(test)]
mod tests;
