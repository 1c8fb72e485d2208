//! `[serve]`: the models and limits of the daemon.

use crate::config::{EngineConfig, check_sampler};
use crate::{Error, Result};
use schema::SamplerSettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `[serve]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to listen at. Anything but a loopback address can be reached by other machines, without encryption.
    pub host: String,
    /// The port to listen at; 0 takes a free one.
    pub port: u16,
    /// Name of the base model in requests; empty for the name of its file or folder.
    pub name: String,
    /// Adapters can be loaded by requests only from folders below this one.
    pub adapter_root: PathBuf,
    /// Maximum adapters served at once. Each has a key/value cache of its own once it has been used.
    pub max_adapters: usize,
    /// Maximum samples that wait for a slot in the batch; a request for more is answered with 429.
    pub max_waiting: usize,
    /// Maximum tokens of a prompt and its completion together; 0 for the model's context. It bounds the memory of keys
    /// and values, which is that of `engine.max_running` sequences of the longest request.
    pub max_context: usize,
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Maximum number of alternatives that `logprobs`, `top_logprobs` and `prompt_logprobs` may ask for.
    pub max_logprobs: usize,
    /// Maximum log-probs of prompts in one answer: the tokens of its prompts, times one more than the alternatives that
    /// `prompt_logprobs` asks for. An answer needs about 1 kB of memory for each.
    pub max_prompt_logprobs: usize,
    /// Maximum connections at once; more wait until one is closed.
    pub max_connections: usize,
    /// Names of this machine that requests without a token may be sent to, beside its addresses, `localhost` and `host`.
    pub hosts: Vec<String>,
    /// Maximum time for the head of a request to arrive, and again for its body, in seconds. A connection that is silent
    /// for longer is closed.
    pub body_timeout_s: f64,
    /// Interval of keep-alive comments in a stream that has nothing else to send, in seconds.
    pub keep_alive_s: f64,
    /// Time that running requests have to end after SIGTERM, in seconds.
    pub drain_s: f64,
    /// Sampler settings of requests that do not give their own.
    pub sampler: SamplerSettings,
    /// The engine's own settings; each adapter has an engine.
    pub engine: EngineConfig,
    /// Adapters to serve from the start: name in requests, and folder (of a run, or of PEFT).
    pub adapters: BTreeMap<String, PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            name: String::new(),
            adapter_root: ".".into(),
            max_adapters: 16,
            max_waiting: 256,
            max_context: 0,
            max_body_bytes: 1 << 20,
            max_logprobs: 20,
            max_prompt_logprobs: 100_000,
            max_connections: 512,
            hosts: Vec::new(),
            body_timeout_s: 30.0,
            keep_alive_s: 15.0,
            drain_s: 30.0,
            sampler: SamplerSettings::default(),
            engine: EngineConfig::default(),
            adapters: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Checks the settings that can be checked without a model.
    ///
    /// # Errors
    ///
    /// An input error that names a key whose value is out of range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("max_body_bytes", self.max_body_bytes),
            ("max_connections", self.max_connections),
            ("sampler.max_new_tokens", self.sampler.max_new_tokens as usize),
            ("engine.max_running", self.engine.max_running),
            ("engine.prefill_tokens", self.engine.prefill_tokens),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::input(format!("serve.{key} must be at least 1, but is 0")));
        }
        for (key, value) in [("body_timeout_s", self.body_timeout_s), ("drain_s", self.drain_s)] {
            if !(0.0..=86_400.0).contains(&value) {
                return Err(Error::input(format!(
                    "serve.{key} must be from 0 to 86400 seconds (a day), but is {value}"
                )));
            }
        }
        if !(0.001..=86_400.0).contains(&self.keep_alive_s) {
            return Err(Error::input(format!(
                "serve.keep_alive_s must be from 0.001 to 86400 seconds (a day), but is {}",
                self.keep_alive_s
            )));
        }
        if self.adapters.len() > self.max_adapters {
            return Err(Error::input(format!(
                "serve.adapters names {} adapters, but serve.max_adapters is {}; raise it",
                self.adapters.len(),
                self.max_adapters
            )));
        }
        check_sampler(&self.sampler).map_err(|error| Error::input(format!("serve.sampler: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Config::default().check().is_ok());
        let engine = |max_running| EngineConfig { max_running, ..EngineConfig::default() };
        let sampler = SamplerSettings { top_p: 2.0, ..SamplerSettings::default() };
        let adapters: BTreeMap<String, PathBuf> = [("a".to_owned(), "b".into())].into();
        for (config, words) in [
            (Config { engine: engine(0), ..Config::default() }, "serve.engine.max_running must be at least 1"),
            (Config { drain_s: f64::NAN, ..Config::default() }, "serve.drain_s must be from 0"),
            (Config { keep_alive_s: 0.0, ..Config::default() }, "serve.keep_alive_s must be from 0.001"),
            (Config { sampler, ..Config::default() }, "serve.sampler: top_p must be above 0"),
            (Config { adapters, max_adapters: 0, ..Config::default() }, "serve.max_adapters is 0"),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.is_input() && error.to_string().contains(words), "{error}");
        }
    }
}
