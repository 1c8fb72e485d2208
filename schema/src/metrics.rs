//! Named numbers of one step.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Named numbers of one training step, in alphabetical order. Names are those of TRL where TRL has one
/// (`reward`, `completions/mean_length`, `kl`, …).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// No metrics yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one value; a later value replaces an earlier one.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }

    /// Takes over every value of `other`.
    pub fn merge(&mut self, other: Metrics) {
        self.0.extend(other.0);
    }

    /// The value under this name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// All values by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}
