//! `[rollout]`: the number of samples of a step, and their sampler settings.

use crate::{Error, Result};
use schema::SamplerSettings;
use serde::{Deserialize, Serialize};

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Prompts per step.
    pub prompts_per_step: usize,
    /// Samples per prompt.
    #[serde(alias = "num_generations")]
    pub group_size: usize,
    /// Maximum tokens of a completion.
    #[serde(alias = "max_completion_length")]
    pub max_new_tokens: u32,
    /// Temperature that logits are divided by; 0 is greedy.
    pub temperature: f64,
    /// Number of most likely tokens to sample from; 0 for all. Any other value biases the ratios of training.
    pub top_k: u32,
    /// Probability mass of the most likely tokens to sample from; 1 for all.
    pub top_p: f64,
    /// Minimum probability of a token relative to the most likely one; 0 for all.
    pub min_p: f64,
    /// Stop strings: a completion ends once its text contains one.
    pub stop: Vec<String>,
    /// Number of first tokens that the samples of a group draw stratified, so that the group covers the policy's
    /// distribution evenly; 0 for independent draws.
    pub stratify: u32,
    /// Settings of the engine.
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
            stratify: sampler.stratify,
            engine: EngineConfig::default(),
        }
    }
}

impl Config {
    /// The sampler settings among these keys.
    pub fn sampler(&self) -> SamplerSettings {
        SamplerSettings {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
            stratify: self.stratify,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// An input error that names a key whose value is out of range.
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

/// Checks sampler settings.
///
/// # Errors
///
/// An input error if `temperature`, `top_p` or `min_p` is out of range, or a stop string is empty.
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
    /// Maximum sequences that decode side by side. Each holds keys and values for its prompt and `max_new_tokens`.
    pub max_running: usize,
    /// Maximum prompt tokens of one prefill pass; a longer prompt has a pass of its own.
    pub prefill_tokens: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_running: 64, prefill_tokens: 2048 }
    }
}
