//! Python's behaviour where minijinja's differs: tests, methods of texts, ranges, and the spelling of floats.

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use std::fmt::Write as _;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Error>;

/// The longest range of Jinja's sandbox.
const LONGEST_RANGE: usize = 100_000;

/// Adds what this file holds to an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(format);
    environment.add_function("range", range);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
}

/// `iter(value)` succeeds: texts, lists, mappings and what is not defined; not none, numbers and functions.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Bytes | Seq | Map | Iterable)
}

/// `len(value)` succeeds and items can be had by `[]`: texts, lists, mappings, ranges and what is not defined.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Bytes, Map, Seq, String, Undefined};
    matches!(value.kind(), Undefined | String | Bytes | Seq | Map)
}

/// Functions, macros and what is not defined.
fn is_callable(value: &Value) -> bool {
    // minijinja's functions and macros are its only objects that are neither data nor iterators.
    value.is_undefined() || (value.kind() == ValueKind::Plain && value.as_object().is_some())
}

/// Writes a value, floats as Python spells them.
fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<()> {
    if value.kind() == ValueKind::Number
        && !value.is_integer()
        && let Ok(number) = f64::try_from(value.clone())
    {
        return out.write_str(&float(number)).map_err(Error::from);
    }
    minijinja::escape_formatter(out, state, value)
}

/// A float as Python's `repr` spells it: the shortest digits that give it back, with an exponent from 1e16 on and below
/// 1e-4.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// Python's `range`: a sequence of numbers that are made when they are asked for.
#[derive(Debug)]
struct Range {
    first: i64,
    step: i64,
    len: usize,
}

fn range(first: i64, end: Option<i64>, step: Option<i64>) -> Result<Value> {
    let (first, end) = end.map_or((0, first), |end| (first, end));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "range: the step must not be 0"));
    }
    let distance = (i128::from(end) - i128::from(first)) * i128::from(step.signum());
    let steps = (distance.max(0) as u128).div_ceil(u128::from(step.unsigned_abs()));
    let len = usize::try_from(steps).ok().filter(|len| *len <= LONGEST_RANGE);
    let len = len.ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("range has more than {LONGEST_RANGE} elements"))
    })?;
    Ok(Value::from_object(Range { first, step, len }))
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, index: &Value) -> Option<Value> {
        let index = index.as_usize().filter(|index| *index < self.len)?;
        Some(Value::from(self.first + index as i64 * self.step))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len)
    }
}

/// Python's methods: those of `minijinja-contrib`, and the methods of texts that it lacks.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value> {
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(state, text, name, arguments)
    {
        return result;
    }
    let positional;
    let arguments = match (value.as_str(), name) {
        (Some(text), "format") => {
            state.consume_fuel(widths(text) / 16)?;
            arguments
        }
        (Some(_), "split") => {
            let (separator, limit) = split_arguments(arguments)?;
            let limit = Value::from(limit.filter(|limit| *limit >= 0));
            positional = [separator.map_or(Value::from(()), Value::from), limit];
            &positional[..]
        }
        _ => arguments,
    };
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn text_method(state: &State, text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value>> {
    let one = || from_args::<(&str,)>(arguments).map(|(other,)| other);
    Some(match name {
        "removeprefix" => one().map(|prefix| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => one().map(|suffix| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => separator(one())
            .map(|separator| three(text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]))),
        "rpartition" => separator(one())
            .map(|separator| three(text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]))),
        "rsplit" => split_arguments(arguments).and_then(|(separator, limit)| rsplit(text, separator.as_deref(), limit)),
        "index" | "rindex" => one().and_then(|part| {
            let found = if name == "index" { text.find(part) } else { text.rfind(part) };
            let found = found.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Ok(Value::from(text[..found].chars().count()))
        }),
        "zfill" => from_args::<(i64,)>(arguments).and_then(|(width,)| {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let missing = missing(state, text, width)?;
            Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(missing))))
        }),
        "center" | "ljust" | "rjust" => from_args::<(i64, Option<char>)>(arguments).and_then(|(width, fill)| {
            let missing = missing(state, text, width)?;
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // As CPython does it: of an odd number, the left side gets the larger part if the width is odd.
                _ => missing / 2 + (missing & width as usize & 1),
            };
            let fill = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
            Ok(Value::from(format!("{}{text}{}", fill(left), fill(missing - left))))
        }),
        "swapcase" => from_args::<()>(arguments).map(|()| {
            let mut swapped = String::with_capacity(text.len());
            for character in text.chars() {
                if character.is_uppercase() {
                    swapped.extend(character.to_lowercase());
                } else {
                    swapped.extend(character.to_uppercase());
                }
            }
            Value::from(swapped)
        }),
        _ => return None,
    })
}

fn separator(given: Result<&str>) -> Result<&str> {
    given.and_then(|separator| {
        let problem = || Error::new(ErrorKind::InvalidOperation, "empty separator");
        Some(separator).filter(|separator| !separator.is_empty()).ok_or_else(problem)
    })
}

fn three(parts: [&str; 3]) -> Value {
    Value::from(minijinja::value::Tuple::from(parts.map(Value::from)))
}

/// The characters that `text` lacks to have this width, paid for from the template's budget.
fn missing(state: &State, text: &str, width: i64) -> Result<usize> {
    let missing = usize::try_from(width).unwrap_or_default().saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 16)?;
    Ok(missing)
}

/// The separator and the limit of `split` and `rsplit`, by position or by name.
fn split_arguments(arguments: &[Value]) -> Result<(Option<String>, Option<i64>)> {
    let (separator, limit, named): (Option<String>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = if separator.is_some() { separator } else { named.get("sep")? };
    let limit = if limit.is_some() { limit } else { named.get("maxsplit")? };
    named.assert_all_used()?;
    Ok((separator, limit))
}

fn rsplit(text: &str, separator: Option<&str>, limit: Option<i64>) -> Result<Value> {
    let limit = usize::try_from(limit.unwrap_or(-1)).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => parts.extend(text.rsplitn(limit + 1, separator)),
        None => {
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                if parts.len() == limit {
                    parts.push(rest);
                    break;
                }
                let (before, word) = rest.rsplit_once(char::is_whitespace).unwrap_or(("", rest));
                parts.push(word);
                rest = before.trim_end();
            }
        }
    }
    parts.reverse();
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// The sum of the widths and precisions that a format for `str.format` may ask for: all numbers inside braces.
fn widths(format: &str) -> u64 {
    let (mut sum, mut inside) = (0u64, false);
    let mut number = String::new();
    for character in format.chars().chain(['}']) {
        match character {
            '0'..='9' if inside => {
                let _ = number.write_char(character);
                continue;
            }
            '{' => inside = true,
            '}' => inside = false,
            _ => {}
        }
        if !number.is_empty() {
            sum = sum.saturating_add(number.parse().unwrap_or(u64::MAX));
            number.clear();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelt_as_python_spells_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (2.5, "2.5"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (1e-7, "1e-07"),
            (1.5e-10, "1.5e-10"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn widths_are_the_numbers_inside_braces() {
        assert_eq!(widths("in 2026: {:>12} {0:.3f} 99 {:<{}}"), 15);
        assert_eq!(widths("{:>99999999999999999999999}"), u64::MAX);
        assert_eq!(widths("{:>5"), 5);
    }
}
