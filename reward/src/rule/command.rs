//! The judgement of an external program: a reward in any language.
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
//! A program that fails, dawdles or miscounts leaves the whole batch unjudged, because which line belongs to which
//! sample is then unknown; a line that cannot be read leaves its own sample unjudged. Nothing becomes a zero.

mod program;

use crate::{Error, Judgement, Result, Reward, fingerprint};
use program::Program;
use schema::{Group, PromptInput, Sample};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// Which program, and how long it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The program: a path, or a name to be found on `PATH`. It has no default.
    pub program: String,
    /// Its arguments. No shell reads them.
    pub args: Vec<String>,
    /// How long the program may take for all samples of a step, in seconds; then it is killed with all that it started.
    pub timeout_s: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { program: String::new(), args: Vec::new(), timeout_s: 60.0 }
    }
}

impl Config {
    /// Makes the rule. The program must exist and be executable.
    pub fn build(&self) -> Result<Command> {
        if self.program.is_empty() {
            return Err(Error::input("`program` is missing; name an executable file"));
        }
        let limit = Duration::try_from_secs_f64(self.timeout_s).ok().filter(|limit| !limit.is_zero());
        let limit = limit.ok_or_else(|| Error::input(format!("`timeout_s` ({}) must be positive", self.timeout_s)))?;
        let program = Program::find(&self.program, &self.args, limit)?;
        // The files' content counts as code: an edited script is another reward.
        let version = fingerprint(1, &(&self.program, &self.args, program.content_hash()));
        Ok(Command { program, version })
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

    fn score(&mut self, groups: &[Group]) -> Vec<Vec<Judgement>> {
        let count = groups.iter().map(|group| group.samples.len()).sum();
        if count == 0 {
            return vec![Vec::new(); groups.len()];
        }
        let judged = self.program.run(input(groups)).and_then(|output| read(&output, count));
        let mut judgements = judged
            .unwrap_or_else(|reason| {
                tracing::warn!(samples = count, reason, "the reward program judged nothing");
                vec![Judgement::Unjudged(reason); count]
            })
            .into_iter();
        groups.iter().map(|group| judgements.by_ref().take(group.samples.len()).collect()).collect()
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
    let messages = match &group.prompt.input {
        PromptInput::Messages(messages) => json!(messages),
        PromptInput::Text(_) => Value::Null,
    };
    let mut line = json!({
        "prompt": group.prompt.question(),
        "messages": messages,
        "completion": sample.text,
        "completion_ids": sample.ids,
        "finish": sample.finish.as_str(),
        "answer": group.prompt.answer,
    });
    for (column, value) in &group.prompt.metadata {
        // A column must not pass for what the model said.
        if line.get(column).is_none() {
            line[column] = value.clone();
        }
    }
    line
}

/// One judgement per line of output, or why there is none for any.
fn read(output: &[u8], count: usize) -> std::result::Result<Vec<Judgement>, String> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() != count {
        return Err(format!("the program printed {} lines for {count} samples", lines.len()));
    }
    Ok(lines.into_iter().map(judgement).collect())
}

fn judgement(line: &str) -> Judgement {
    let shown = || line.chars().take(80).collect::<String>();
    let Ok(value) = serde_json::from_str::<Value>(line) else {
        return Judgement::unjudged(format!("the program printed what is not JSON: {}", shown()));
    };
    let reason = value.get("reason").and_then(Value::as_str).unwrap_or("does not apply");
    match value.get("reward").unwrap_or(&value) {
        Value::Null => Judgement::unjudged(reason),
        Value::Number(number) => Judgement::of(number.as_f64().map_or(f32::NAN, |number| number as f32)),
        _ => Judgement::unjudged(format!("the program printed no number, null or {{\"reward\": …}}: {}", shown())),
    }
}

#[cfg(test)]
mod tests;
