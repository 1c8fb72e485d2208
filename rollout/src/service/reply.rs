//! What was drawn, in the JSON of OpenAI's API, with vLLM's additions where they were asked for.
//!
//! Log-probabilities are those of the raw softmax at the request's temperature, which is what training needs. They and
//! the token ids cover every drawn token: those of a stop string and the end-of-sequence token too, which no text has.

use super::choice::Placed;
use super::request::{Call, Endpoint};
use crate::engine::TokenScore;
use model::tokenizer::Tokenizer;
use schema::{Finish, Token};
use serde_json::{Map, Value, json};

/// The parts of an answer that do not depend on what is drawn.
pub(super) struct Reply<'a> {
    pub(super) call: &'a Call,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) id: String,
    pub(super) model: &'a str,
    /// The content hash of the policy that draws.
    pub(super) policy: String,
    pub(super) created: u64,
}

/// A sample, or the next part of one.
pub(super) struct Part<'a> {
    pub(super) choice: usize,
    pub(super) text: &'a str,
    pub(super) tokens: Vec<Placed>,
    pub(super) finish: Option<Finish>,
}

impl Reply<'_> {
    /// A whole answer.
    pub(super) fn whole(&self, parts: Vec<Part<'_>>, scores: &[Vec<TokenScore>], usage: Value) -> String {
        let chat = self.call.endpoint == Endpoint::Chat;
        let choices = parts.into_iter().map(|part| {
            let prompt = part.choice / self.call.samples;
            let mut choice = self.choice(&part);
            if chat {
                choice.insert("message".into(), json!({"role": "assistant", "content": part.text, "refusal": null}));
            } else {
                choice.insert("text".into(), json!(part.text));
                self.add_prompt(&mut choice, prompt, scores);
            }
            Value::Object(choice)
        });
        let choices: Vec<Value> = choices.collect();
        let mut answer = self.envelope(if chat { "chat.completion" } else { "text_completion" });
        answer.insert("choices".into(), Value::Array(choices));
        answer.insert("usage".into(), usage);
        if chat {
            self.add_prompt(&mut answer, 0, scores);
        }
        Value::Object(answer).to_string()
    }

    /// The first event of a stream's choice, if it has one before its text.
    pub(super) fn opening(&self, choice: usize) -> Option<String> {
        let chat = self.call.endpoint == Endpoint::Chat;
        if !chat && !self.call.token_ids {
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
            self.add_prompt(&mut fields, choice / self.call.samples, &[]);
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
        if self.call.endpoint == Endpoint::Chat {
            let empty = part.text.is_empty() && part.finish.is_some();
            choice.insert("delta".into(), if empty { json!({}) } else { json!({"content": part.text}) });
        } else {
            choice.insert("text".into(), json!(part.text));
        }
        Value::Object(self.chunk(vec![Value::Object(choice)], Value::Null)).to_string()
    }

    /// The last event of a stream that counts tokens.
    pub(super) fn usage_event(&self, usage: Value) -> String {
        Value::Object(self.chunk(Vec::new(), usage)).to_string()
    }

    /// How many tokens there were. A prompt is counted once for all of its samples, as it is computed once.
    pub(super) fn usage(&self, drawn: usize) -> Value {
        let prompt: usize = self.call.prompts.iter().map(Vec::len).sum();
        json!({"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn})
    }

    fn chunk(&self, choices: Vec<Value>, usage: Value) -> Map<String, Value> {
        let chat = self.call.endpoint == Endpoint::Chat;
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
        if self.call.token_ids {
            let ids: Vec<Token> = part.tokens.iter().map(|placed| placed.drawn.token).collect();
            fields.insert("token_ids".into(), json!(ids));
        }
        fields
    }

    /// What was asked for about the prompt.
    fn add_prompt(&self, fields: &mut Map<String, Value>, prompt: usize, scores: &[Vec<TokenScore>]) {
        if self.call.token_ids {
            fields.insert("prompt_token_ids".into(), json!(self.call.prompts[prompt]));
        }
        if let Some(scores) = scores.get(prompt) {
            let targets = self.call.prompts[prompt].iter().skip(1);
            let rest = targets.zip(scores).map(|(token, score)| self.prompt_logprob(*token, score));
            // Nothing predicts the first token.
            fields.insert("prompt_logprobs".into(), [Value::Null].into_iter().chain(rest).collect());
        }
    }

    /// By token id: the token itself, and the likeliest of its place.
    fn prompt_logprob(&self, token: Token, score: &TokenScore) -> Value {
        let ranked = score.likeliest.iter().zip(1..).map(|((token, logprob), rank)| (*token, *logprob, rank));
        let own = (token, score.logprob, score.rank);
        let entries = [own].into_iter().chain(ranked.filter(|(other, ..)| *other != token));
        entries
            .map(|(token, logprob, rank)| {
                let entry = json!({"logprob": logprob, "rank": rank, "decoded_token": self.word(token)});
                (token.to_string(), entry)
            })
            .collect::<Map<_, _>>()
            .into()
    }

    fn logprobs(&self, tokens: &[Placed]) -> Value {
        match (self.call.likeliest, self.call.endpoint) {
            (None, _) => Value::Null,
            (Some(_), Endpoint::Chat) => {
                let entry = |token: Token, logprob: f32| {
                    let word = self.word(token);
                    let whole = !word.contains(char::REPLACEMENT_CHARACTER) && !self.is_partial(token);
                    json!({"token": word, "logprob": logprob, "bytes": whole.then_some(word.as_bytes())})
                };
                let content = tokens.iter().map(|Placed { drawn, .. }| {
                    let mut fields = entry(drawn.token, drawn.logprob);
                    let top = drawn.likeliest.iter().map(|(token, logprob)| entry(*token, *logprob));
                    fields["top_logprobs"] = top.collect();
                    fields
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            (Some(count), Endpoint::Completions) => {
                let top = |placed: &Placed| -> Value {
                    let likeliest = placed.drawn.likeliest.iter().map(|(token, p)| (self.word(*token), json!(p)));
                    likeliest.collect::<Map<_, _>>().into()
                };
                json!({
                    "tokens": tokens.iter().map(|placed| self.word(placed.drawn.token)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|placed| placed.drawn.logprob).collect::<Vec<_>>(),
                    "top_logprobs": (count > 0).then(|| tokens.iter().map(top).collect::<Vec<_>>()),
                    "text_offset": tokens.iter().map(|placed| placed.offset).collect::<Vec<_>>(),
                })
            }
        }
    }

    /// A token as a text: what it decodes to, or the vocabulary's spelling where that is not a text.
    fn word(&self, token: Token) -> String {
        let text = self.tokenizer.decode(&[token]);
        if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) {
            return text;
        }
        self.tokenizer.token_text(token).unwrap_or(text)
    }

    /// Whether a token is part of a letter.
    fn is_partial(&self, token: Token) -> bool {
        self.tokenizer.decode(&[token]).contains(char::REPLACEMENT_CHARACTER)
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos | Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
