//! A limit to how much longer a tokenizer may make a text.
//!
//! The rules of a `tokenizer.json` come with the model's folder. A few `Replace` steps, each of which writes
//! many characters for one, multiply a short prompt until the memory is full.

use super::unusable;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The largest product of the factors by which steps lengthen a text. A blank that becomes `▁` has 3.
const LIMIT: f64 = 1000.0;

/// The parts of a `tokenizer.json` that rewrite texts.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Refuses a `tokenizer.json` whose normalizer or decoder lengthens texts without measure. A file that is no JSON is
/// left to its reader.
///
/// # Errors
/// If the steps' factors have a product above [`LIMIT`].
pub(super) fn check(file: &[u8]) -> Result<()> {
    let Ok(rules) = serde_json::from_slice::<Rules>(file) else { return Ok(()) };
    for (name, rule) in [("normalizer", &rules.normalizer), ("decoder", &rules.decoder)] {
        let factor = factor(rule);
        if factor > LIMIT {
            return Err(too_long(name, factor));
        }
    }
    Ok(())
}

fn too_long(name: &str, factor: f64) -> Error {
    unusable(format!("its {name} makes a text up to {factor:.0} times as long; up to {LIMIT} is accepted"))
}

/// The factor by which a step, or a sequence of them, may lengthen a text, in bytes.
fn factor(rule: &Value) -> f64 {
    let steps = ["normalizers", "decoders"].iter().filter_map(|key| rule.get(*key)?.as_array()).flatten();
    let own = match rule.get("type").and_then(Value::as_str) {
        Some("Replace") => {
            let content = rule.get("content").and_then(Value::as_str).unwrap_or_default();
            let pattern = rule.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
            // A regular expression may match a character, or between two of them.
            let (shortest, kept) =
                pattern.map_or((1, 1), |pattern| (pattern.len().max(1), usize::from(pattern.is_empty())));
            (kept as f64 + content.len() as f64 / shortest as f64).max(1.0)
        }
        // A prefix lengthens an empty text most; counted against a few characters.
        Some("Prepend") => 1.0 + rule.get("prepend").and_then(Value::as_str).unwrap_or_default().len() as f64 / 16.0,
        _ => 1.0,
    };
    steps.map(factor).product::<f64>() * own
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replace(pattern: &Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn steps_that_multiply_a_text_are_refused() {
        let letter = replace(&json!({"String": "a"}), &"a".repeat(100));
        let any = replace(&json!({"Regex": "."}), &"ab".repeat(20));
        let sequence = |key: &str, steps: &[&Value]| json!({"type": "Sequence", key: steps});
        let refused = |part: &str, rule: &Value| {
            let file = json!({"version": "1.0", part: rule, "model": {"vocab": {"a": 0}}});
            check(file.to_string().as_bytes()).err().map(|error| error.to_string())
        };
        let deep = sequence("normalizers", &[&sequence("normalizers", &[&letter, &letter])]);
        let error = refused("normalizer", &deep).unwrap();
        assert!(error.contains("its normalizer makes a text up to 10000 times as long"), "{error}");
        assert!(refused("normalizer", &sequence("normalizers", &[&any, &any])).is_some(), "41² = 1681");
        assert!(refused("decoder", &sequence("decoders", &[&letter, &letter])).unwrap().contains("its decoder"));
        for usual in [
            replace(&json!({"String": " "}), "▁"),
            replace(&json!({"Regex": " +"}), " "),
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "NFC"}),
            Value::Null,
        ] {
            assert_eq!(refused("normalizer", &usual), None, "{usual}");
        }
        assert_eq!(refused("normalizer", &letter), None);
        assert!(check(b"{").is_ok() && check(b"[]").is_ok(), "left to the reader");
    }
}
