//! Chat templates: Jinja programs that turn a conversation into the text a model was trained on.
//!
//! Templates are written for Python's Jinja as `transformers` sets it up, so this environment copies that set-up:
//! blocks strip the line break after them and the blanks before them, Python's string methods exist, and so do
//! `raise_exception`, `strftime_now`, a `tojson` that writes what Python's `json.dumps` writes, and the
//! `{% generation %}` block (which only marks text and changes none of it).

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use schema::Message;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The template of models that mark turns with `<|im_start|>` and `<|im_end|>`.
pub const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
     {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

/// The end of a rendered conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The opening of the assistant's next turn, for the model to continue.
    AssistantOpening,
    /// The last message.
    LastMessage,
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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, unmark_generation(source)).map_err(|error| failure(&error))?;
        Ok(Self { environment, special_tokens })
    }

    /// Renders a conversation as text.
    ///
    /// # Errors
    /// If the template fails on these messages, or refuses them by `raise_exception`.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt => ending == Ending::AssistantOpening,
            tools => (),
            documents => (),
            ..Value::from(Serde(&self.special_tokens))
        };
        let template = self.environment.get_template(NAME).expect("`new` added it");
        template.render(variables).map_err(|error| failure(&error))
    }
}

const NAME: &str = "chat_template";

fn failure(error: &minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
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

/// The local time in the C library's `strftime` format. A template that uses it renders differently from day to day.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let format = std::ffi::CString::new(format)
        .map_err(|_| minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: a format with a zero byte"))?;
    let mut text = [0u8; 256];
    // SAFETY: `time` accepts a null pointer; `broken_down` is plain data that `localtime_r` fills; `strftime` writes at
    // most `text.len()` bytes and returns how many.
    let len = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut broken_down: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut broken_down);
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &raw const broken_down)
    };
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja's functions take owned arguments")]
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options change nothing that templates rely on.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(name)?;
    }
    options.assert_all_used()?;
    let spaces;
    let text = match indent {
        None => write_json(value, OneLine),
        Some(indent) => {
            spaces = " ".repeat(indent);
            write_json(value, PrettyFormatter::with_indent(spaces.as_bytes()))
        }
    };
    text.map(Value::from_safe_string)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

fn write_json(value: &Value, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

/// JSON on one line, with Python's blank after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        ChatTemplate::new(source, tokens)?.render(messages, Ending::AssistantOpening)
    }

    #[test]
    fn chatml_opens_the_assistants_turn() {
        let text = render(CHATML, &[message("system", "Be brief."), message("user", "1+1?")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn blocks_eat_their_line_and_python_methods_work() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n  {% if m['role'] == 'user' %}\n{{ m['content'].strip().split('|')[-1] }}\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, &[message("user", "  a|b ")]).unwrap(), "<s>\nb\n");
    }

    #[test]
    fn generation_blocks_only_mark() {
        let source = "{%- for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{%- generation -%} x {%- endgeneration -%}{% endfor %}";
        assert_eq!(render(source, &[message("user", "a")]).unwrap(), "[a]x");
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        let source = "{{ {'a': [1, 2.5, true, none], 'b': '<é>'} | tojson }} {{ [1] | tojson(indent=2) }}";
        assert_eq!(render(source, &[]).unwrap(), "{\"a\": [1, 2.5, true, null], \"b\": \"<é>\"} [\n  1\n]");
    }

    #[test]
    fn a_refusal_carries_the_templates_words() {
        let source =
            "{{ bos_token }}\n{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}";
        let error = render(source, &[message("system", "x")]).unwrap_err();
        assert!(error.is_input());
        assert_eq!(error.to_string(), "chat template, line 2: refuses this conversation: no system role");
    }

    #[test]
    fn a_broken_template_is_named_with_its_line() {
        let error = render("a\n{% for %}", &[]).unwrap_err();
        assert!(error.to_string().starts_with("chat template, line 2: "), "{error}");
    }

    /// The formats of one call show one moment, so they must agree, whatever the clock says.
    #[test]
    fn strftime_now_shows_the_same_date_in_each_asked_format() {
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let text = render("{{ strftime_now('%Y-%m-%d|%F|%d %b %Y|100%%') }}", &[]).unwrap();
        let parts: Vec<&str> = text.split('|').collect();
        assert_eq!((parts.len(), parts[0], parts[3]), (4, parts[1], "100%"), "{text}");
        let date: Vec<&str> = parts[0].split('-').collect();
        assert_eq!(date.iter().map(|part| part.len()).collect::<Vec<_>>(), [4, 2, 2], "{text}");
        let (month, day) = (date[1].parse::<usize>().unwrap(), date[2].parse::<usize>().unwrap());
        assert!((1..=31).contains(&day), "{text}");
        assert_eq!(parts[2], format!("{} {} {}", date[2], MONTHS[month - 1], date[0]));
    }

    proptest! {
        /// A further turn leaves the text before it unchanged: the prompt of the next turn begins with the last one.
        #[test]
        fn chatml_only_appends(turns in prop::collection::vec(("system|user|assistant", ".{0,20}"), 1..5)) {
            let messages: Vec<Message> = turns.iter().map(|(role, content)| message(role, content)).collect();
            let template = ChatTemplate::new(CHATML, BTreeMap::new()).unwrap();
            let all = template.render(&messages, Ending::LastMessage).unwrap();
            let but_last = template.render(&messages[..messages.len() - 1], Ending::LastMessage).unwrap();
            prop_assert!(all.starts_with(&but_last));
            let open = template.render(&messages, Ending::AssistantOpening).unwrap();
            prop_assert_eq!(open, all + "<|im_start|>assistant\n");
        }
    }
}
