//! Import of completions from a file as a run of the store.
//!
//! The rows of a JSONL or Parquet file hold prompts and completions, and optionally answers and rewards. They lack the
//! log-probability of each token under the policy that sampled it, so a given model computes it instead, and the rows
//! are marked: their policy's `origin` is `imported`. Importance ratios against these rows correct from that model, not
//! from the unknown author of the text; the two agree only if the same model sampled it.
//!
//! A row with one `completion` joins the other rows of its prompt; a row with several `completions` is a group of its
//! own. Tokens come from the model's tokenizer. A completion ends with the end-of-sequence token unless its row says
//! that it was cut off. If a row has `completion_ids` that decode to exactly its text, as in an export of this store,
//! they are used.

mod rows;

use crate::batch::{MicroBatchLimits, per_sequence};
use crate::{Error, Result};
use model::Policy;
use rollout::prompts::Form;
use rows::{Completion, Row};
use schema::{Finish, Grade, GradedGroup, Group, RewardPart, Sample, SamplerSettings, Seed, Token, Verdict};
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;
use store::{NewRun, RunId, RunStatus, Store};

/// Groups per imported step.
const GROUPS_PER_STEP: usize = 64;

/// Settings of an import.
#[derive(Debug, Clone, Serialize)]
pub struct Import<'a> {
    /// File to read: `.jsonl` or `.parquet`.
    pub file: &'a Path,
    /// Model that computes the log-probabilities, without an adapter.
    pub model: &'a model::Config,
    /// Name of the new run.
    pub name: &'a str,
    /// Column with the prompt.
    pub prompt_column: &'a str,
    /// Column with the answer; `None` looks for the usual names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_column: Option<&'a str>,
    /// Treatment of a prompt that is plain text.
    pub form: Form,
    /// Temperature: the logits are divided by it before log-probabilities are taken; above 0.
    pub temperature: f64,
    /// Largest number of tokens of one forward pass, unless a single completion has more.
    pub micro_batch_tokens: usize,
}

/// Summary of an import.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// Number of the new run.
    pub run: RunId,
    /// Number of groups.
    pub groups: u64,
    /// Number of completions.
    pub samples: u64,
    /// Number of tokens of all completions.
    pub tokens: u64,
    /// Mean log-probability of a token under the model, in nats.
    pub mean_logprob: f64,
}

/// Reads the file, computes log-probabilities with the model, and appends the result to the store as a new run.
/// `progress` receives the number of completions done so far, and of all. `open` opens the store; it is called only after the file
/// and the model have been read without an error, so that a wrong call creates no store.
///
/// # Errors
/// If the temperature is not above 0, the file cannot be read or a row is malformed, the model cannot be loaded, or the
/// store cannot be written.
pub fn import(
    open: impl FnOnce() -> Result<Store>,
    import: &Import<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported> {
    if !(import.temperature > 0.0 && import.temperature.is_finite()) {
        return Err(Error::input(format!("the temperature must be greater than 0, but is {}", import.temperature)));
    }
    let rows = rows::read(import)?;
    let model = LogprobModel { policy: Policy::load(import.model, &Seed::new(0))?.base(), import };
    let groups: Vec<GradedGroup> =
        (1..).zip(rows).map(|(number, row)| model.group(number, row)).collect::<Result<_>>()?;
    let store = open()?;
    let run = store.begin_import(&NewRun {
        name: import.name.to_owned(),
        config: toml::to_string_pretty(import).map_err(|error| Error::runtime(error.to_string()))?,
        program_version: env!("CARGO_PKG_VERSION").into(),
        out_dir: import.file.to_owned(),
        model_hash: model.policy.identity().to_owned(),
        started_at: SystemTime::now(),
    })?;
    let done = model.append(&store, run, &groups, progress);
    let status = if done.is_ok() { RunStatus::Finished } else { RunStatus::Failed };
    let recorded = store.finish_run(run, status);
    let done = done?;
    recorded?;
    Ok(done)
}

/// The model that computes log-probabilities, with the settings of the import.
struct LogprobModel<'a> {
    policy: Policy,
    import: &'a Import<'a>,
}

impl LogprobModel<'_> {
    /// Converts a row into a group with all log-probabilities zero; `number` counts groups from 1.
    ///
    /// # Errors
    /// If a prompt or a completion cannot be tokenized, or they are longer than the model's context together.
    fn group(&self, number: usize, row: Row) -> Result<GradedGroup> {
        let prompt_ids = self.policy.tokenizer().prompt_ids(&row.prompt)?;
        let samples: Vec<Sample> = row.completions.iter().map(|it| self.sample(it)).collect::<Result<_>>()?;
        let context = self.policy.network().dimensions().max_position as usize;
        let longest = samples.iter().map(Sample::len).max().unwrap_or(0);
        if prompt_ids.len() + longest > context {
            let (file, shown) =
                (self.import.file.display(), row.prompt.question().chars().take(40).collect::<String>());
            return Err(Error::input(format!(
                "{file}: prompt {number} (`{}…`): its {} tokens and a completion of {longest} exceed the model's context of {context} tokens, beyond which its log-probabilities mean nothing; leave it out",
                shown.escape_debug(),
                prompt_ids.len(),
            )));
        }
        let verdicts = row.completions.iter().map(|completion| verdict(completion.reward)).collect();
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
        GradedGroup::new(group, verdicts).map_err(|error| Error::runtime(error.to_string()))
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

    /// Returns the first end-of-sequence token within the network's vocabulary.
    fn ending(&self) -> Option<Token> {
        let vocab = self.policy.network().dimensions().vocab;
        self.policy.tokenizer().eos_ids().iter().copied().find(|id| i64::from(*id) < vocab)
    }

    fn append(
        &self,
        store: &Store,
        run: RunId,
        groups: &[GradedGroup],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Imported> {
        let mut done = Imported { run, groups: 0, samples: 0, tokens: 0, mean_logprob: 0.0 };
        let mut sum = 0.0;
        let all = groups.iter().map(|group| group.group().samples.len()).sum::<usize>();
        for (step, groups) in (1..).zip(groups.chunks(GROUPS_PER_STEP)) {
            let scored = self.with_model_logprobs(groups)?;
            store.append_step(run, step, &scored, None)?;
            let samples = || scored.iter().flat_map(|group| &group.group().samples);
            done.groups += scored.len() as u64;
            done.samples += samples().count() as u64;
            done.tokens += samples().map(Sample::len).sum::<usize>() as u64;
            sum += samples().flat_map(|sample| &sample.logprobs).map(|it| f64::from(*it)).sum::<f64>();
            progress(done.samples, all as u64);
        }
        done.mean_logprob = sum / done.tokens.max(1) as f64;
        Ok(done)
    }

    /// Returns the groups with the model's log-probabilities.
    fn with_model_logprobs(&self, groups: &[GradedGroup]) -> Result<Vec<GradedGroup>> {
        let limits = MicroBatchLimits {
            tokens: self.import.micro_batch_tokens,
            vocab: self.policy.network().dimensions().vocab,
            device: self.policy.device(),
        };
        let bare: Vec<Group> = groups.iter().map(|group| group.group().clone()).collect();
        let logprobs = per_sequence(&bare, limits, |packed| {
            vec![self.policy.logprobs(packed, self.import.temperature, self.policy.adapter())]
        })?;
        groups.iter().zip(logprobs).map(|(scored, logprobs)| with_logprobs(scored, logprobs)).collect()
    }
}

/// Returns the group with these log-probabilities; `logprobs` holds one column per sample.
fn with_logprobs(scored: &GradedGroup, logprobs: Vec<Vec<Vec<f32>>>) -> Result<GradedGroup> {
    let mut group = scored.group().clone();
    for (sample, logprobs) in group.samples.iter_mut().zip(logprobs) {
        sample.logprobs = logprobs.concat();
    }
    GradedGroup::new(group, scored.verdicts().to_vec()).map_err(|error| Error::runtime(error.to_string()))
}

/// Converts an optional reward of a row. A row without one has no reward part: a later scoring can add it.
fn verdict(reward: Option<f32>) -> Verdict {
    let part = |value| RewardPart {
        name: "imported".into(),
        version: "imported".into(),
        weight: 1.0,
        grade: Grade::Value(value),
    };
    Verdict::of_rewards(reward.map(part).into_iter().collect())
}

#[cfg(test)]
mod tests;
