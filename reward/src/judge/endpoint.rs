//! A judge that asks a language model behind an OpenAI-compatible address: an own server, or a service.
//!
//! Each pair is one request to `{url}/chat/completions`; several are under way at a time. A failure of the network costs
//! time and never invents a comparison:
//!
//! - a request that is not answered in `timeout_s`, or is answered by 408, 409, 425, 429 or a number from 500, is retried
//!   up to `retries` times, after `backoff_s`, twice that, four times that, or the pause of `Retry-After`;
//! - a request that still fails, is refused, or is answered by neither A, B nor tie leaves its comparison missing, with
//!   the reason;
//! - once an address cannot be reached or refuses the key, the other pairs of the step are not tried.
//!
//! With `soft`, P is read from the log-probabilities of the answer's first token instead of the word.

mod answer;

use super::{Judge, Matchup};
use crate::{Error, Result, fingerprint};
use schema::{Grade, Prompt, PromptInput};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use ureq::Agent;
use ureq::http::StatusCode;

/// The default instruction.
const INSTRUCTION: &str = "You compare two answers to the same question. Judge what they say, not where they stand or how \
long they are. Reply with one word and nothing else: A if answer A is better, B if answer B is better, tie if neither is.";

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Statuses from which a second attempt may recover, besides those from 500.
const PASSING: [u16; 4] = [408, 409, 425, 429];

/// Statuses that say the same to every request.
const CLOSED: [u16; 3] = [401, 403, 404];

/// The address of the model, and the form of the requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address before `/chat/completions`, such as `http://127.0.0.1:8000/v1`. It has no default.
    pub url: String,
    /// The model's name there. It has no default.
    pub model: String,
    /// The environment variable that holds the key; empty for no key. The key itself is never written anywhere.
    pub api_key_env: String,
    /// The instruction before each pair; the reply must be A, B or tie, or end in `[[A]]`, `[[B]]` or `[[C]]`.
    pub instruction: String,
    /// Tokens that the reply may have; 0 leaves the limit to the server.
    pub max_tokens: u32,
    /// Read the probability from the log-probabilities of the reply's first token. The server must offer them.
    pub soft: bool,
    /// Further keys of each request, as in `request = { seed = 1 }`; they replace those of this program.
    pub request: Map<String, Value>,
    /// The time limit of one request, in seconds.
    pub timeout_s: f64,
    /// The number of retries of a request that failed for a reason that may pass.
    pub retries: u32,
    /// The pause before the first retry, in seconds; each further one is twice as long, up to a minute.
    pub backoff_s: f64,
    /// Requests under way at a time.
    pub concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            api_key_env: String::new(),
            instruction: INSTRUCTION.into(),
            max_tokens: 16,
            soft: false,
            request: Map::new(),
            timeout_s: 60.0,
            retries: 3,
            backoff_s: 1.0,
            concurrency: 8,
        }
    }
}

/// A judge that asks the model.
pub struct Endpoint {
    config: Config,
    address: String,
    key: Option<String>,
    agent: Agent,
    pause: Duration,
    version: String,
}

impl Endpoint {
    /// Checks the settings and reads the key; sends no request yet.
    ///
    /// # Errors
    ///
    /// Fails if the address or the model is missing, a number is out of range, or the key's variable is not set.
    pub fn new(config: &Config) -> Result<Self> {
        let Config { url, model, api_key_env, .. } = config;
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(Error::input(format!(
                "endpoint: `url` ({url}) must be an address such as \"http://127.0.0.1:8000/v1\""
            )));
        }
        if model.is_empty() {
            return Err(Error::input("endpoint: `model` is missing; name one that the server has"));
        }
        if config.concurrency == 0 {
            return Err(Error::input("endpoint: `concurrency` must be at least 1, but is 0"));
        }
        let seconds = |name: &str, seconds: f64| {
            let problem =
                || Error::input(format!("endpoint: `{name}` ({seconds}) must be a number of seconds above 0"));
            Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).ok_or_else(problem)
        };
        let (limit, pause) = (seconds("timeout_s", config.timeout_s)?, seconds("backoff_s", config.backoff_s)?);
        let key = if api_key_env.is_empty() { None } else { Some(key(api_key_env)?) };
        if key.is_some() && url.starts_with("http://") && !is_loopback(url) {
            tracing::warn!("the judge's key goes to {url} in the clear; https would hide it");
        }
        let mut agent = Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            // A key must not follow a redirect.
            .max_redirects(0)
            .max_redirects_will_error(false);
        if is_loopback(url) {
            agent = agent.proxy(None);
        }
        let asked = (url, model, &config.instruction, config.max_tokens, config.soft, &config.request);
        Ok(Self {
            address: format!("{}/chat/completions", url.trim_end_matches('/')),
            version: fingerprint(1, &asked),
            agent: agent.build().new_agent(),
            config: config.clone(),
            key,
            pause,
        })
    }

    /// Asks about one pair, with retries.
    fn ask(&self, pair: &Matchup<'_>, closed: &OnceLock<String>) -> Grade {
        let body = self.body(pair).to_string();
        let (mut pause, mut left) = (self.pause, self.config.retries);
        loop {
            if let Some(reason) = closed.get() {
                return Grade::missing(format!("not asked, because another pair failed: {reason}"));
            }
            match self.attempt(&body) {
                Ok(reply) => return answer::read(&reply, self.config.soft),
                Err(Failure { reason, passing: true, after, .. }) if left > 0 => {
                    tracing::info!(reason, "the judge is asked again");
                    thread::sleep(after.unwrap_or(pause).min(LONGEST_PAUSE));
                    (pause, left) = (pause.saturating_mul(2), left - 1);
                }
                Err(Failure { reason, everywhere, .. }) => {
                    if everywhere {
                        // The first one to notice tells the others.
                        let _ = closed.set(reason.clone());
                    }
                    return Grade::missing(reason);
                }
            }
        }
    }

    fn body(&self, (a, b): &Matchup<'_>) -> Value {
        let question = question(&a.group.prompt);
        let (a, b) = (&a.sample().text, &b.sample().text);
        let content = format!(
            "Question:\n{question}\n\n<answer A>\n{a}\n</answer A>\n\n<answer B>\n{b}\n</answer B>\n\nWhich answer is better?"
        );
        let messages = json!([
            { "role": "system", "content": self.config.instruction },
            { "role": "user", "content": content },
        ]);
        let mut body = json!({ "model": self.config.model, "messages": messages, "temperature": 0.0 });
        if self.config.max_tokens > 0 {
            body["max_tokens"] = self.config.max_tokens.into();
        }
        if self.config.soft {
            body["logprobs"] = true.into();
            body["top_logprobs"] = 5.into();
        }
        for (key, value) in &self.config.request {
            body[key] = value.clone();
        }
        body
    }

    fn attempt(&self, body: &str) -> std::result::Result<Value, Failure> {
        let mut request = self.agent.post(&self.address).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let unreachable = |error: ureq::Error| Failure {
            reason: format!("{}: {error}", self.address),
            passing: true,
            everywhere: true,
            after: None,
        };
        let mut response = request.send(body).map_err(unreachable)?;
        let status = response.status();
        let after = response.headers().get("Retry-After").and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let text = response.body_mut().read_to_string().map_err(unreachable)?;
        if status != StatusCode::OK {
            let number = status.as_u16();
            return Err(Failure {
                reason: format!("{} answered {number}: {}", self.address, answer::shortened(&text)),
                passing: status.is_server_error() || PASSING.contains(&number),
                everywhere: CLOSED.contains(&number),
                after: after.map(Duration::from_secs),
            });
        }
        serde_json::from_str(&text).map_err(|_| Failure {
            reason: format!("{} answered what is not JSON: {}", self.address, answer::shortened(&text)),
            passing: false,
            everywhere: false,
            after: None,
        })
    }
}

/// A failed attempt.
struct Failure {
    reason: String,
    /// True if a retry may succeed.
    passing: bool,
    /// True if every other pair would fail alike.
    everywhere: bool,
    /// The pause that the server asks for.
    after: Option<Duration>,
}

impl Judge for Endpoint {
    fn name(&self) -> &'static str {
        "endpoint"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        let endpoint = &*self;
        let (next, closed) = (AtomicUsize::new(0), OnceLock::new());
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            for _ in 0..endpoint.config.concurrency.min(pairs.len()) {
                let (next, closed, sender) = (&next, &closed, sender.clone());
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(pair) = pairs.get(index) else { break };
                        // The receiver outlives every thread of the scope.
                        let _ = sender.send((index, endpoint.ask(pair, closed)));
                    }
                });
            }
        });
        drop(sender);
        let mut said = vec![Grade::missing("the judge said nothing of this pair"); pairs.len()];
        for (index, win) in receiver {
            said[index] = win;
        }
        if let Some(reason) = closed.get() {
            tracing::warn!(reason, "the judge cannot be reached, or refuses the key");
        }
        said
    }
}

/// The key that an environment variable holds.
fn key(variable: &str) -> Result<String> {
    let key = std::env::var(variable).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
    key.ok_or_else(|| {
        Error::input(format!(
            "endpoint: `api_key_env` names {variable}, which is not set; export it, or leave `api_key_env` out where no key is needed"
        ))
    })
}

/// Returns true for an address of this machine, which needs no proxy.
fn is_loopback(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || name.parse().is_ok_and(|ip: std::net::Ipv4Addr| ip.is_loopback())
}

/// A prompt as the judge reads it: a single question by itself, a conversation turn by turn.
fn question(prompt: &Prompt) -> String {
    match &prompt.input {
        PromptInput::Messages(turns) if turns.len() > 1 => {
            turns.iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect::<Vec<_>>().join("\n")
        }
        _ => prompt.question().to_owned(),
    }
}

#[cfg(test)]
mod tests;
