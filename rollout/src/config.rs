//! `[rollout]`: how many samples a step draws, and how.

use crate::{Error, Result};
use schema::SamplerSettings;
use serde::{Deserialize, Serialize};

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Different prompts in one step.
    pub prompts_per_step: usize,
    /// Samples drawn for each prompt.
    #[serde(alias = "num_generations")]
    pub group_size: usize,
    /// A completion is cut after this many tokens.
    #[serde(alias = "max_completion_length")]
    pub max_new_tokens: u32,
    /// Logits are divided by this before a token is drawn.
    pub temperature: f64,
    /// Keep only this many most likely tokens; 0 keeps all. Anything but 0 biases the ratios of training.
    pub top_k: u32,
    /// Keep the most likely tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f64,
    /// A completion ends when its text contains one of these.
    pub stop: Vec<String>,
    /// The engine's own settings.
    pub engine: EngineConfig,
}

impl Default for Config {
    fn default() -> Self {
        let sampler = SamplerSettings::default();
        Self {
            prompts_per_step: 8,
            group_size: 8,
            max_new_tokens: sampler.max_new_tokens,
            temperature: sampler.temperature,
            top_k: sampler.top_k,
            top_p: sampler.top_p,
            min_p: sampler.min_p,
            stop: sampler.stop,
            engine: EngineConfig::default(),
        }
    }
}

impl Config {
    /// The sampler's part.
    pub fn sampler(&self) -> SamplerSettings {
        SamplerSettings {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
        }
    }

    /// Refuses numbers that no sampler could honour.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("prompts_per_step", self.prompts_per_step),
            ("group_size", self.group_size),
            ("max_new_tokens", self.max_new_tokens as usize),
            ("engine.max_running", self.engine.max_running),
            ("engine.prefill_tokens", self.engine.prefill_tokens),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::input(format!("rollout.{key} must be at least 1, but is 0")));
        }
        check_sampler(&self.sampler())
    }
}

/// Refuses sampler settings out of range.
pub fn check_sampler(settings: &SamplerSettings) -> Result<()> {
    let ranges = [
        ("temperature", settings.temperature, 0.0, 100.0),
        ("top_p", settings.top_p, f64::MIN_POSITIVE, 1.0),
        ("min_p", settings.min_p, 0.0, 1.0),
    ];
    for (name, value, low, high) in ranges {
        if !(low..=high).contains(&value) {
            let low = if low > 0.0 { "above 0".to_owned() } else { format!("at least {low}") };
            return Err(Error::input(format!("{name} must be {low} and at most {high}, but is {value}")));
        }
    }
    if settings.stop.iter().any(String::is_empty) {
        return Err(Error::input("a stop string is empty; every text contains it"));
    }
    Ok(())
}

/// `[rollout.engine]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Sequences that decode side by side; each holds keys and values for its prompt and `max_new_tokens`.
    pub max_running: usize,
    /// Prompt tokens that one prefill pass takes at most; a longer prompt still goes in one pass.
    pub prefill_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_running: 64, prefill_tokens: 2048 }
    }
}
