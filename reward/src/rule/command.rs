//! The grade of an external program: a reward in any language.
//!
//! The program is started once per step. On its standard input it gets one JSON object per line and sample:
//!
//! ```json
//! {"prompt": "What is 7+15?", "messages": [{"role": "user", "content": "What is 7+15?"}], "completion": "22",
//!  "completion_ids": [34, 34, 0], "finish": "eos", "answer": "22", "x": 7, "y": 15}
//! ```
//!
//! `prompt` is the raw text or the last user turn, `messages` is null for raw text, `answer` is null if unknown; the
//! data set's other columns follow under their own names, as in TRL. On its standard output it must print one line of
//! JSON per sample, in order: a number; `null` for "does not apply"; or `{"reward": number or null, "reason": "…"}`.
//!
//! A program that fails, times out or miscounts leaves the whole batch ungraded, because it is then unknown which line
//! belongs to which sample; a line that cannot be read leaves its own sample ungraded. Nothing becomes a zero.

mod program;

pub(crate) use program::Program;

use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group, Prompt, PromptInput, Sample};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// The program, and its time limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The program: a path, or a name to be found on `PATH`. It has no default.
    pub program: String,
    /// Arguments of the program. No shell reads them.
    pub args: Vec<String>,
    /// The time limit for all samples of a step, in seconds; then the program is killed with all that it started.
    pub timeout_s: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { program: String::new(), args: Vec::new(), timeout_s: 60.0 }
    }
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Fails if no program is named, it does not exist or is not executable, or the timeout is not positive.
    pub fn build(&self) -> Result<Command> {
        let (program, version) = self.open()?;
        Ok(Command { program, version })
    }

    /// The program, and a version that changes with the content of its files.
    ///
    /// # Errors
    ///
    /// An input error if no program is named, it does not exist or is not executable, or the timeout is not positive.
    pub(crate) fn open(&self) -> Result<(Program, String)> {
        if self.program.is_empty() {
            return Err(Error::input("`program` is missing; name an executable file"));
        }
        let limit = Duration::try_from_secs_f64(self.timeout_s).ok().filter(|limit| !limit.is_zero());
        let limit = limit.ok_or_else(|| Error::input(format!("`timeout_s` ({}) must be positive", self.timeout_s)))?;
        let program = Program::find(&self.program, &self.args, limit)?;
        // The files' content counts as code: an edited script is another reward.
        let version = fingerprint(1, &(&self.program, &self.args, program.content_hash()));
        Ok((program, version))
    }
}

/// A reward that an external program gives.
pub struct Command {
    program: Program,
    version: String,
}

impl Reward for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        let count = groups.iter().map(|group| group.samples.len()).sum();
        if count == 0 {
            return vec![Vec::new(); groups.len()];
        }
        let printed = self.program.run(input(groups)).and_then(|output| read(&output, count, "reward"));
        let mut grades = printed
            .unwrap_or_else(|reason| {
                tracing::warn!(samples = count, reason, "the reward program graded nothing");
                vec![Grade::Missing(reason); count]
            })
            .into_iter();
        groups.iter().map(|group| grades.by_ref().take(group.samples.len()).collect()).collect()
    }
}

/// One line of JSON per sample.
fn input(groups: &[Group]) -> Vec<u8> {
    let mut lines = Vec::new();
    for group in groups {
        for sample in &group.samples {
            lines.extend_from_slice(line(group, sample).to_string().as_bytes());
            lines.push(b'\n');
        }
    }
    lines
}

fn line(group: &Group, sample: &Sample) -> Value {
    let own = [
        ("completion", json!(sample.text)),
        ("completion_ids", json!(sample.ids)),
        ("finish", json!(sample.finish.as_str())),
    ];
    about(&group.prompt, own)
}

/// Makes a program's line of input: the prompt, the fields `own` to the line, and the data set's other columns.
pub(crate) fn about<const N: usize>(prompt: &Prompt, own: [(&str, Value); N]) -> Value {
    let messages = match &prompt.input {
        PromptInput::Messages(messages) => json!(messages),
        PromptInput::Text(_) => Value::Null,
    };
    let mut line = json!({ "prompt": prompt.question(), "messages": messages, "answer": prompt.answer });
    for (name, value) in own {
        line[name] = value;
    }
    for (column, value) in &prompt.metadata {
        // A column of the data set must not pass for the model's completion.
        if line.get(column).is_none() {
            line[column] = value.clone();
        }
    }
    line
}

/// Reads one grade per line of output, `count` in all. `key` names the number in an object.
///
/// # Errors
///
/// The reason, as a clause, if the number of lines is not `count`: no line can then be matched with its sample.
pub(crate) fn read(output: &[u8], count: usize, key: &str) -> std::result::Result<Vec<Grade>, String> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() != count {
        let what = if key == "reward" { "samples" } else { "pairs" };
        return Err(format!("the program printed {} lines for {count} {what}", lines.len()));
    }
    Ok(lines.into_iter().map(|line| grade(line, key)).collect())
}

fn grade(line: &str, key: &str) -> Grade {
    let shown = || line.chars().take(80).collect::<String>();
    let Ok(value) = serde_json::from_str::<Value>(line) else {
        return Grade::missing(format!("the program printed what is not JSON: {}", shown()));
    };
    let reason = value.get("reason").and_then(Value::as_str).unwrap_or("does not apply");
    match value.get(key).unwrap_or(&value) {
        Value::Null => Grade::missing(reason),
        Value::Number(number) => Grade::of(number.as_f64().map_or(f32::NAN, |number| number as f32)),
        _ => Grade::missing(format!("the program printed no number, null or {{\"{key}\": …}}: {}", shown())),
    }
}

#[cfg(test)]
mod tests;
