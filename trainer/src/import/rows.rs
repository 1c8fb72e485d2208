//! Prompts with their completions, read from the rows of a file.
//!
//! Prompts, answers and metadata are read as for training; the columns about completions are removed from the metadata,
//! so that a prompt is the same whichever completion it comes with.

use super::Import;
use crate::{Error, Result};
use rollout::prompts::{Config, table};
use schema::{Finish, Prompt, Seed, Token};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::ffi::OsStr;

/// A prompt with its completions.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) prompt: Prompt,
    pub(super) completions: Vec<Completion>,
}

/// A completion as the file gives it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Completion {
    pub(super) text: String,
    pub(super) finish: Finish,
    pub(super) reward: Option<f32>,
    pub(super) ids: Option<Vec<Token>>,
}

/// Reads every row of the file; single completions of one prompt are grouped, in the order of their first.
pub(super) fn read(import: &Import<'_>) -> Result<Vec<Row>> {
    let path = import.file;
    let table = table::Config {
        path: path.to_owned(),
        prompt_column: import.prompt_column.to_owned(),
        answer_column: import.answer_column.map(str::to_owned),
        form: import.form,
        ..table::Config::default()
    };
    let config = match path.extension().and_then(OsStr::to_str) {
        Some("jsonl") => Config::Jsonl(table),
        Some("parquet") => Config::Parquet(table),
        _ => {
            let path = path.display();
            return Err(Error::input(format!("cannot tell the format of {path}; name it .jsonl or .parquet")));
        }
    };
    let source = config.open(&Seed::new(0))?.train;
    let count = source.len().ok_or_else(|| Error::runtime("a file has an end"))?;
    let mut rows: Vec<Row> = Vec::new();
    let mut joined: HashMap<String, usize> = HashMap::new();
    for index in 0..count {
        let at = |problem| Error::input(format!("{}: row {}: {problem}", path.display(), index + 1));
        let mut prompt = source.prompt(index)?;
        let completions = completions(&mut prompt.metadata).map_err(at)?;
        match completions {
            Completions::One(completion) => {
                let group = *joined.entry(prompt.hash()).or_insert(rows.len());
                if group == rows.len() {
                    rows.push(Row { prompt, completions: Vec::new() });
                }
                rows[group].completions.push(completion);
            }
            Completions::Several(completions) => rows.push(Row { prompt, completions }),
        }
    }
    Ok(rows)
}

/// Completions of one row.
enum Completions {
    One(Completion),
    Several(Vec<Completion>),
}

/// Removes the columns about completions from the metadata and parses them; the error is a sentence about the first
/// malformed one.
fn completions(columns: &mut Map<String, Value>) -> std::result::Result<Completions, String> {
    let mut take = |name: &str| columns.remove(name).filter(|value| !value.is_null());
    let [one, several] = ["completion", "completions"].map(&mut take);
    let [reward, rewards] = ["reward", "rewards"].map(&mut take);
    let [finish, finishes] = ["finish", "finishes"].map(&mut take);
    let ids = take("completion_ids");
    match (one, several) {
        (Some(one), None) => Ok(Completions::One(Completion {
            text: text(&one)?,
            finish: finish_of(finish.as_ref())?,
            reward: number(reward.as_ref())?,
            ids: ids.and_then(|ids| serde_json::from_value(ids).ok()),
        })),
        (None, Some(Value::Array(several))) if !several.is_empty() => {
            let rewards = per_completion("rewards", rewards, several.len())?;
            let finishes = per_completion("finishes", finishes, several.len())?;
            let each = several.iter().zip(rewards).zip(finishes);
            let completion = |((one, reward), finish): ((&Value, Option<Value>), Option<Value>)| {
                let (finish, reward) = (finish_of(finish.as_ref())?, number(reward.as_ref())?);
                Ok(Completion { text: text(one)?, finish, reward, ids: None })
            };
            Ok(Completions::Several(each.map(completion).collect::<std::result::Result<_, String>>()?))
        }
        (None, Some(_)) => Err("`completions` must be a list of at least one completion".into()),
        (Some(_), Some(_)) => Err("it has both `completion` and `completions`; keep one of them".into()),
        (None, None) => Err("it has neither a column `completion` nor `completions`".into()),
    }
}

/// Returns one value per completion; all `None` if the column is missing.
fn per_completion(name: &str, values: Option<Value>, count: usize) -> std::result::Result<Vec<Option<Value>>, String> {
    match values {
        None => Ok(vec![None; count]),
        Some(Value::Array(values)) if values.len() == count => Ok(values.into_iter().map(Some).collect()),
        Some(_) => Err(format!("`{name}` must be a list of {count} values, as `completions` is")),
    }
}

/// Returns the text: a string, or the joined turns of a conversation.
fn text(value: &Value) -> std::result::Result<String, String> {
    let turn = |turn: &Value| turn.get("content").and_then(Value::as_str).map(str::to_owned);
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(turns) => {
            let turns: Option<Vec<String>> = turns.iter().map(turn).collect();
            turns.map(|turns| turns.join("\n")).ok_or_else(|| "a completion is a list without `content`".into())
        }
        _ => Err("a completion must be text or a list of messages".into()),
    }
}

/// Returns the reward if there is one; it must be finite.
fn number(value: Option<&Value>) -> std::result::Result<Option<f32>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().map(|number| number as f32).filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("the reward {value} is no finite number")),
        },
    }
}

/// Returns the reason for the end of a completion; without one it is the end-of-sequence token.
fn finish_of(value: Option<&Value>) -> std::result::Result<Finish, String> {
    match value {
        None | Some(Value::Null) => Ok(Finish::Eos),
        Some(value) => value
            .as_str()
            .and_then(Finish::parse)
            .ok_or_else(|| format!("`finish` is {value}; it must be \"eos\", \"stop\" or \"length\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(row: Value) -> std::result::Result<(Vec<Completion>, Map<String, Value>), String> {
        let Value::Object(mut columns) = row else { panic!("a row is an object") };
        let completions = match completions(&mut columns)? {
            Completions::One(one) => vec![one],
            Completions::Several(several) => several,
        };
        Ok((completions, columns))
    }

    fn completion(text: &str, finish: Finish, reward: Option<f32>) -> Completion {
        Completion { text: text.into(), finish, reward, ids: None }
    }

    #[test]
    fn columns_about_completions_leave_the_metadata() {
        let (found, left) = taken(json!({"completion": "4", "reward": 0.5, "finish": "length", "level": 3})).unwrap();
        assert_eq!(found, [completion("4", Finish::Length, Some(0.5))]);
        assert_eq!(Value::Object(left), json!({"level": 3}));
        let row = json!({"completions": ["4", [{"role": "assistant", "content": "5"}]], "rewards": [1, null]});
        let (found, left) = taken(row).unwrap();
        assert_eq!(found, [completion("4", Finish::Eos, Some(1.0)), completion("5", Finish::Eos, None)]);
        assert!(left.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let cases = [
            (json!({"text": "4"}), "neither a column `completion`"),
            (json!({"completion": "4", "completions": ["4"]}), "keep one of them"),
            (json!({"completions": []}), "at least one"),
            (json!({"completions": ["4"], "rewards": [1, 2]}), "a list of 1 values"),
            (json!({"completion": 4}), "must be text"),
            (json!({"completion": "4", "reward": "good"}), "no finite number"),
            (json!({"completion": "4", "finish": "bored"}), "\"eos\", \"stop\" or \"length\""),
        ];
        for (row, words) in cases {
            let error = taken(row.clone()).unwrap_err();
            assert!(error.contains(words), "{row}: {error}");
        }
    }
}
