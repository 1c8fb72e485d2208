//! Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036): a margin with a target.
//!
//! DPO's loss decreases without bound as the margin grows, so with consistent labels it leaves the reference behind. A
//! squared loss has a target instead:
//!
//! ```text
//! ℓ = (h − 1/(2β))²,   h = mean log(π / π_ref)(chosen) − mean log(π / π_ref)(rejected)
//! ```
//!
//! The means are over tokens, as in TRL, whose authors asked those of the paper; `sum` uses whole completions.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use crate::Result;
use crate::algorithm::Needs;
use crate::objective::MetricSums;
use crate::objective::preference::squared;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.ipo]`: identity preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ipo {
    /// The paper's τ: the target margin is 1/(2β).
    #[serde(alias = "tau")]
    pub beta: f64,
    /// Aggregation of a completion's log-ratios: `mean` or `sum` over tokens.
    pub log_ratio: LogRatio,
    /// Largest number of tokens of a prompt with either answer; a longer pair is left out.
    pub max_length: usize,
}

/// Aggregation of the log-ratios of a completion's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogRatio {
    /// Mean: long and short completions count alike.
    #[default]
    Mean,
    /// Sum: the log-ratio of the whole completion.
    Sum,
}

impl Default for Ipo {
    fn default() -> Self {
        Self { beta: 0.1, log_ratio: LogRatio::Mean, max_length: 1024 }
    }
}

impl Ipo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::checked("ipo", self.max_length, self.beta)?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Ipo {
    fn needs(&self) -> Needs {
        pair_loss::needs(self.max_length)
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let margin = match self.log_ratio {
            LogRatio::Mean => pairs.logprobs.mean_ratio_margin(),
            LogRatio::Sum => pairs.logprobs.ratio_margin(),
        };
        squared(&margin, &margin.ones_like(), self.beta)
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
