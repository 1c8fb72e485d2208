//! The filter `tojson`, which writes what Python's `json.dumps` writes.

use super::python::float;
use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};
use std::io::{self, Write};

type Result<T> = std::result::Result<T, Error>;

/// The widest indent of a level; any more is a mistake, or meant to fill the memory.
const WIDEST_INDENT: i64 = 256;

/// Bytes of JSON that cost one step of a template's budget, as minijinja charges for its own filter.
const BYTES_PER_STEP: u64 = 4;

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with the order and the defaults of `transformers`.
pub(super) fn to_json(state: &State, value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value> {
    type Four = (Option<Value>, Option<Value>, Option<Value>, Option<Value>, Kwargs);
    let arguments = arguments.into_values();
    let (ascii, indent, separators, sort_keys, named): Four = from_args(&arguments)?;
    let argument = |given: Option<Value>, name: &str| -> Result<Option<Value>> {
        let given = if given.is_some() { given } else { named.get(name)? };
        Ok(given.filter(|value| !value.is_none()))
    };
    let ascii = argument(ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(indent, "indent")?.map(|indent| level(&indent)).transpose()?;
    let separators = argument(separators, "separators")?.map(|pair| two_texts(&pair)).transpose()?;
    let sort_keys = argument(sort_keys, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;

    let (item, key) =
        separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()));
    let format = PythonJson { ascii, indent, item, key, depth: 0, holds: false };
    let text = if sort_keys {
        // Written first, so that a structure that contains itself many times is stopped before it is unfolded.
        let plain = PythonJson { item: ",".into(), key: ":".into(), indent: None, ..format.clone() };
        let text = write(state, value, plain)?;
        let mut value: serde_json::Value = serde_json::from_str(&text).map_err(|error| unwritable(&error))?;
        value.sort_all_objects();
        write(state, &value, format)?
    } else {
        write(state, value, format)?
    };
    Ok(Value::from_safe_string(text))
}

/// The text of one level of indentation: a number of blanks, or a text.
fn level(indent: &Value) -> Result<String> {
    if let Some(text) = indent.as_str().filter(|text| text.len() as i64 <= WIDEST_INDENT) {
        return Ok(text.to_owned());
    }
    let width = indent.as_i64().filter(|width| *width <= WIDEST_INDENT).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: `indent` must be a text or a number up to {WIDEST_INDENT}"),
        )
    })?;
    Ok(" ".repeat(width.max(0) as usize))
}

fn two_texts(pair: &Value) -> Result<(String, String)> {
    let items: Vec<Value> = pair.try_iter()?.take(3).collect();
    match &items[..] {
        [item, key] if item.as_str().is_some() && key.as_str().is_some() => Ok((item.to_string(), key.to_string())),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "tojson: `separators` must be a pair of texts")),
    }
}

fn write(state: &State, value: &impl Serialize, format: PythonJson) -> Result<String> {
    let mut out = Metered { state, bytes: Vec::new(), unpaid: 0 };
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format));
    // If the budget is at its end, that is the reason.
    state.consume_fuel(out.unpaid / BYTES_PER_STEP)?;
    written.map_err(|error| unwritable(&error))?;
    Ok(String::from_utf8(out.bytes).expect("serde_json writes UTF-8"))
}

fn unwritable(error: &serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
}

/// Bytes that are paid for from a template's budget.
struct Metered<'a, 'env, 'data> {
    state: &'a State<'env, 'data>,
    bytes: Vec<u8>,
    unpaid: u64,
}

impl Write for Metered<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unpaid += bytes.len() as u64;
        if self.unpaid >= 1024 {
            self.state.consume_fuel(self.unpaid / BYTES_PER_STEP).map_err(io::Error::other)?;
            self.unpaid %= BYTES_PER_STEP;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON as Python's `json` module lays it out.
#[derive(Clone)]
struct PythonJson {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
    /// The array or object that ends next has an item.
    holds: bool,
}

impl PythonJson {
    fn new_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }

    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        (self.depth, self.holds) = (self.depth + 1, false);
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.holds {
            self.new_line(writer)?;
        }
        self.holds = true;
        writer.write_all(bracket)
    }
}

impl Formatter for PythonJson {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            match character {
                ' '..='~' => writer.write_all(&[character as u8])?,
                _ => character
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .try_for_each(|unit| writer.write_all(format!("\\u{unit:04x}").as_bytes()))?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => writer.write_all(format!("\\u{byte:04x}").as_bytes()),
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.holds = true;
        Ok(())
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.holds = true;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }
}
