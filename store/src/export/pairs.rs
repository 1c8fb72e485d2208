//! Pairs of a better and a worse answer, for learning from preferences: the samples of each prompt, joined with
//! themselves.
//!
//! All graded samples of a prompt compete, of every policy and every run, each text once and with its best reward. The
//! best one is paired with the worst, the second best with the second worst, and so on: no sample is in two pairs, and
//! margins fall. Columns are TRL's (`prompt`, `chosen`, `rejected`), and behind them stands where each side comes from.

use super::{Partial, Selection};
use crate::ask::query::{bad_sql, question};
use crate::engine::{Access, sql};
use crate::error::Doing;
use crate::{Error, Result, Store};
use schema::{Message, Prompt, PromptInput};
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const DOING: &str = "pairing samples";

/// Prompts whose samples are in memory at a time.
const PROMPTS_AT_ONCE: i64 = 256;

const PROMPTS: &str = "SELECT id, json FROM prompts WHERE id > $1 ORDER BY id LIMIT $2";

/// The rules by which pairs are built.
#[derive(Debug, Clone)]
pub struct Pairing {
    /// The samples that compete.
    pub samples: Selection,
    /// The most pairs that one prompt gives.
    pub per_prompt: usize,
    /// The reward of the chosen one exceeds that of the rejected one by more than this; not negative.
    pub margin: f64,
}

/// The counts of an export of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paired {
    /// Pairs that were written.
    pub pairs: u64,
    /// Prompts that gave at least one pair.
    pub prompts: u64,
    /// Prompts that have graded samples, but none that differ by more than the margin.
    pub undecided: u64,
}

/// One line of the file. The fields are the columns, in this order.
#[derive(Debug, Serialize)]
struct Pair<'a> {
    prompt: &'a PromptInput,
    chosen: Answer<'a>,
    rejected: Answer<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    margin: f64,
    chosen_reward: f64,
    rejected_reward: f64,
    chosen_id: i64,
    rejected_id: i64,
}

/// A completion in the form of its prompt: text after text, a turn of the assistant after turns.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer<'a> {
    Text(&'a str),
    Turn([Message; 1]),
}

impl<'a> Answer<'a> {
    fn to(prompt: &PromptInput, text: &'a str) -> Self {
        match prompt {
            PromptInput::Text(_) => Self::Text(text),
            PromptInput::Messages(_) => Self::Turn([Message { role: "assistant".into(), content: text.into() }]),
        }
    }
}

/// A sample with its prompt's number and its reward.
#[derive(Debug, Clone, PartialEq)]
struct Judged {
    prompt_id: i64,
    sample_id: i64,
    reward: f64,
    text: String,
}

impl From<(i64, i64, f64, String)> for Judged {
    fn from((prompt_id, sample_id, reward, text): (i64, i64, f64, String)) -> Self {
        Self { prompt_id, sample_id, reward, text }
    }
}

impl Store {
    /// Writes pairs of the selected samples to `path`, a `.jsonl` file, and returns their counts. A file of that name
    /// is replaced once the new one is whole.
    ///
    /// # Errors
    /// If the file's name ends in anything else, the margin is negative, the condition is no SQL, or the file cannot be
    /// written.
    pub fn export_pairs(&self, path: &Path, pairing: &Pairing) -> Result<Paired> {
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("jsonl")) {
            return Err(Error::Setting(format!(
                "pairs are written as JSON lines, but {} does not end in .jsonl; rename it",
                path.display()
            )));
        }
        if !(pairing.margin >= 0.0 && pairing.margin.is_finite()) {
            return Err(Error::Setting(format!("the margin must be 0 or more, but is {}", pairing.margin)));
        }
        let select = select(&pairing.samples)?;
        let failed = |error: io::Error| Error::Write { path: path.to_owned(), reason: error.to_string() };
        let partial = Partial::beside(path);
        let mut file = BufWriter::new(File::create(&partial.path).map_err(failed)?);
        let mut paired = Paired::default();
        self.with_once(async |connection| {
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let mut last = i64::MIN;
            loop {
                let prompts: Vec<(i64, String)> = sql::query_as(PROMPTS)
                    .bind(last)
                    .bind(PROMPTS_AT_ONCE)
                    .fetch_all(&mut snapshot)
                    .await
                    .doing(DOING)?;
                let Some((newest, _)) = prompts.last() else { return Ok(()) };
                let judged: Vec<(i64, i64, f64, String)> = sql::query_as(select.clone())
                    .bind(last)
                    .bind(*newest)
                    .fetch_all(&mut snapshot)
                    .await
                    .map_err(bad_sql)?;
                let judged: Vec<Judged> = judged.into_iter().map(Judged::from).collect();
                last = *newest;
                let mut prompts = prompts.iter();
                for samples in judged.chunk_by(|a, b| a.prompt_id == b.prompt_id) {
                    let Some((_, json)) = prompts.find(|(id, _)| *id == samples[0].prompt_id) else { continue };
                    let prompt: Prompt = serde_json::from_str(json)
                        .map_err(|error| Error::Damaged { what: format!("a prompt holds {json}: {error}") })?;
                    let pairs = pairs(samples, pairing);
                    for (better, worse) in &pairs {
                        write(&mut file, &prompt, better, worse).map_err(failed)?;
                    }
                    paired.pairs += pairs.len() as u64;
                    *(if pairs.is_empty() { &mut paired.undecided } else { &mut paired.prompts }) += 1;
                }
            }
        })?;
        file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        partial.keep_as(path).map_err(failed)?;
        Ok(paired)
    }
}

/// The statement that finds the graded samples of the prompts after `$1` up to `$2`, the best of each prompt first.
fn select(selection: &Selection) -> Result<String> {
    let chosen = selection.clauses();
    let sql = format!(
        "SELECT g.prompt_id, v.sample_id, v.reward, v.text
        FROM (SELECT sample_id, group_id, reward, text FROM sample_view WHERE reward IS NOT NULL {chosen}) v
        JOIN groups g ON g.id = v.group_id
        WHERE g.prompt_id > $1 AND g.prompt_id <= $2 ORDER BY g.prompt_id, v.reward DESC, v.sample_id"
    );
    question(&sql).map(str::to_owned)
}

/// Pairs of one prompt's samples, which stand in falling order of reward.
fn pairs<'a>(samples: &'a [Judged], pairing: &Pairing) -> Vec<(&'a Judged, &'a Judged)> {
    let mut seen = HashSet::new();
    let distinct: Vec<&Judged> = samples.iter().filter(|sample| seen.insert(&sample.text)).collect();
    let ends = distinct.iter().copied().zip(distinct.iter().rev().copied()).take(pairing.per_prompt);
    // A margin is never negative, so nothing is taken from the middle on.
    ends.take_while(|(better, worse)| better.reward - worse.reward > pairing.margin).collect()
}

fn write(file: &mut impl Write, prompt: &Prompt, better: &Judged, worse: &Judged) -> io::Result<()> {
    let pair = Pair {
        prompt: &prompt.input,
        chosen: Answer::to(&prompt.input, &better.text),
        rejected: Answer::to(&prompt.input, &worse.text),
        answer: prompt.answer.as_deref(),
        margin: better.reward - worse.reward,
        chosen_reward: better.reward,
        rejected_reward: worse.reward,
        chosen_id: better.sample_id,
        rejected_id: worse.sample_id,
    };
    serde_json::to_writer(&mut *file, &pair)?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rewards: &[(f64, &str)]) -> Vec<Judged> {
        let sample = |(id, (reward, text)): (i64, &(f64, &str))| Judged {
            prompt_id: 1,
            sample_id: id,
            reward: *reward,
            text: (*text).into(),
        };
        (0..).zip(rewards).map(sample).collect()
    }

    fn ids(rewards: &[(f64, &str)], per_prompt: usize, margin: f64) -> Vec<(i64, i64)> {
        let pairing = Pairing { samples: Selection::default(), per_prompt, margin };
        pairs(&judged(rewards), &pairing).iter().map(|(a, b)| (a.sample_id, b.sample_id)).collect()
    }

    #[test]
    fn the_best_meet_the_worst_and_nobody_twice() {
        let samples = [(3.0, "a"), (2.0, "b"), (1.0, "c"), (0.5, "d"), (0.0, "e")];
        assert_eq!(ids(&samples, 9, 0.0), [(0, 4), (1, 3)]);
        assert_eq!(ids(&samples, 1, 0.0), [(0, 4)]);
        assert_eq!(ids(&samples, 9, 1.5), [(0, 4)]);
        assert!(ids(&samples, 9, 3.0).is_empty(), "a margin must be exceeded");
    }

    #[test]
    fn one_text_competes_once_and_equals_make_no_pair() {
        assert!(ids(&[(1.0, "a"), (0.0, "a")], 9, 0.0).is_empty());
        assert!(ids(&[(1.0, "a"), (1.0, "b")], 9, 0.0).is_empty());
        assert_eq!(ids(&[(1.0, "a"), (1.0, "a"), (0.0, "b")], 9, 0.0), [(0, 2)]);
        assert!(ids(&[(1.0, "a")], 9, 0.0).is_empty());
    }
}
