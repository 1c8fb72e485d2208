//! Tokenizers: text to token ids and back.
//!
//! The `tokenizers` crate does the work for every model format: a `tokenizer.json` is read as it is, and a GGUF file's
//! vocabulary is converted to the same form. The chat template and the tokens that end an answer, which the hub keeps
//! in other files, belong to the [`Tokenizer`] too.

mod added;
mod answer;
mod bytes;
mod folder;
mod gguf;
mod growth;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod to_gguf;

pub use stream::StreamDecoder;

use crate::chat_template::{ChatTemplate, Ending, Moment};
use crate::{Error, Result};
use schema::{Message, Prompt, PromptInput, Token};
use std::collections::BTreeSet;

/// A model's tokenizer, with its chat template and its end-of-sequence tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    eos: Vec<Token>,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    fn new(inner: tokenizers::Tokenizer, eos: Vec<Token>, template: Option<ChatTemplate>) -> Self {
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        Self { inner, vocab_size, eos, template }
    }

    /// Encodes a text without adding special tokens; those written in it are recognised.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        self.encode_as(text, false)
    }

    /// Encodes a text with the special tokens that the tokenizer adds by default, such as a beginning-of-sequence
    /// token.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
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

    /// Decodes ids into text. Special tokens and ids outside the vocabulary are skipped; bytes that are not UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[Token]) -> String {
        // Only decoders that a tokenizer.json defines with regular expressions can fail, and only on absurd input.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// A decoder for tokens that come one at a time.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The ids that the model continues: a conversation in the chat template, up to the opening of the assistant's
    /// turn; a text with the special tokens that the tokenizer adds by default.
    ///
    /// A conversation whose last turn is the assistant's gives the answer its beginning: the prompt ends inside that
    /// turn, as TRL renders it (`continue_final_message`).
    ///
    /// # Errors
    /// If the prompt has no tokens, cannot be encoded, or is a conversation that the chat template is missing for or
    /// refuses.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<Token>> {
        match &prompt.input {
            PromptInput::Messages(messages) if begins_the_answer(messages) => {
                some(self.encode(&self.prompt_text(prompt)?)?)
            }
            _ => self.new_turn_ids(prompt),
        }
    }

    /// [`Self::prompt_ids`], but a conversation always ends with the opening of a new turn of the assistant, also after
    /// one of its own turns, as servers of chat completions render it.
    ///
    /// # Errors
    /// As [`Self::prompt_ids`].
    pub fn new_turn_ids(&self, prompt: &Prompt) -> Result<Vec<Token>> {
        some(match &prompt.input {
            PromptInput::Text(text) => self.encode_with_special(text)?,
            // The template writes its own special tokens: adding more would double the first.
            PromptInput::Messages(messages) => self.encode(&self.render(messages, Ending::AssistantOpening)?)?,
        })
    }

    /// The text that the model continues: [`Self::prompt_ids`] before it is encoded.
    ///
    /// # Errors
    /// If the prompt is a conversation that the chat template is missing for or refuses.
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<String> {
        match &prompt.input {
            PromptInput::Text(text) => Ok(text.clone()),
            PromptInput::Messages(messages) if begins_the_answer(messages) => {
                self.render(messages, Ending::InsideLastMessage)
            }
            PromptInput::Messages(messages) => self.render(messages, Ending::AssistantOpening),
        }
    }

    /// Renders a conversation in the model's chat template.
    ///
    /// # Errors
    /// If the model has no chat template, or the template refuses the conversation.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::input("the model has no chat template; give prompts as plain text instead of messages")
        })?;
        template.render(messages, ending)
    }

    /// True if the chat template writes the date, so that prompts change from day to day.
    pub fn tells_the_date(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::tells_the_date)
    }

    /// Lets the chat template write this date from now on, instead of the clock's.
    pub fn pin_date(&self, moment: Moment) {
        self.template.iter().for_each(|template| template.pin_date(moment));
    }

    /// The vocabulary's entry for a token, in the vocabulary's own spelling (`Ġthe`, `▁the`).
    pub fn token_text(&self, token: Token) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// One more than the highest id, which is the number of tokens with text. The model's file may have more rows of
    /// embeddings; a loaded network has not.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The number of ids below [`Self::vocab_size`] that no token has.
    pub fn gaps(&self) -> usize {
        let ids: BTreeSet<Token> = self.inner.get_vocab(true).into_values().collect();
        self.vocab_size - ids.len()
    }

    /// The tokens that end an answer.
    pub fn eos_ids(&self) -> &[Token] {
        &self.eos
    }
}

/// True if a conversation ends with the beginning of the answer.
fn begins_the_answer(messages: &[Message]) -> bool {
    messages.last().is_some_and(|last| last.role == "assistant")
}

/// The ids, unless there are none.
fn some(ids: Vec<Token>) -> Result<Vec<Token>> {
    if ids.is_empty() {
        return Err(Error::input("a prompt has no tokens, so there is nothing to continue; give it some text"));
    }
    Ok(ids)
}

/// An error in a tokenizer that came with a model.
fn unusable(problem: impl std::fmt::Display) -> Error {
    Error::input(format!("the tokenizer cannot be used: {problem}"))
}
