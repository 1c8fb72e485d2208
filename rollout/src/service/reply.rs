//! Answers in the JSON of OpenAI's API, with vLLM's additions if they are asked for.
//!
//! Log-probabilities are those of the raw softmax at the request's temperature, as training needs them. They and the
//! token ids cover every sampled token, including those of a stop string and the end-of-sequence token, which are not in
//! the text.

use super::request::{CompletionRequest, Endpoint};
use crate::engine::{PromptLogprob, SampledToken};
use model::tokenizer::Tokenizer;
use schema::{Finish, Token};
use serde_json::{Map, Value, json};

/// The parts of an answer that do not depend on its samples.
pub(super) struct Reply<'a> {
    pub(super) request: &'a CompletionRequest,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) id: String,
    pub(super) model: &'a str,
    /// Content hash of the policy that samples; empty until a policy has taken up the request.
    pub(super) policy: String,
    /// Time of creation, in seconds since 1970.
    pub(super) created: u64,
}

/// A sample, or the next part of one.
pub(super) struct Part<'a> {
    pub(super) choice: usize,
    pub(super) text: &'a str,
    pub(super) tokens: Vec<PositionedToken>,
    pub(super) finish: Option<Finish>,
}

/// A token with its position in the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PositionedToken {
    pub(super) token: SampledToken,
    /// Characters of the text before it.
    pub(super) offset: usize,
}

impl Reply<'_> {
    /// A whole answer.
    pub(super) fn whole(&self, parts: Vec<Part<'_>>, logprobs: &[Vec<PromptLogprob>], usage: Value) -> String {
        let chat = self.request.endpoint == Endpoint::Chat;
        let choices = parts.into_iter().map(|part| {
            let prompt = part.choice / self.request.samples;
            let mut choice = self.choice(&part);
            if chat {
                choice.insert("message".into(), json!({"role": "assistant", "content": part.text, "refusal": null}));
            } else {
                choice.insert("text".into(), json!(part.text));
                self.add_prompt(&mut choice, prompt, logprobs);
            }
            Value::Object(choice)
        });
        let choices: Vec<Value> = choices.collect();
        let mut answer = self.envelope(if chat { "chat.completion" } else { "text_completion" });
        answer.insert("choices".into(), Value::Array(choices));
        answer.insert("usage".into(), usage);
        if chat {
            self.add_prompt(&mut answer, 0, logprobs);
        }
        Value::Object(answer).to_string()
    }

    /// The first event of a choice in a stream, if there is one before its text.
    pub(super) fn opening(&self, choice: usize) -> Option<String> {
        let chat = self.request.endpoint == Endpoint::Chat;
        if !chat && !self.request.return_token_ids {
            return None;
        }
        let part = Part { choice, text: "", tokens: Vec::new(), finish: None };
        let mut fields = self.choice(&part);
        fields.insert("logprobs".into(), Value::Null);
        fields.remove("token_ids");
        if chat {
            fields.insert("delta".into(), json!({"role": "assistant", "content": ""}));
        } else {
            fields.insert("text".into(), json!(""));
            self.add_prompt(&mut fields, choice / self.request.samples, &[]);
        }
        let mut event = self.chunk(vec![Value::Object(fields)], Value::Null);
        if chat {
            self.add_prompt(&mut event, 0, &[]);
        }
        Some(Value::Object(event).to_string())
    }

    /// The next event of a stream.
    pub(super) fn part(&self, part: &Part<'_>) -> String {
        let mut choice = self.choice(part);
        if self.request.endpoint == Endpoint::Chat {
            let empty = part.text.is_empty() && part.finish.is_some();
            choice.insert("delta".into(), if empty { json!({}) } else { json!({"content": part.text}) });
        } else {
            choice.insert("text".into(), json!(part.text));
        }
        Value::Object(self.chunk(vec![Value::Object(choice)], Value::Null)).to_string()
    }

    /// The last event of a stream, with the number of tokens.
    pub(super) fn usage_event(&self, usage: Value) -> String {
        Value::Object(self.chunk(Vec::new(), usage)).to_string()
    }

    /// Numbers of tokens. A prompt counts once for all of its samples, as it is computed once.
    pub(super) fn usage(&self, sampled: usize) -> Value {
        let prompt: usize = self.request.prompts.iter().map(Vec::len).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled})
    }

    fn chunk(&self, choices: Vec<Value>, usage: Value) -> Map<String, Value> {
        let chat = self.request.endpoint == Endpoint::Chat;
        let mut event = self.envelope(if chat { "chat.completion.chunk" } else { "text_completion" });
        event.insert("choices".into(), Value::Array(choices));
        if !usage.is_null() {
            event.insert("usage".into(), usage);
        }
        event
    }

    fn envelope(&self, object: &str) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("id".into(), json!(self.id));
        fields.insert("object".into(), json!(object));
        fields.insert("created".into(), json!(self.created));
        fields.insert("model".into(), json!(self.model));
        fields.insert("system_fingerprint".into(), json!(self.policy));
        fields
    }

    fn choice(&self, part: &Part<'_>) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("index".into(), json!(part.choice));
        fields.insert("logprobs".into(), self.logprobs(&part.tokens));
        fields.insert("finish_reason".into(), part.finish.map_or(Value::Null, |finish| json!(reason(finish))));
        if self.request.return_token_ids {
            let ids: Vec<Token> = part.tokens.iter().map(|it| it.token.id).collect();
            fields.insert("token_ids".into(), json!(ids));
        }
        fields
    }

    /// Adds the token ids and log-probabilities of the prompt, if they are asked for.
    fn add_prompt(&self, fields: &mut Map<String, Value>, prompt: usize, logprobs: &[Vec<PromptLogprob>]) {
        if self.request.return_token_ids {
            fields.insert("prompt_token_ids".into(), json!(self.request.prompts[prompt]));
        }
        if let Some(logprobs) = logprobs.get(prompt) {
            let targets = self.request.prompts[prompt].iter().skip(1);
            let rest = targets.zip(logprobs).map(|(token, logprob)| self.prompt_logprob(*token, logprob));
            // Nothing predicts the first token.
            fields.insert("prompt_logprobs".into(), [Value::Null].into_iter().chain(rest).collect());
        }
    }

    /// Log-probabilities by token id: the token itself, and the most likely ones of its position.
    fn prompt_logprob(&self, token: Token, entry: &PromptLogprob) -> Value {
        let ranked = entry.top_logprobs.iter().zip(1..).map(|((token, logprob), rank)| (*token, *logprob, rank));
        let own = (token, entry.logprob, entry.rank);
        let entries = [own].into_iter().chain(ranked.filter(|(other, ..)| *other != token));
        entries
            .map(|(token, logprob, rank)| {
                let entry = json!({"logprob": logprob, "rank": rank, "decoded_token": self.token_text(token)});
                (token.to_string(), entry)
            })
            .collect::<Map<_, _>>()
            .into()
    }

    fn logprobs(&self, tokens: &[PositionedToken]) -> Value {
        match (self.request.top_logprobs, self.request.endpoint) {
            (None, _) => Value::Null,
            (Some(_), Endpoint::Chat) => {
                let entry = |token: Token, logprob: f32| {
                    let text = self.token_text(token);
                    let whole = !text.contains(char::REPLACEMENT_CHARACTER) && !self.is_partial(token);
                    json!({"token": text, "logprob": logprob, "bytes": whole.then_some(text.as_bytes())})
                };
                let content = tokens.iter().map(|PositionedToken { token, .. }| {
                    let mut fields = entry(token.id, token.logprob);
                    let top = token.top_logprobs.iter().map(|(token, logprob)| entry(*token, *logprob));
                    fields["top_logprobs"] = top.collect();
                    fields
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            (Some(count), Endpoint::Completions) => {
                let top = |it: &PositionedToken| -> Value {
                    let top = it.token.top_logprobs.iter().map(|(token, p)| (self.token_text(*token), json!(p)));
                    top.collect::<Map<_, _>>().into()
                };
                json!({
                    "tokens": tokens.iter().map(|it| self.token_text(it.token.id)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|it| it.token.logprob).collect::<Vec<_>>(),
                    "top_logprobs": (count > 0).then(|| tokens.iter().map(top).collect::<Vec<_>>()),
                    "text_offset": tokens.iter().map(|it| it.offset).collect::<Vec<_>>(),
                })
            }
        }
    }

    /// The text of a token, or its spelling in the vocabulary if it decodes to no text.
    fn token_text(&self, token: Token) -> String {
        let text = self.tokenizer.decode(&[token]);
        if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
            return text;
        }
        self.tokenizer.token_text(token).unwrap_or(text)
    }

    /// True if a token is only a part of a character.
    fn is_partial(&self, token: Token) -> bool {
        self.tokenizer.decode(&[token]).contains(char::REPLACEMENT_CHARACTER)
    }
}

/// The `finish_reason` of a sample.
pub(super) fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos | Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
