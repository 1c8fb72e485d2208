//! Where prompts come from.
//!
//! A source is a function from a number to a prompt: the n-th prompt is the same whenever it is asked for, so that a
//! resumed run goes on exactly where it stopped, with nothing to be saved. Finite sources are shuffled anew for each
//! pass by [`Epochs`].
//!
//! ```toml
//! [prompts.jsonl]
//! path = "gsm8k.jsonl"
//! prompt_column = "question"
//! held_out_count = 200
//! ```

pub mod arithmetic;
mod epochs;
pub mod examples;
mod jsonl;
mod parquet;
pub mod table;

pub use epochs::Epochs;

use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Seed};
use serde::{Deserialize, Serialize};

/// A source of prompts.
pub trait PromptSource: Send {
    /// How many different prompts there are; `None` if the source never ends.
    fn len(&self) -> Option<u64>;

    /// Whether there is no prompt at all.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The prompt with this number, counted from 0: always the same one. Fails if a finite source has no such prompt.
    fn prompt(&self, index: u64) -> Result<Prompt>;
}

/// What to train on, and what to keep from training so that progress can be measured.
pub struct Sources {
    /// Prompts to train on.
    pub train: Box<dyn PromptSource>,
    /// Prompts that training never sees; finite.
    pub held_out: Option<Box<dyn PromptSource>>,
}

/// `[prompts.<source>]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    /// A text file with one JSON object per line.
    Jsonl(table::Config),
    /// A Parquet file.
    Parquet(table::Config),
    /// Sums, differences and products of two small numbers, made on the spot.
    Arithmetic(arithmetic::Config),
}

impl Config {
    /// Opens the source for its prompts; endless ones draw from `seed`. Errors are the input's: a file that is missing,
    /// empty or malformed, a column that is not there, a setting that makes no sense.
    pub fn open(&self, seed: &Seed) -> Result<Sources> {
        self.open_rows(RowKind::Prompts, seed)
    }

    /// Opens the source for rows of this kind, with the same errors; [`examples`] says where their completions are.
    pub fn open_rows(&self, kind: RowKind, seed: &Seed) -> Result<Sources> {
        match self {
            Self::Jsonl(config) => config.open(kind, jsonl::read),
            Self::Parquet(config) => config.open(kind, parquet::read),
            Self::Arithmetic(config) => config.open(kind, seed),
        }
    }
}

/// What is asked of the rows of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A prompt, which the policy answers.
    Prompts,
    /// A prompt and a completion to imitate.
    Demonstrations,
    /// A prompt, a chosen completion and a rejected one.
    Pairs,
}

/// What a prompt that is plain text becomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// One user turn, rendered by the model's chat template.
    #[default]
    Chat,
    /// Raw text, continued as it stands.
    Text,
}

impl Form {
    /// The text in this form, behind the system turn if that is not empty.
    fn input(self, system: &str, text: String) -> PromptInput {
        match self {
            Self::Text => PromptInput::Text(text),
            Self::Chat => PromptInput::Messages(with_system(system, vec![Message::user(text)])),
        }
    }

    /// Refuses a system turn where there are no turns.
    fn check(self, system: &str) -> Result<()> {
        if self == Self::Text && !system.is_empty() {
            return Err(Error::input("`system` needs chat; remove it or set `as = \"chat\"`"));
        }
        Ok(())
    }
}

/// Puts a system turn first, unless it is empty or the conversation has its own.
fn with_system(system: &str, mut messages: Vec<Message>) -> Vec<Message> {
    if !system.is_empty() && messages.first().is_none_or(|first| first.role != "system") {
        messages.insert(0, Message { role: "system".into(), content: system.into() });
    }
    messages
}

/// Prompts in memory.
struct Listed(Vec<Prompt>);

impl PromptSource for Listed {
    fn len(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }

    fn prompt(&self, index: u64) -> Result<Prompt> {
        let prompt = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        prompt.cloned().ok_or_else(|| Error::runtime(format!("there is no prompt {index} among {}", self.0.len())))
    }
}
