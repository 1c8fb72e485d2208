//! The comparison of an external program: a judge in any language.
//!
//! The program is started once per step. On its standard input it gets one JSON object per line and pair:
//!
//! ```json
//! {"prompt": "Sing!", "messages": [{"role": "user", "content": "Sing!"}], "answer": null, "first": "La", "second": "No"}
//! ```
//!
//! with the data set's other columns under their own names, as the [rule](crate::rule::command) of that name has them. On
//! its standard output it must print one line of JSON per pair, in order: the probability, from 0 to 1, that `first` is
//! the better one; `null` if it cannot say; or `{"probability": number or null, "reason": "…"}`. A program that fails,
//! times out or miscounts leaves every comparison missing.

use super::{Judge, Matchup};
use crate::Result;
use crate::rule::command::{self, Config, about, read};
use schema::Grade;
use serde_json::Value;

/// A judge that runs a program.
pub struct Command {
    program: command::Program,
    version: String,
}

impl Command {
    /// A judge by the program that the config names.
    ///
    /// # Errors
    ///
    /// Fails if no program is named, it does not exist or is not executable, or the timeout is not positive.
    pub fn new(config: &Config) -> Result<Self> {
        let (program, version) = config.open()?;
        Ok(Self { program, version })
    }
}

impl Judge for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        if pairs.is_empty() {
            return Vec::new();
        }
        let lines: Vec<String> = pairs.iter().map(|pair| line(pair).to_string()).collect();
        let said = self.program.run((lines.join("\n") + "\n").into_bytes());
        said.and_then(|output| read(&output, pairs.len(), "probability")).unwrap_or_else(|reason| {
            tracing::warn!(pairs = pairs.len(), reason, "the judge's program compared nothing");
            vec![Grade::Missing(reason); pairs.len()]
        })
    }
}

fn line((first, second): &Matchup<'_>) -> Value {
    about(
        &first.group.prompt,
        [("first", first.sample().text.as_str().into()), ("second", second.sample().text.as_str().into())],
    )
}
