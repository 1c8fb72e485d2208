//! Parameters of a request, taken one by one out of its JSON object, each with a check of type and range.
//!
//! Parameters left over at the end are refused by name, with advice: a parameter that is silently ignored would change a
//! client's measurements. Unsupported parameters are accepted at their neutral value.

use super::failure::Failure;
use serde_json::{Map, Value};
use std::cell::RefCell;
use strsim::levenshtein;

/// The parameters of a request that have not been taken yet.
pub(super) struct Fields {
    rest: Map<String, Value>,
    taken: RefCell<Vec<&'static str>>,
}

impl Fields {
    /// Reads a body, which must be a JSON object.
    ///
    /// # Errors
    ///
    /// A refusal if it is not JSON, or no object.
    pub(super) fn read(body: &[u8]) -> Result<Self, Failure> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(rest)) => Ok(Self { rest, taken: RefCell::default() }),
            Ok(_) => Err(Failure::invalid("the body must be a JSON object, such as {\"prompt\": \"…\"}")),
            Err(error) => Err(Failure::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes a parameter; `null` counts as absent.
    pub(super) fn value(&mut self, name: &'static str) -> Option<Value> {
        self.taken.borrow_mut().push(name);
        self.rest.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string; `None` if absent.
    ///
    /// # Errors
    ///
    /// A refusal if the value is no string.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Failure> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes `true` or `false`; false if absent.
    ///
    /// # Errors
    ///
    /// A refusal if the value is neither.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, Failure> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes a number in `low..=high`; `None` if absent.
    ///
    /// # Errors
    ///
    /// A refusal if the value is no number, or out of bounds.
    pub(super) fn number(&mut self, name: &'static str, low: f64, high: f64) -> Result<Option<f64>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let what = format!("a number from {low} to {high}");
        let number = value.as_f64().filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &what, &value))
    }

    /// Takes a whole number in `low..=high`, such as `3` or `3.0`; `None` if absent.
    ///
    /// # Errors
    ///
    /// A refusal if the value is no whole number, or out of bounds.
    pub(super) fn integer(&mut self, name: &'static str, low: i64, high: i64) -> Result<Option<i64>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let what = format!("a whole number from {low} to {high}");
        let whole = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9e15).map(|n| n as i64);
        let number = value.as_i64().or(whole).filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &what, &value))
    }

    /// Refuses the parameters that were not taken.
    ///
    /// # Errors
    ///
    /// A refusal if one is unknown, or unsupported and not at its neutral value.
    pub(super) fn finish(self) -> Result<(), Failure> {
        for (name, value) in &self.rest {
            if value.is_null() || DESCRIPTIVE.contains(&name.as_str()) {
                continue;
            }
            let Some((_, neutral, advice)) = UNSUPPORTED.iter().find(|(unsupported, _, _)| unsupported == name) else {
                return Err(self.unknown(name));
            };
            if !neutral(value) {
                return Err(Failure::parameter(name, format!("unsupported parameter `{name}`; {advice}")));
            }
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Failure {
        let shown: String = name.chars().take(60).collect();
        let taken = self.taken.borrow();
        let near = taken.iter().map(|known| (levenshtein(&shown, known), *known)).min();
        let advice = match near.filter(|(edits, _)| *edits <= shown.chars().count().max(3) / 3) {
            Some((_, near)) => format!("did you mean `{near}`?"),
            None => format!("this endpoint takes {}", taken.join(", ")),
        };
        Failure::parameter(&shown, format!("unsupported parameter `{shown}`; {advice}"))
    }
}

/// The refusal of a value of the wrong type or out of range. The value is shown only if it is short.
pub(super) fn wrong(name: &str, what: &str, value: &Value) -> Failure {
    let shown = value.to_string();
    let but = if shown.chars().count() <= 40 { format!(", but is {shown}") } else { String::new() };
    Failure::parameter(name, format!("`{name}` must be {what}{but}"))
}

/// Parameters that describe the caller or the call and do not change the answer.
const DESCRIPTIVE: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "request_id",
];

type Neutral = fn(&Value) -> bool;

/// Parameters of OpenAI and vLLM that this daemon does not support: name, test for the neutral value, advice.
const UNSUPPORTED: &[(&str, Neutral, &str)] = &[
    ("frequency_penalty", zero, "leave it out, or at 0; `min_p` and `temperature` shape the distribution too"),
    ("presence_penalty", zero, "leave it out, or at 0; `min_p` and `temperature` shape the distribution too"),
    ("repetition_penalty", one, "leave it out, or at 1; `min_p` and `temperature` shape the distribution too"),
    ("length_penalty", one, "leave it out, or at 1"),
    ("logit_bias", empty, "leave it out; `top_k`, `top_p` and `min_p` limit what can be drawn"),
    ("bad_words", empty, "leave it out; `stop` ends an answer at a text"),
    ("allowed_token_ids", empty, "leave it out; `top_k`, `top_p` and `min_p` limit what can be drawn"),
    ("stop_token_ids", empty, "use `stop` with the token's text"),
    ("min_tokens", zero, "leave it out, or at 0"),
    ("ignore_eos", off, "leave it out, or false"),
    ("best_of", one, "draw several samples by `n` and choose among them"),
    ("use_beam_search", off, "draw several samples by `n` and choose among them"),
    ("echo", off, "ask for `prompt_logprobs` and `return_token_ids` instead"),
    ("suffix", empty, "leave it out; only the end of a prompt can be continued"),
    ("skip_special_tokens", on, "ask for `return_token_ids`; texts come without special tokens"),
    ("truncate_prompt_tokens", empty, "shorten the prompt before sending it"),
    ("add_generation_prompt", on, "use /v1/completions with a prompt that you rendered yourself"),
    ("continue_final_message", off, "use /v1/completions with a prompt that you rendered yourself"),
    ("chat_template", empty, "use /v1/completions with a prompt that you rendered yourself"),
    ("chat_template_kwargs", empty, "use /v1/completions with a prompt that you rendered yourself"),
    ("tools", empty, "describe tools in the system message, and read calls out of the text"),
    ("tool_choice", none, "describe tools in the system message, and read calls out of the text"),
    ("functions", empty, "describe tools in the system message, and read calls out of the text"),
    ("function_call", none, "describe tools in the system message, and read calls out of the text"),
    ("response_format", plain, "ask for the form in the prompt, and end the answer by `stop`"),
    ("guided_json", empty, "ask for the form in the prompt, and end the answer by `stop`"),
    ("guided_regex", empty, "ask for the form in the prompt, and end the answer by `stop`"),
    ("structured_outputs", empty, "ask for the form in the prompt, and end the answer by `stop`"),
    ("modalities", text_only, "this daemon answers in text alone"),
    ("audio", empty, "this daemon answers in text alone"),
    ("prediction", empty, "leave it out"),
    ("reasoning_effort", none, "say in the prompt how long to think"),
    ("verbosity", empty, "say in the prompt how long the answer may be"),
    ("web_search_options", empty, "put what was found into the prompt"),
];

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn off(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn on(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn none(value: &Value) -> bool {
    *value == "none" || *value == "auto"
}

fn plain(value: &Value) -> bool {
    value.get("type").is_some_and(|kind| *kind == "text")
}

fn text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| *kind == "text"))
}

fn empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> String {
        let mut fields = Fields::read(body.as_bytes()).unwrap();
        let taken = fields.number("temperature", 0.0, 2.0).and_then(|_| fields.integer("n", 1, 9));
        let done = taken.and_then(|_| fields.finish());
        done.map_or_else(|failure| failure.body()["error"]["message"].as_str().unwrap().to_owned(), |()| String::new())
    }

    #[test]
    fn refusals_name_the_parameter_with_advice() {
        for (body, words) in [
            (r#"{"temperature": 3}"#, "`temperature` must be a number from 0 to 2, but is 3"),
            (r#"{"n": 1.5}"#, "`n` must be a whole number from 1 to 9, but is 1.5"),
            (r#"{"n": "2"}"#, "but is \"2\""),
            (r#"{"temprature": 1}"#, "unsupported parameter `temprature`; did you mean `temperature`?"),
            (r#"{"wings": 2}"#, "unsupported parameter `wings`; this endpoint takes temperature, n"),
            (r#"{"best_of": 4}"#, "unsupported parameter `best_of`; draw several samples by `n`"),
            (r#"{"logit_bias": {"5": 1}}"#, "unsupported parameter `logit_bias`"),
        ] {
            let message = refusal(body);
            assert!(message.contains(words), "{body}: {message}");
        }
    }

    #[test]
    fn neutral_values_and_names_of_callers_pass() {
        let body = r#"{"temperature": null, "n": 2.0, "best_of": 1, "logit_bias": {}, "tools": [], "user": "me",
            "frequency_penalty": 0, "response_format": {"type": "text"}, "wings": null}"#;
        assert_eq!(refusal(body), "");
    }

    #[test]
    fn a_body_is_an_object() {
        for body in ["[1]", "{", "", "\u{0}", "1e999", "{\"a\": 1}}"] {
            assert!(Fields::read(body.as_bytes()).is_err(), "{body}");
        }
        let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::read(nested.as_bytes()).is_err());
    }
}
