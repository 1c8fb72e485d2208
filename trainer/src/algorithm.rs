//! Learning rules: one file each, behind one trait.
//!
//! An algorithm says what it needs, gives each sample its credit, and turns a batch into a loss. The loop supplies
//! exactly what it needs, or refuses before anything is loaded. A new algorithm is one file and its line in the list
//! below.

mod grpo;

pub use grpo::{Grpo, LossType, ScaleRewards};

use crate::batch::Batch;
use crate::objective::{Denominator, Tally};
use crate::{Error, Result};
use model::Evaluation;
use schema::{Sample, ScoredGroup};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What an algorithm wants the loop to supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The smallest group it can learn from.
    pub group_size: usize,
    /// Log-probabilities under the reference policy: the network with its adapter off.
    pub reference: bool,
    /// Passes over the samples of a step.
    pub epochs: usize,
    /// Optimizer updates in one pass.
    pub minibatches: usize,
    /// Samples whose credit is exactly zero.
    pub zero_credit: ZeroCredit,
}

/// What becomes of samples whose credit is exactly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCredit {
    /// They have no gradient, so they are counted in denominators but not computed.
    Skip,
    /// They are computed: a penalty acts on every sample.
    Compute,
}

/// A learning rule.
pub trait Algorithm {
    /// What the loop must supply.
    fn needs(&self) -> Needs;

    /// The advantage of each sample of each group; `None` for a sample that is not trained on.
    fn credit(&self, groups: &[ScoredGroup]) -> Vec<Vec<Option<f64>>>;

    /// Whether the tokens of this sample are in the loss and its denominator.
    fn trains_on(&self, _sample: &Sample) -> bool {
        true
    }

    /// What sums of token losses are divided by, over a whole optimizer batch; one entry per sequence.
    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator;

    /// The share of this batch in the loss, a scalar that is minimised; its measurements go to `tally`.
    fn loss(&self, batch: &Batch, evaluation: &Evaluation, tally: &mut Tally) -> Tensor;

    /// What must be saved to go on.
    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Goes on from a saved state.
    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        match state {
            serde_json::Value::Null => Ok(()),
            _ => Err(Error::input("the checkpoint holds the state of another algorithm")),
        }
    }
}

/// Declares `Config`, one variant per algorithm, and everything that must know them all.
macro_rules! algorithms {
    ($($name:literal $variant:ident($settings:ty),)*) => {
        /// `[algorithm.<name>]`
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Config {
            $(#[doc = concat!("`[algorithm.", $name, "]`")] $variant($settings),)*
        }

        impl Config {
            /// The algorithm's name in the config.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Every algorithm with its default settings.
            pub fn defaults() -> Vec<Self> {
                vec![$(Self::$variant(<$settings>::default()),)*]
            }
        }

        /// Checks the settings and makes the algorithm.
        pub fn build(config: &Config) -> Result<Box<dyn Algorithm>> {
            match config {
                $(Config::$variant(settings) => Ok(Box::new(settings.clone().checked()?)),)*
            }
        }
    };
}

algorithms! {
    "grpo" Grpo(Grpo),
}

impl Default for Config {
    fn default() -> Self {
        Self::Grpo(Grpo::default())
    }
}

#[cfg(test)]
mod tests;
