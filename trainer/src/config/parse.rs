//! Parsing of TOML into a config, with errors that name the position and a correction.

use super::implied;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::str::FromStr;
use strsim::levenshtein;
use toml::{Table, Value};

/// Beginning of serde's message about a key that is given by two of its names.
const DUPLICATE: &str = "duplicate field";

/// One `key=value` override from the command line; the key is a dotted path such as `optimizer.adamw.learning_rate`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    path: Vec<String>,
    value: Value,
    text: String,
}

impl FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("`{key}` is not a dotted key such as rollout.group_size"));
        }
        // A value that is not TOML (a bare word, a path) is a string.
        let value = format!("value = {}", value.trim())
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(value.trim().to_owned()));
        Ok(Self { path, value, text: text.to_owned() })
    }
}

/// Parses `text` and applies the overrides; `name` stands for the text in errors.
pub(super) fn parse<T: DeserializeOwned>(text: &str, name: &str, overrides: &[Override]) -> Result<T> {
    let mut table = text.parse::<Table>().map_err(|error| located(&error, text, name))?;
    for (count, change) in overrides.iter().enumerate() {
        set(&mut table, &change.path, &change.value)
            .map_err(|problem| Error::input(format!("--set {}: {problem}", change.text)))?;
        replace_other_names::<T>(&mut table, &change.path);
        // Tried one by one only to say which override is at fault; a required key may still be missing before the last.
        if count + 1 == overrides.len() {
            continue;
        }
        if let Err(error) = table.clone().try_into::<T>()
            && !error.message().starts_with("missing field")
        {
            return Err(Error::input(format!("--set {}: {}", change.text, reworded(error.message()))));
        }
    }
    implied::complete::<T>(&mut table);
    let resolved = toml::to_string(&table).map_err(|error| Error::runtime(error.to_string()))?;
    toml::from_str(&resolved).map_err(|error| match (toml::from_str::<T>(text), overrides.last()) {
        (Err(error), _) => located(&error, text, name),
        (Ok(_), Some(last)) => Error::input(format!("--set {}: {}", last.text, reworded(error.message()))),
        (Ok(_), None) => Error::input(format!("{name}: {}", reworded(error.message()))),
    })
}

pub(super) fn set(table: &mut Table, path: &[String], value: &Value) -> std::result::Result<(), String> {
    let [first, rest @ ..] = path else { return Ok(()) };
    if rest.is_empty() {
        table.insert(first.clone(), value.clone());
        return Ok(());
    }
    match table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => set(inner, rest, value),
        Value::Array(items) => {
            let (index, rest) = (rest[0].parse::<usize>(), &rest[1..]);
            match index.ok().and_then(|index| items.get_mut(index)) {
                Some(Value::Table(inner)) if !rest.is_empty() => set(inner, rest, value),
                _ => Err(format!("`{first}` is a list; write {first}.0.KEY for its first entry")),
            }
        }
        _ => Err(format!("`{first}` is a value, not a table")),
    }
}

/// Removes the other spelling of a key if the override at `path` has given it a second time.
fn replace_other_names<T: DeserializeOwned>(table: &mut Table, path: &[String]) {
    let twice = |table: &Table| {
        let problem = table.clone().try_into::<T>().err();
        problem.is_some_and(|error| error.message().starts_with(DUPLICATE))
    };
    let Some((key, outer)) = path.split_last().filter(|_| twice(table)) else { return };
    let names: Vec<String> = inner(table, outer).into_iter().flat_map(|inner| inner.keys().cloned()).collect();
    for name in names.iter().filter(|name| *name != key) {
        let mut fewer = table.clone();
        inner(&mut fewer, outer).map(|inner| inner.remove(name));
        if !twice(&fewer) {
            *table = fewer;
            return;
        }
    }
}

/// Returns the table at a path, as [`set`] finds it.
fn inner<'a>(table: &'a mut Table, path: &[String]) -> Option<&'a mut Table> {
    let [first, rest @ ..] = path else { return Some(table) };
    match table.get_mut(first)? {
        Value::Table(table) => inner(table, rest),
        Value::Array(items) => {
            let [index, rest @ ..] = rest else { return None };
            let item = items.get_mut(index.parse::<usize>().ok()?)?;
            inner(item.as_table_mut()?, rest)
        }
        _ => None,
    }
}

/// Formats an error as `file:line: sentence`.
fn located(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let message = reworded(error.message());
    let Some(span) = error.span() else { return Error::input(format!("{name}: {message}")) };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let written = text.lines().nth(line - 1).unwrap_or_default();
    let own_header = written.trim_start().starts_with('[');
    let table = before.lines().rev().find(|line| line.trim_start().starts_with('[')).filter(|_| !own_header);
    let section = table.map(|table| format!(" in {}", table.trim())).unwrap_or_default();
    Error::input(format!("{name}:{line}{section}: {message} (`{}`)", written.trim()))
}

/// Rewrites serde's "unknown field" messages with the nearest known key before the list.
fn reworded(message: &str) -> String {
    let message = message.trim();
    if let Some(key) = message.strip_prefix(DUPLICATE) {
        return format!("{} is given twice, by two of its names; keep one", key.trim());
    }
    let kind = ["unknown field", "unknown variant"].into_iter().find(|kind| message.starts_with(kind));
    let Some(kind) = kind else { return message.lines().collect::<Vec<_>>().join("; ") };
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(wrong) = quoted.next() else { return message.to_owned() };
    let known: Vec<&str> = quoted.collect();
    let what = if kind == "unknown field" { "unknown key" } else { "unknown value" };
    let list = known.join(", ");
    match nearest(wrong, &known) {
        Some(near) => format!("{what} `{wrong}`; did you mean `{near}`? Known here: {list}"),
        None => format!("{what} `{wrong}`; known here: {list}"),
    }
}

/// Returns the candidate with the smallest edit distance, if it is close enough to be a misspelling.
fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let near = candidates.iter().map(|candidate| (levenshtein(word, candidate), *candidate)).min()?;
    (near.0 <= word.chars().count().max(3) / 2).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Example {
        steps: u32,
        #[serde(default)]
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        #[serde(alias = "epsilon")]
        clip_low: f64,
        stop: Vec<String>,
    }

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        parse::<Example>(text, "a.toml", &overrides).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_placed_and_the_nearest_named() {
        let message = error("steps = 1\n[inner]\nclip_lwo = 0.2\n", &[]);
        assert!(
            message.starts_with("a.toml:3 in [inner]: unknown key `clip_lwo`; did you mean `clip_low`?"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_type_is_placed() {
        let message = error("steps = \"many\"\n", &[]);
        assert!(message.starts_with("a.toml:1: invalid type: string \"many\", expected u32"), "{message}");
        let message = error("steps = 1\n[inner\n", &[]);
        assert!(message.starts_with("a.toml:2"), "{message}");
    }

    #[test]
    fn overrides_reach_nested_keys_and_take_bare_words() {
        let overrides: Vec<Override> =
            ["inner.clip_low=0.3", "steps=7", "inner.stop=[\"a\"]"].map(|text| text.parse().unwrap()).into();
        let example: Example = parse("steps = 1\n", "a.toml", &overrides).unwrap();
        assert_eq!(example, Example { steps: 7, inner: Inner { clip_low: 0.3, stop: vec!["a".into()] } });
        assert_eq!("a.b=~/models/x".parse::<Override>().unwrap().value, Value::String("~/models/x".into()));
        assert!("novalue".parse::<Override>().is_err());
    }

    #[test]
    fn an_override_replaces_a_key_whatever_name_either_has() {
        for (text, change) in [("clip_low = 0.1", "inner.epsilon=0.3"), ("epsilon = 0.1", "inner.clip_low=0.3")] {
            let text = format!("steps = 1\n[inner]\nstop = [\"a\"]\n{text}\n");
            let example: Example = parse(&text, "a.toml", &[change.parse().unwrap()]).unwrap();
            assert_eq!(example, Example { steps: 1, inner: Inner { clip_low: 0.3, stop: vec!["a".into()] } });
        }
        let message = error("steps = 1\n[inner]\nclip_low = 0.1\nepsilon = 0.2\n", &[]);
        assert!(message.starts_with("a.toml:2: `clip_low` is given twice"), "{message}");
    }

    #[test]
    fn a_wrong_override_is_named() {
        let message = error("steps = 1\n", &["inner.clip_hi=1", "steps=2"]);
        assert!(message.starts_with("--set inner.clip_hi=1: unknown key `clip_hi`"), "{message}");
        let message = error("steps = 1\n", &["steps=x"]);
        assert!(message.starts_with("--set steps=x: invalid type: string \"x\""), "{message}");
    }

    #[test]
    fn distances() {
        assert_eq!(levenshtein("kitten", "sitting"), 3);
        assert_eq!(nearest("temprature", &["top_p", "temperature"]), Some("temperature"));
        assert_eq!(nearest("zzz", &["temperature"]), None);
    }
}
