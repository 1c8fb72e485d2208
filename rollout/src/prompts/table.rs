//! Prompts from the rows of a file: the meaning of its columns, and the rows held out.
//!
//! Column names are those of data sets for TRL and verl. A prompt is text or a list of messages. The answer is the
//! column `answer`, `solution`, `ground_truth` or `reward_model.ground_truth` (verl's nesting). All other columns are
//! kept as metadata for reward functions. GSM8K needs only `prompt_column = "question"`.

use super::examples::{CHOSEN, COMPLETION, Columns, Given, LABEL, REJECTED};
use super::{Form, PromptSource, RowKind, Sources, with_system};
use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Seed};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use strsim::levenshtein;

/// Columns searched for the answer, in this order, if the config names none.
const ANSWERS: [&str; 4] = ["answer", "solution", "ground_truth", "reward_model.ground_truth"];

/// `[prompts.jsonl]`, `[prompts.parquet]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The file to train on. It has no default.
    pub path: PathBuf,
    /// A file whose prompts are held out. Rows of `path` with the same prompt are kept from training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_path: Option<PathBuf>,
    /// Rows of `path` to hold out instead, chosen at random but always the same. Every row with the same prompt is kept
    /// from training as well.
    pub held_out_count: usize,
    /// The column with the prompt: text, or a list of messages with `role` and `content`.
    pub prompt_column: String,
    /// For supervised learning, the column with the completion: text, or a list with one assistant turn.
    pub completion_column: String,
    /// For learning from pairs, the column with the better completion: text, or a list of messages.
    pub chosen_column: String,
    /// The column with the worse one.
    pub rejected_column: String,
    /// For learning from labels, the column that says whether the completion is good: true or false, 1 or 0.
    pub label_column: String,
    /// The column with the answer, with dots into nested ones; by default the first found of `answer`, `solution`,
    /// `ground_truth` and `reward_model.ground_truth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_column: Option<String>,
    /// The form of a prompt that is text: a user turn, or raw text.
    #[serde(rename = "as")]
    pub form: Form,
    /// A system turn to put before each conversation that has none of its own; none if empty.
    pub system: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            held_out_path: None,
            held_out_count: 0,
            prompt_column: "prompt".into(),
            completion_column: COMPLETION.into(),
            chosen_column: CHOSEN.into(),
            rejected_column: REJECTED.into(),
            label_column: LABEL.into(),
            answer_column: None,
            form: Form::Chat,
            system: String::new(),
        }
    }
}

/// The rows of a file.
pub(super) struct Rows {
    /// Name of a row in this format, for error messages.
    pub(super) unit: &'static str,
    /// Each row with its number in the file, counted from 1.
    pub(super) rows: Vec<(usize, Map<String, Value>)>,
}

impl Config {
    /// The files of training and held-out prompts.
    pub(super) fn files(&self) -> Vec<&Path> {
        std::iter::once(&self.path).chain(&self.held_out_path).map(PathBuf::as_path).collect()
    }

    /// Reads the rows of the files and splits them into training prompts and held-out ones.
    ///
    /// # Errors
    ///
    /// An input error if `path` is missing, a file cannot be read or is empty, a row lacks a column of its kind, both
    /// ways of holding out are given, or no prompt is left to train on.
    pub(super) fn open(&self, kind: RowKind, read: fn(&Path) -> Result<Rows>) -> Result<Sources> {
        if self.path.as_os_str().is_empty() {
            return Err(Error::input("the prompts need a `path` to a file"));
        }
        self.form.check(&self.system)?;
        let all = self.prompts(kind, &self.path, read)?;
        let (train, held_out) = match (&self.held_out_path, self.held_out_count) {
            (None, 0) => (all, Vec::new()),
            (None, count) => split(all, count),
            (Some(path), 0) => {
                let held_out = self.prompts(kind, path, read)?;
                let count = all.len();
                let train = without(all, &held_out);
                if train.len() < count {
                    let (same, path, held) = (count - train.len(), self.path.display(), path.display());
                    tracing::warn!("{same} of the {count} rows of {path} have a prompt of {held}: they are held out");
                }
                (train, held_out)
            }
            (Some(_), _) => return Err(Error::input("give `held_out_path` or `held_out_count`, not both")),
        };
        if train.is_empty() {
            let (path, count) = (self.path.display(), held_out.len());
            return Err(Error::input(format!("{path}: nothing is left to train on if {count} prompts are held out")));
        }
        Ok(Sources::new(PromptSource::Finite(train), held_out))
    }

    fn prompts(&self, kind: RowKind, path: &Path, read: fn(&Path) -> Result<Rows>) -> Result<Vec<Prompt>> {
        let Rows { unit, rows } = read(path)?;
        let Some((_, first)) = rows.first() else {
            return Err(Error::input(format!("{} holds no prompts", path.display())));
        };
        if let Some(column) = &self.answer_column
            && rows.iter().all(|(_, row)| find(row, column).is_none())
        {
            return Err(Error::input(format!("{}: {}", path.display(), missing("answer", column, first))));
        }
        let (count, mut prompts, mut alike) = (rows.len(), Vec::with_capacity(rows.len()), Vec::new());
        for (number, row) in rows {
            let at = |problem| Error::input(format!("{}: {unit} {number}: {problem}", path.display()));
            let prompt = self.prompt(kind, row).map_err(at)?;
            if kind == RowKind::Pairs && prompt.metadata.get(CHOSEN) == prompt.metadata.get(REJECTED) {
                alike.push(number);
            } else {
                prompts.push(prompt);
            }
        }
        if let Some(first) = alike.first() {
            let (alike, path) = (alike.len(), path.display());
            let said = format!(
                "{path}: {alike} of {count} pairs have equal completions and teach nothing, the first in {unit} {first}"
            );
            if prompts.is_empty() {
                return Err(Error::input(said));
            }
            tracing::warn!("{said}; they are left out");
        }
        Ok(prompts)
    }

    /// Turns a row into a prompt; the error is a clause that names the problem.
    fn prompt(&self, kind: RowKind, row: Map<String, Value>) -> std::result::Result<Prompt, String> {
        let column = &self.prompt_column;
        let columns = Columns {
            prompt: column,
            completion: &self.completion_column,
            chosen: &self.chosen_column,
            rejected: &self.rejected_column,
            label: &self.label_column,
            system: &self.system,
        };
        let given = Given::read(kind, &columns, &row)?;
        let input = match (given.prompt, row.get(column)) {
            (Some(input), _) => input,
            (None, None) => return Err(missing("prompt", column, &row)),
            (None, Some(Value::String(text))) => self.form.input(&self.system, text.clone()),
            (None, Some(turns)) => PromptInput::Messages(with_system(&self.system, messages(column, turns)?)),
        };
        let named = self.answer_column.as_deref();
        let mut names = named.into_iter().chain(ANSWERS.into_iter().filter(|name| named.is_none() && name != column));
        let found = names.find_map(|name| Some((name, find(&row, name)?)));
        let answer = found.map(|(_, value)| value.as_str().map_or_else(|| value.to_string(), Into::into));
        let used = [Some(column.as_str()), found.map(|(name, _)| name)];
        let other = |name: &String| !used.contains(&Some(name)) && !given.columns.contains(name);
        let mut metadata: Map<String, Value> = row.into_iter().filter(|(name, _)| other(name)).collect();
        metadata.extend(given.texts.into_iter().map(|(name, text)| (name.to_owned(), text.into())));
        metadata.extend(given.label.map(|label| (LABEL.to_owned(), label.into())));
        Ok(Prompt { input, answer, metadata })
    }
}

/// Splits prompts into training and held-out ones. Rows with the same prompt as a held-out one are dropped.
fn split(prompts: Vec<Prompt>, count: usize) -> (Vec<Prompt>, Vec<Prompt>) {
    let order = Seed::new(0).child("held out").permutation(prompts.len());
    let held_out: Vec<Prompt> = order.into_iter().take(count).map(|index| prompts[index].clone()).collect();
    (without(prompts, &held_out), held_out)
}

/// Drops the prompts that ask the same as a held-out one.
fn without(prompts: Vec<Prompt>, held_out: &[Prompt]) -> Vec<Prompt> {
    let text = |prompt: &Prompt| serde_json::to_string(&prompt.input).unwrap_or_default();
    let asked: HashSet<String> = held_out.iter().map(text).collect();
    prompts.into_iter().filter(|prompt| !asked.contains(&text(prompt))).collect()
}

/// Parses a column's list of messages.
///
/// # Errors
///
/// A clause that names the column if its value is no list of messages with role and content, or an empty one, or if a
/// message says something beside them: `tool_calls`, `reasoning_content`, `name`. Such keys may be there if they are
/// null or empty, as Parquet writes them.
pub(super) fn messages(column: &str, value: &Value) -> std::result::Result<Vec<Message>, String> {
    match value {
        Value::Array(turns) if !turns.is_empty() => {
            if let Some(key) = turns.iter().find_map(unread) {
                return Err(format!(
                    "a message in `{column}` has `{key}`, which no chat template is given here; leave the row out, or write it into `content`"
                ));
            }
            serde_json::from_value(value.clone())
                .map_err(|error| format!("`{column}` is no list of messages with role and content: {error}"))
        }
        other => Err(format!("`{column}` must be text or a list of messages, but is {}", kind(other))),
    }
}

/// Returns the key of a message beside `role` and `content` that says something: not null, false, nor empty.
fn unread(turn: &Value) -> Option<&String> {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.values().all(Value::is_null),
        _ => false,
    };
    let (key, _) = turn
        .as_object()?
        .iter()
        .find(|(key, value)| !["role", "content"].contains(&key.as_str()) && !says_nothing(value))?;
    Some(key)
}

/// The value under a column's name or, failing that, under a path of nested columns; null counts as absent.
pub(super) fn find<'a>(row: &'a Map<String, Value>, column: &str) -> Option<&'a Value> {
    let nested = || {
        let (outer, inner) = column.split_once('.')?;
        find(row.get(outer)?.as_object()?, inner)
    };
    row.get(column).or_else(nested).filter(|value| !value.is_null())
}

/// The error message for a missing column.
pub(super) fn missing(what: &str, column: &str, row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().map(|name| format!("`{name}`")).collect();
    let nearest = row.keys().map(|name| (levenshtein(name, column), name)).min();
    let nearest = nearest.filter(|(distance, name)| *distance * 2 <= name.len());
    let hint = nearest.map_or(String::new(), |(_, name)| format!("; did you mean `{name}`?"));
    format!("there is no column `{column}` for {what}s, only {} (`{what}_column` names it){hint}", names.join(", "))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an empty list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
