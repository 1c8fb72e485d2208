//! Completion requests, parsed from a JSON body into token ids and sampler settings for the engine.
//!
//! Everything that can be refused is refused here, before the request enters the queue.

use super::failure::Failure;
use super::fields::{Fields, wrong};
use crate::config::check_sampler;
use model::tokenizer::Tokenizer;
use schema::{Message, Prompt, PromptInput, SamplerSettings, Token};
use serde_json::{Map, Value};

/// The endpoint of a request, which determines the form of prompts and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// A checked request for completions.
#[derive(Debug, Clone)]
pub(super) struct CompletionRequest {
    pub(super) endpoint: Endpoint,
    /// Model as the client wrote it; `None` for the default model.
    pub(super) model: Option<String>,
    pub(super) prompts: Vec<Vec<Token>>,
    /// Samples of each prompt.
    pub(super) samples: usize,
    pub(super) settings: SamplerSettings,
    pub(super) seed: Option<i64>,
    pub(super) delivery: Delivery,
    /// Number of most likely tokens to return with each sampled one; `None` without log-probabilities.
    pub(super) top_logprobs: Option<usize>,
    /// Number of most likely tokens to return with each token of the prompt; `None` without log-probabilities.
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) return_token_ids: bool,
}

/// The form in which an answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// One piece, once it is complete.
    Whole,
    /// Events, as it is sampled.
    Stream,
    /// As `Stream`, with a last event that has the number of tokens.
    StreamWithUsage,
}

/// The limits of requests.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Maximum tokens of a prompt and its completion together.
    pub(super) context: usize,
    /// Size of the vocabulary; token ids must be below it.
    pub(super) vocab: usize,
    /// Maximum number of most likely tokens to return.
    pub(super) logprobs: usize,
    /// Maximum samples of one request.
    pub(super) samples: usize,
    /// Maximum log-probs of prompts in one answer.
    pub(super) prompt_logprobs: usize,
    /// Settings of requests that do not give their own.
    pub(super) sampler: SamplerSettings,
}

/// Maximum stop strings of one request.
const MAX_STOPS: usize = 16;

impl CompletionRequest {
    /// Parses and tokenizes the body of a request.
    ///
    /// # Errors
    ///
    /// A refusal if a parameter is missing, unsupported, of the wrong type or out of range, or the request exceeds a
    /// limit.
    pub(super) fn read(
        endpoint: Endpoint,
        body: &[u8],
        limits: &Limits,
        tokenizer: &Tokenizer,
    ) -> Result<Self, Failure> {
        let mut fields = Fields::read(body)?;
        let model = fields.text("model")?;
        let (param, written) = match endpoint {
            Endpoint::Completions => ("prompt", fields.value("prompt")),
            Endpoint::Chat => ("messages", fields.value("messages")),
        };
        let samples = fields.integer("n", 1, limits.samples as i64)?.unwrap_or(1) as usize;
        let sampler = sampler(&mut fields, &limits.sampler)?;
        let max_tokens = max_tokens(endpoint, &mut fields)?;
        let seed = fields.integer("seed", i64::MIN, i64::MAX)?;
        let delivery = delivery(&mut fields)?;
        let top_logprobs = top_logprobs(endpoint, &mut fields, limits.logprobs as i64)?;
        let prompt_logprobs = fields.integer("prompt_logprobs", 0, limits.logprobs as i64)?.map(|count| count as usize);
        let return_token_ids = fields.flag("return_token_ids")?;
        fields.finish()?;
        if prompt_logprobs.is_some() && delivery != Delivery::Whole {
            return Err(Failure::parameter(
                "prompt_logprobs",
                "`prompt_logprobs` cannot be streamed; ask for them with \"stream\": false",
            ));
        }

        let written = written.ok_or_else(|| Failure::parameter(param, format!("`{param}` is missing")))?;
        let prompts = match endpoint {
            Endpoint::Completions => prompts(&written, limits, tokenizer)?,
            Endpoint::Chat => vec![tokenizer.new_turn_ids(&conversation(written)?)?],
        };
        let all = prompts.len() * samples;
        if all > limits.samples {
            return Err(Failure::parameter(
                "n",
                format!(
                    "{} prompts with n = {samples} are {all} samples; at most {} at a time",
                    prompts.len(),
                    limits.samples
                ),
            ));
        }
        let entries = |count: usize| prompts.iter().map(Vec::len).sum::<usize>().saturating_mul(count + 1);
        if let Some(entries) = prompt_logprobs.map(entries).filter(|entries| *entries > limits.prompt_logprobs) {
            return Err(Failure::parameter(
                "prompt_logprobs",
                format!(
                    "the prompts' tokens with their alternatives are {entries} log-probabilities; at most {} in one answer: ask for fewer, or for fewer prompts at a time",
                    limits.prompt_logprobs
                ),
            ));
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let settings = SamplerSettings { max_new_tokens: room(param, longest, max_tokens, limits)?, ..sampler };
        Ok(Self {
            endpoint,
            model,
            prompts,
            samples,
            settings,
            seed,
            delivery,
            top_logprobs,
            prompt_logprobs,
            return_token_ids,
        })
    }

    /// Number of samples over all prompts.
    pub(super) fn total(&self) -> usize {
        self.prompts.len() * self.samples
    }
}

fn sampler(fields: &mut Fields, default: &SamplerSettings) -> Result<SamplerSettings, Failure> {
    let stop = match fields.value("stop") {
        None => default.stop.clone(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) if stops.len() <= MAX_STOPS && stops.iter().all(Value::is_string) => {
            stops.iter().filter_map(|stop| stop.as_str().map(str::to_owned)).collect()
        }
        Some(other) => return Err(wrong("stop", &format!("a string, or a list of up to {MAX_STOPS} strings"), &other)),
    };
    let settings = SamplerSettings {
        temperature: fields.number("temperature", 0.0, 100.0)?.unwrap_or(default.temperature),
        top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(default.top_p),
        // vLLM's -1 keeps all tokens too.
        top_k: fields.integer("top_k", -1, i64::from(u32::MAX))?.map_or(default.top_k, |k| k.max(0) as u32),
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(default.min_p),
        max_new_tokens: default.max_new_tokens,
        stop,
        stratify: default.stratify,
    };
    check_sampler(&settings)?;
    Ok(settings)
}

fn max_tokens(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<(&'static str, i64)>, Failure> {
    let mut asked = fields.integer("max_tokens", 1, i64::MAX)?.map(|count| ("max_tokens", count));
    if endpoint == Endpoint::Chat
        && let Some(count) = fields.integer("max_completion_tokens", 1, i64::MAX)?
    {
        if asked.is_some_and(|(_, other)| other != count) {
            return Err(Failure::parameter(
                "max_completion_tokens",
                "`max_tokens` and `max_completion_tokens` differ; keep the second",
            ));
        }
        asked = Some(("max_completion_tokens", count));
    }
    Ok(asked)
}

/// Maximum tokens of a completion.
fn room(param: &str, longest: usize, asked: Option<(&'static str, i64)>, limits: &Limits) -> Result<u32, Failure> {
    let context = limits.context;
    let left = context.saturating_sub(longest);
    if left == 0 {
        let message = format!("the prompt has {longest} tokens, but prompt and answer together may have {context}");
        return Err(Failure::too_long(param, message));
    }
    match asked {
        Some((name, count)) if count > left as i64 => {
            let message = format!(
                "the prompt has {longest} tokens and `{name}` is {count}, but together they may be {context}; ask for at \
                 most {left}"
            );
            Err(Failure::too_long(name, message))
        }
        Some((_, count)) => Ok(count as u32),
        None => Ok(limits.sampler.max_new_tokens.min(left as u32)),
    }
}

fn delivery(fields: &mut Fields) -> Result<Delivery, Failure> {
    let stream = fields.flag("stream")?;
    let options = match fields.value("stream_options") {
        None => Map::new(),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(wrong("stream_options", "an object", &other)),
    };
    let mut usage = false;
    for (name, value) in options {
        match (name.as_str(), value) {
            ("include_usage", Value::Bool(wanted)) => usage = wanted,
            (_, Value::Null | Value::Bool(false)) => {}
            _ => {
                let message = "`stream_options` may hold `include_usage`, true or false, and nothing else";
                return Err(Failure::parameter("stream_options", message));
            }
        }
    }
    match (stream, usage) {
        (true, true) => Ok(Delivery::StreamWithUsage),
        (true, false) => Ok(Delivery::Stream),
        (false, false) => Ok(Delivery::Whole),
        (false, true) => Err(Failure::parameter(
            "stream_options",
            "`stream_options` goes with \"stream\": true; whole answers always count tokens",
        )),
    }
}

fn top_logprobs(endpoint: Endpoint, fields: &mut Fields, most: i64) -> Result<Option<usize>, Failure> {
    match endpoint {
        Endpoint::Completions => Ok(fields.integer("logprobs", 0, most)?.map(|count| count as usize)),
        Endpoint::Chat => {
            let wanted = fields.flag("logprobs")?;
            let count = fields.integer("top_logprobs", 0, most)?;
            if count.is_some_and(|count| count > 0) && !wanted {
                let message = "`top_logprobs` needs \"logprobs\": true";
                return Err(Failure::parameter("top_logprobs", message));
            }
            Ok(wanted.then_some(count.unwrap_or(0) as usize))
        }
    }
}

/// The four forms of `prompt`: a text, texts, token ids, lists of token ids.
fn prompts(written: &Value, limits: &Limits, tokenizer: &Tokenizer) -> Result<Vec<Vec<Token>>, Failure> {
    let text = |text: &str| Ok(tokenizer.prompt_ids(&Prompt::text(text))?);
    let what = "a string, a list of strings, a list of token ids, or a list of such lists";
    let form = || wrong("prompt", what, written);
    match written {
        Value::String(prompt) => Ok(vec![text(prompt)?]),
        Value::Array(items) if items.is_empty() => Err(Failure::parameter("prompt", "`prompt` is an empty list")),
        // Before any is tokenized: a body of a million empty prompts is refused at once.
        Value::Array(items) if items.len() > limits.samples && !items[0].is_number() => {
            Err(Failure::parameter("prompt", format!("{} prompts at once; at most {}", items.len(), limits.samples)))
        }
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).map(text).collect()
        }
        Value::Array(items) if items.iter().all(Value::is_number) => Ok(vec![ids(items, limits)?]),
        Value::Array(items) => items
            .iter()
            .map(|item| ids(item.as_array().filter(|ids| !ids.is_empty()).ok_or_else(form)?, limits))
            .collect(),
        _ => Err(form()),
    }
}

fn ids(items: &[Value], limits: &Limits) -> Result<Vec<Token>, Failure> {
    let id = |item: &Value| {
        let id = item.as_u64().filter(|id| *id < limits.vocab as u64);
        id.map(|id| id as Token).ok_or_else(|| {
            wrong("prompt", &format!("text, or token ids from 0 to {}", limits.vocab.saturating_sub(1)), item)
        })
    };
    items.iter().map(id).collect()
}

fn conversation(written: Value) -> Result<Prompt, Failure> {
    let Value::Array(items) = written else {
        return Err(wrong("messages", "a list of objects with `role` and `content`", &written));
    };
    if items.is_empty() {
        return Err(Failure::parameter("messages", "`messages` is an empty list; give at least one of role user"));
    }
    let messages = items.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    Ok(Prompt { input: PromptInput::Messages(messages), ..Prompt::text("") })
}

fn message(item: Value) -> Result<Message, Failure> {
    let Value::Object(mut item) = item else {
        return Err(wrong("messages", "a list of objects with `role` and `content`", &item));
    };
    let role = match item.remove("role") {
        Some(Value::String(role)) if ["system", "user", "assistant", "tool"].contains(&role.as_str()) => role,
        // OpenAI's newer name for the same.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        other => {
            let what = "system, developer, user, assistant or tool";
            return Err(wrong("messages.role", what, &other.unwrap_or(Value::Null)));
        }
    };
    let content = match item.remove("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(parts)) => parts.iter().map(part).collect::<Result<String, _>>()?,
        other => {
            return Err(wrong("messages.content", "a string, or a list of text parts", &other.unwrap_or(Value::Null)));
        }
    };
    let silent = |value: &Value| {
        value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_str().is_some_and(str::is_empty)
    };
    if let Some((name, _)) = item.iter().find(|(_, value)| !silent(value)) {
        let name: String = name.chars().take(60).collect();
        let message = format!("unsupported key `{name}` in a message; put what it says into `content`");
        return Err(Failure::parameter("messages", message));
    }
    Ok(Message { role, content })
}

fn part(part: &Value) -> Result<&str, Failure> {
    let text =
        part.get("text").and_then(Value::as_str).filter(|_| part.get("type").is_some_and(|kind| *kind == "text"));
    text.ok_or_else(|| {
        Failure::parameter(
            "messages",
            "only parts of type text are supported, such as {\"type\": \"text\", \"text\": \"…\"}",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let sampler = SamplerSettings::default();
        Limits { context: 64, vocab: 259, logprobs: 5, samples: 8, prompt_logprobs: 20, sampler }
    }

    fn read(endpoint: Endpoint, body: &str) -> Result<CompletionRequest, String> {
        let request = CompletionRequest::read(endpoint, body.as_bytes(), &limits(), &Tokenizer::bytes());
        request.map_err(|failure| failure.body()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn a_prompt_has_four_forms() {
        for (prompt, expected) in [
            (r#""AB""#, vec![vec![65, 66]]),
            (r#"["A", "B"]"#, vec![vec![65], vec![66]]),
            ("[65, 66]", vec![vec![65, 66]]),
            ("[[65], [66, 67]]", vec![vec![65], vec![66, 67]]),
        ] {
            let request = read(Endpoint::Completions, &format!(r#"{{"prompt": {prompt}, "n": 2}}"#)).unwrap();
            assert_eq!(request.prompts, expected);
            assert_eq!(request.total(), 2 * expected.len());
        }
    }

    #[test]
    fn a_conversation_goes_through_the_template() {
        let parts = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]}"#;
        let request = read(Endpoint::Chat, parts).unwrap();
        assert_eq!(request.prompts, [Tokenizer::bytes().prompt_ids(&Prompt::user("hi")).unwrap()]);
        // As much as fits where nothing is asked for: a context of 64, less the prompt.
        assert_eq!(request.settings.max_new_tokens as usize, 64 - request.prompts[0].len());
    }

    #[test]
    fn unusable_requests_are_refused_before_they_are_queued() {
        use Endpoint::{Chat, Completions};
        for (endpoint, body, words) in [
            (Completions, "{}", "`prompt` is missing"),
            (
                Chat,
                r#"{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}"#,
                "unsupported parameter `prompt`",
            ),
            (Completions, r#"{"prompt": [259]}"#, "token ids from 0 to 258"),
            (Completions, r#"{"prompt": ["a", 1]}"#, "a list of token ids"),
            (Completions, r#"{"prompt": ""}"#, "no tokens"),
            (Completions, r#"{"prompt": "a", "max_tokens": 64}"#, "ask for at most 63"),
            (Completions, r#"{"prompt": "a", "n": 9}"#, "`n` must be a whole number from 1 to 8"),
            (Completions, r#"{"prompt": ["a","a","a"], "n": 3}"#, "9 samples; at most 8"),
            (Completions, r#"{"prompt": "a", "stop": ["", "b"]}"#, "a stop string is empty"),
            (Completions, r#"{"prompt": "a", "logprobs": 6}"#, "from 0 to 5"),
            (Completions, r#"{"prompt": "a", "stream": true, "prompt_logprobs": 1}"#, "cannot be streamed"),
            // Two prompts of four tokens, each with itself and two alternatives.
            (Completions, r#"{"prompt": ["aaaa", "bbbb"], "prompt_logprobs": 2}"#, "24 log-probabilities; at most 20"),
            (Completions, r#"{"prompt": "a", "top_p": 0}"#, "top_p must be above 0"),
            (Chat, r#"{"messages": []}"#, "empty list"),
            (Chat, r#"{"messages": [{"role": "king", "content": "a"}]}"#, "`messages.role` must be"),
            (Chat, r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#, "type text"),
            (Chat, r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#, "key `name`"),
            (
                Chat,
                r#"{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}"#,
                "needs \"logprobs\": true",
            ),
        ] {
            let message = read(endpoint, body).unwrap_err();
            assert!(message.contains(words), "{body}: {message}");
        }
    }
}
