//! Sources of prompts.
//!
//! A source maps an index to a prompt, always to the same one, so a resumed run continues exactly where it stopped
//! without any saved state. [`Epochs`] shuffles finite sources anew for each pass.
//!
//! One file per source. A new one needs its file, with an `open` that makes [`Sources`] of its settings and `files` that
//! lists what it reads, and its line in the list below.
//!
//! ```toml
//! [prompts.jsonl]
//! path = "gsm8k.jsonl"
//! prompt_column = "question"
//! held_out_count = 200
//! ```

mod epochs;
pub mod examples;
pub mod table;

pub use epochs::Epochs;

use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Seed};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Declares the sources' modules, the config enum over them (externally tagged, so that a config names a source as a
/// table's key), and the functions that open a config's prompts.
macro_rules! sources {
    ($($(#[doc = $doc:literal])+ $variant:ident($config:ty) in $module:ident;)+) => {
        $(pub mod $module;)+

        /// `[prompts.<source>]`
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Config {
            $($(#[doc = $doc])+ $variant($config),)+
        }

        impl Config {
            /// Opens the source for rows of this kind; see [`examples`] for the columns of completions.
            ///
            /// # Errors
            ///
            /// As [`open`](Self::open), and if a row lacks the completions of its kind.
            pub fn open_rows(&self, kind: RowKind, seed: &Seed) -> Result<Sources> {
                match self {
                    $(Self::$variant(config) => $module::open(config, kind, seed),)+
                }
            }

            /// Returns the paths of the files that the prompts come from.
            pub fn files(&self) -> Vec<&Path> {
                match self {
                    $(Self::$variant(config) => $module::files(config),)+
                }
            }
        }
    };
}

sources! {
    /// A text file with one JSON object per line.
    Jsonl(table::Config) in jsonl;
    /// A Parquet file.
    Parquet(table::Config) in parquet;
    /// Sums, differences and products of two small numbers, generated on the spot.
    Arithmetic(arithmetic::Config) in arithmetic;
}

impl Config {
    /// Opens the source for its prompts; endless sources sample from `seed`.
    ///
    /// # Errors
    ///
    /// An input error if a file is missing, empty or malformed, a column is missing, or a setting is out of range.
    pub fn open(&self, seed: &Seed) -> Result<Sources> {
        self.open_rows(RowKind::Prompts, seed)
    }

    /// Computes the SHA-256 of the files' contents, in hexadecimal; `None` if the prompts come from no file. It does not
    /// depend on where the files lie.
    ///
    /// # Errors
    ///
    /// An input error if a file cannot be read.
    pub fn fingerprint(&self) -> Result<Option<String>> {
        let files = self.files();
        let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        for path in &files {
            let problem = |error| Error::input(format!("cannot read prompts from {}: {error}", path.display()));
            let mut file = File::open(path).map_err(problem)?;
            let mut length = 0;
            loop {
                let count = file.read(&mut buffer).map_err(problem)?;
                if count == 0 {
                    break;
                }
                digest.update(&buffer[..count]);
                length += count as u64;
            }
            digest.update(length.to_le_bytes());
        }
        Ok((!files.is_empty()).then(|| schema::hex(&digest.finalize())))
    }
}

/// Prompts by index, counted from 0. The same index always gives the same prompt.
pub enum PromptSource {
    /// Prompts in memory.
    Finite(Vec<Prompt>),
    /// Prompts without end, each computed from its index.
    Endless(Box<dyn Fn(u64) -> Prompt + Send>),
}

impl PromptSource {
    /// Number of prompts; `None` if the source is endless.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Finite(prompts) => Some(prompts.len() as u64),
            Self::Endless(_) => None,
        }
    }

    /// True if there are no prompts at all.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Returns the prompt at `index`.
    ///
    /// # Errors
    ///
    /// A runtime error if the source is finite and `index` is past its end.
    pub fn prompt(&self, index: u64) -> Result<Prompt> {
        match self {
            Self::Finite(prompts) => {
                let prompt = usize::try_from(index).ok().and_then(|index| prompts.get(index));
                let missing = || Error::runtime(format!("there is no prompt {index} among {}", prompts.len()));
                prompt.cloned().ok_or_else(missing)
            }
            Self::Endless(prompt) => Ok(prompt(index)),
        }
    }
}

/// Training prompts, and prompts kept from training for evaluation.
pub struct Sources {
    /// Prompts to train on.
    pub train: PromptSource,
    /// Prompts never seen in training; finite.
    pub held_out: Option<PromptSource>,
}

impl Sources {
    /// The sources of these prompts; an empty list holds nothing out.
    fn new(train: PromptSource, held_out: Vec<Prompt>) -> Self {
        Self { train, held_out: (!held_out.is_empty()).then_some(PromptSource::Finite(held_out)) }
    }
}

/// The content that each row of a source must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A prompt, to be answered by the policy.
    Prompts,
    /// A prompt and a completion to imitate.
    Demonstrations,
    /// A prompt, a completion, and a label that says whether it is a good one.
    Labelled,
    /// A prompt, a chosen completion and a rejected one.
    Pairs,
}

/// The form of a prompt that is plain text.
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
    /// Returns the text in this form, after the system turn if that is not empty.
    fn input(self, system: &str, text: String) -> PromptInput {
        match self {
            Self::Text => PromptInput::Text(text),
            Self::Chat => PromptInput::Messages(with_system(system, vec![Message::user(text)])),
        }
    }

    /// Refuses a system turn for raw text.
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
