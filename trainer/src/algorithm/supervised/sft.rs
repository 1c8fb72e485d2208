//! Supervised fine-tuning: maximum likelihood of the completions of a data set (as the first stage of training with
//! human feedback: Ouyang et al. 2022, `InstructGPT`, arXiv 2203.02155, section 3.5).
//!
//! ```text
//! ℓ_t = −log π(y_t | x, y_<t)          over completion tokens alone, mean over all tokens of the optimizer batch
//! ```
//!
//! Prompt tokens are not trained on. Examples lie end to end in one forward pass without padding, each attending to
//! itself alone, so packing is always on. This is the usual warm start of reinforcement learning: `model.adapter_from`
//! continues from such a run.

use crate::algorithm::{Algorithm, Evidence, Needs, Outputs, Samples};
use crate::batch::{Batch, Signal, Signals};
use crate::collected::PromptSequences;
use crate::objective::{Aggregation, Denominator, MetricSums};
use crate::{Error, Result};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.sft]`: supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sft {
    /// Largest number of tokens of an example, prompt included; a longer one is truncated at its end.
    #[serde(alias = "max_seq_length")]
    pub max_length: usize,
}

impl Default for Sft {
    fn default() -> Self {
        Self { max_length: 1024 }
    }
}

impl Sft {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        long_enough("sft", self.max_length)?;
        Ok(self)
    }
}

/// Returns an error for a limit that leaves no room for a prompt and a completion.
pub(in crate::algorithm) fn long_enough(algorithm: &str, max_length: usize) -> Result<()> {
    if max_length < 2 {
        return Err(Error::input(format!(
            "algorithm.{algorithm}.max_length must be at least 2, a token of the prompt and one of the completion, but is {max_length}"
        )));
    }
    Ok(())
}

impl Algorithm for Sft {
    fn needs(&self) -> Needs {
        Needs { samples: Samples::Demonstrations { max_length: self.max_length }, ..Needs::default() }
    }

    fn signals(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        evidence.units.iter().map(|unit| vec![Some(Signal::Imitate); unit.count()]).collect()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(Aggregation::TokenMean, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, _sums: &mut MetricSums) -> Tensor {
        batch.denominator.aggregate(&outputs.logprobs.neg(), &batch.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Config;
    use crate::testing::{LossSignal, Losses};

    #[test]
    fn every_token_of_the_batch_counts_alike() {
        // Completions of one and of three tokens: (1 + 2 + 3 + 6) / 4.
        let losses = Losses::with(&[1, 3], LossSignal::Imitation, &[-1.0, -2.0, -3.0, -6.0]);
        let loss = losses.of(&Config::Sft(Sft::default()));
        assert!((loss.value - 3.0).abs() < 1e-12);
        for (exact, numeric) in loss.gradient.iter().zip(&loss.numeric) {
            assert!((exact + 0.25).abs() < 1e-12 && (exact - numeric).abs() < 1e-6);
        }
    }
}
