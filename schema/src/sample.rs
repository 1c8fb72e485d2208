//! One completion, as it was sampled.

use serde::{Deserialize, Serialize};

/// An index into the model's vocabulary.
pub type Token = u32;

/// The reason why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model sampled an end-of-sequence token, which is the last token of the sample.
    Eos,
    /// A stop string appeared in the text.
    Stop,
    /// The token limit was reached: the completion is truncated.
    Length,
}

impl Finish {
    /// The word that the store and the JSON output use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }

    /// The reverse of [`Finish::as_str`].
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Eos, Self::Stop, Self::Length].into_iter().find(|finish| finish.as_str() == word)
    }
}

/// The settings of the sampler. The defaults sample from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerSettings {
    /// Temperature, the divisor of the logits; 0 means greedy (the most likely token).
    pub temperature: f64,
    /// Number of most likely tokens to sample from; 0 for all.
    pub top_k: u32,
    /// Probability mass of the most likely tokens to sample from; 1 for all.
    pub top_p: f64,
    /// Minimum probability of a token relative to the most likely one; 0 for all.
    pub min_p: f64,
    /// Maximum tokens of a completion.
    pub max_new_tokens: u32,
    /// Stop strings: a completion ends once its text contains one.
    pub stop: Vec<String>,
    /// Number of first tokens for which the samples of a request share one systematic sample of the unit interval; 0 for
    /// independent samples.
    #[serde(skip_serializing_if = "is_default")]
    pub stratify: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, max_new_tokens: 256, stop: Vec::new(), stratify: 0 }
    }
}

impl SamplerSettings {
    /// The same settings with the most likely token each time.
    #[must_use]
    pub fn greedy(mut self) -> Self {
        self.temperature = 0.0;
        self
    }

    /// The same settings with samples that are independent of each other.
    #[must_use]
    pub fn independent(mut self) -> Self {
        self.stratify = 0;
        self
    }

    /// The divisor of the logits under which log-probabilities are recorded: the temperature, or 1 when greedy.
    pub fn logprob_temperature(&self) -> f64 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }

    /// Returns true if top-k, top-p or min-p cut the distribution, so that the recorded (raw) log-probabilities are not
    /// those of the distribution that was sampled.
    pub fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// One sampled completion. Token ids are the truth; text is derived from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The sampled tokens, up to and including the end-of-sequence token if there is one.
    pub ids: Vec<Token>,
    /// True for each token that is trained on; same length as `ids`. Tokens that the policy did not sample are `false`.
    pub mask: Vec<bool>,
    /// The natural log of the behaviour policy's probability of each token: raw softmax at the sampling
    /// temperature, before top-k, top-p and min-p. Same length as `ids`.
    pub logprobs: Vec<f32>,
    /// The reason why the completion ended.
    pub finish: Finish,
    /// The decoded completion, without special tokens.
    pub text: String,
}

impl Sample {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns true if there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns true if the three sequences have one length and each log-probability is finite and at most zero.
    pub fn is_consistent(&self) -> bool {
        self.mask.len() == self.ids.len()
            && self.logprobs.len() == self.ids.len()
            && self.logprobs.iter().all(|logprob| logprob.is_finite() && *logprob <= 1e-6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_words_round_trip() {
        for finish in [Finish::Eos, Finish::Stop, Finish::Length] {
            assert_eq!(Finish::parse(finish.as_str()), Some(finish));
        }
        assert_eq!(Finish::parse("bored"), None);
    }

    #[test]
    fn greedy_records_logprobs_at_temperature_one() {
        let settings = SamplerSettings { temperature: 0.7, ..SamplerSettings::default() };
        assert_eq!(settings.logprob_temperature(), 0.7);
        assert_eq!(settings.greedy().logprob_temperature(), 1.0);
    }
}
