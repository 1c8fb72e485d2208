//! Words: text to token ids and back.
//!
//! The `tokenizers` crate does the work, whatever the model came in: a `tokenizer.json` is read as it is, and a GGUF
//! file's vocabulary is put together in the same form. Around it stand the chat template and the tokens that end an
//! answer, which the hub keeps in other files.

mod answer;
mod bytes;
mod folder;
mod gguf;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod to_gguf;

pub use stream::StreamDecoder;

use crate::chat_template::{ChatTemplate, Ending};
use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Token};
use std::collections::BTreeSet;

/// A model's tokenizer, with its chat template and its end-of-sequence tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<Token>,
    vocab_size: usize,
    eos: Vec<Token>,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    fn new(inner: tokenizers::Tokenizer, eos: Vec<Token>, template: Option<ChatTemplate>) -> Self {
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        Self { inner, special, vocab_size, eos, template }
    }

    /// The ids of a text as it stands. Special tokens written in it are recognised; none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        self.encode_as(text, false)
    }

    /// The ids of a text with what the tokenizer adds by default, such as a beginning-of-sequence token.
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<Token>> {
        self.encode_as(text, true)
    }

    fn encode_as(&self, text: &str, add_special: bool) -> Result<Vec<Token>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|error| Error::input(format!("the tokenizer cannot encode this text: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids. Special tokens and ids outside the vocabulary leave no trace; bytes that are not UTF-8 become
    /// U+FFFD.
    pub fn decode(&self, ids: &[Token]) -> String {
        // Only decoders that a tokenizer.json defines with regular expressions can fail, and only on absurd input.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// A decoder for tokens that come one at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The ids that the model continues: a conversation through the chat template, up to the opening of the
    /// assistant's turn; a text with what the tokenizer adds by default.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<Token>> {
        let ids = match &prompt.input {
            PromptInput::Text(text) => self.encode_with_special(text)?,
            // The template writes its own special tokens: adding more would double the first.
            PromptInput::Messages(messages) => self.encode(&self.render(messages, Ending::AssistantOpening)?)?,
        };
        if ids.is_empty() {
            return Err(Error::input("a prompt has no tokens, so there is nothing to continue; give it some text"));
        }
        Ok(ids)
    }

    /// The text of a conversation in the model's chat template.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::input("the model has no chat template; give prompts as plain text instead of messages")
        })?;
        template.render(messages, ending)
    }

    /// Whether conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The vocabulary's entry for a token, in the vocabulary's own spelling (`Ġthe`, `▁the`).
    pub fn token_text(&self, token: Token) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The id of a vocabulary entry.
    pub fn token_id(&self, text: &str) -> Option<Token> {
        self.inner.token_to_id(text)
    }

    /// One more than the highest id. The network may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The tokens that end an answer.
    pub fn eos_ids(&self) -> &[Token] {
        &self.eos
    }

    /// Whether this token is a mark and not text, such as the end of a turn.
    pub fn is_special(&self, token: Token) -> bool {
        self.special.contains(&token)
    }
}

/// An error in a tokenizer that came with a model.
fn unusable(problem: impl std::fmt::Display) -> Error {
    Error::input(format!("the tokenizer cannot be used: {problem}"))
}
