//! Chat templates: Jinja programs that turn a conversation into the text a model was trained on.
//!
//! Templates are written for Python's Jinja as `transformers` sets it up, so this environment copies that set-up:
//! blocks strip the line break after them and the blanks before them, `\r\n` in a template is a line break, Python's
//! string methods exist (`chat_template/python.rs`), and so do `raise_exception`, `strftime_now`, a `tojson` that
//! writes what Python's `json.dumps` writes, and the `{% generation %}` block (which only marks text and changes none
//! of it).
//!
//! A template is a program that comes with a model's folder, so it has limits: [`STEPS`] for its work and
//! [`LONGEST_TEXT`] for what it writes. minijinja itself charges nothing for joining lists by `+`, nor for writing a value
//! into a text before the text is whole; so a template that doubles a list, or puts it into itself twice, some thirty
//! times over can still take all memory.

mod clock;
mod json;
mod python;
#[cfg(test)]
mod tests;

pub use clock::Moment;

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use schema::Message;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// The template of models that mark turns with `<|im_start|>` and `<|im_end|>`.
pub const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
     {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Budget of one rendering: an instruction costs 1, and 64 bytes of text that is made or read cost 1. A conversation of
/// a million words needs about a tenth.
pub const STEPS: u64 = 4_000_000;

/// Bytes that one rendering may write.
pub const LONGEST_TEXT: usize = 16 << 20;

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    date: Arc<Mutex<Option<Moment>>>,
    tells_the_date: bool,
}

/// The end of a rendered conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The opening of the assistant's next turn, for the model to continue.
    AssistantOpening,
    /// The last message.
    LastMessage,
    /// The content of the last message, whose turn stays open for the model to continue. `transformers` calls it
    /// `continue_final_message`.
    InsideLastMessage,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the variables that it may use, such as `bos_token`.
    ///
    /// # Errors
    /// If the template is not valid Jinja.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the standard delimiters are valid"));
        environment.set_fuel(Some(STEPS));
        python::add(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        let date = Arc::new(Mutex::new(None));
        let clock = Arc::clone(&date);
        environment.add_function("strftime_now", move |format: &str| {
            let moment = pinned(&clock).unwrap_or_else(Moment::now);
            moment.format(format).map_err(|problem| minijinja::Error::new(ErrorKind::InvalidOperation, problem))
        });
        environment.add_filter("tojson", json::to_json);
        // As Jinja's lexer reads a template. What messages hold is left alone.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment.add_template_owned(NAME, unmark_generation(&source)).map_err(|error| failure(&error))?;
        Ok(Self { environment, special_tokens, date, tells_the_date: source.contains("strftime_now") })
    }

    /// True if the template asks for the date, so that its prompts change from day to day.
    pub fn tells_the_date(&self) -> bool {
        self.tells_the_date
    }

    /// Lets `strftime_now` show this moment from now on, instead of the clock's.
    pub fn pin_date(&self, moment: Moment) {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(moment);
    }

    /// Renders a conversation as text.
    ///
    /// # Errors
    /// If the template fails on these messages, refuses them by `raise_exception`, does not end or writes too much, or
    /// leaves out the message whose turn must stay open.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        match messages.split_last() {
            Some((last, before)) if ending == Ending::InsideLastMessage => {
                // The blank shows whether the template trims what a message holds.
                let last = Message { content: format!("{}{MARK} ", last.content), ..last.clone() };
                let text = self.write(&[before, &[last]].concat(), false)?;
                let end = text.rfind(MARK).ok_or_else(|| {
                    Error::input(
                        "the model's chat template leaves out the last message, so it cannot be continued; end the \
                         prompt with the user's turn",
                    )
                })?;
                let trimmed = !text[end + MARK.len()..].starts_with(' ');
                Ok(if trimmed { text[..end].trim_end() } else { &text[..end] }.to_owned())
            }
            _ => self.write(messages, ending == Ending::AssistantOpening),
        }
    }

    fn write(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            ..Value::from(Serde(&self.special_tokens))
        };
        let template = self.environment.get_template(NAME).expect("`new` added it");
        let mut text = Bounded { bytes: Vec::new(), full: false };
        let written = template.render_captured_to(variables, &mut text).map(drop);
        if text.full {
            return Err(Error::input(format!(
                "the chat template writes more than {} MB for this conversation; check the model's chat template, or \
                 give prompts as plain text",
                LONGEST_TEXT >> 20
            )));
        }
        written.map_err(|error| failure(&error))?;
        Ok(String::from_utf8(text.bytes).expect("templates write text"))
    }
}

const NAME: &str = "chat_template";

/// The end of a message that is to be continued; it is cut off again with what follows.
const MARK: &str = "\u{f0000}the answer goes on here\u{f0001}";

fn pinned(date: &Mutex<Option<Moment>>) -> Option<Moment> {
    *date.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of a template, up to [`LONGEST_TEXT`].
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full = self.full || self.bytes.len() + bytes.len() > LONGEST_TEXT;
        if self.full {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failure(error: &minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::input(format!(
            "the chat template does not end{line}: it was stopped after {} million steps; check the model's chat \
             template, or give prompts as plain text",
            STEPS / 1_000_000
        ));
    }
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::input(format!("chat template{line}: {detail}"))
}

/// Replaces the block tags `generation` and `endgeneration` by a condition that always holds, with their whitespace
/// marks kept.
fn unmark_generation(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = split_tag(rest) {
        result.push_str(before);
        let replacement = match tag.trim_matches(['-', '+']).trim() {
            "generation" => Some(("generation", "if true")),
            "endgeneration" => Some(("endgeneration", "endif")),
            _ => None,
        };
        let tag = replacement.map_or_else(|| tag.to_owned(), |(word, new)| tag.replace(word, new));
        result.extend(["{%", &tag, "%}"]);
        rest = after;
    }
    result + rest
}

/// The text before the next `{% … %}`, what is inside it, and what follows it.
fn split_tag(source: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = source.split_once("{%")?;
    let (tag, after) = rest.split_once("%}")?;
    Some((before, tag, after))
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja's functions take owned arguments")]
fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("refuses this conversation: {message}")))
}
