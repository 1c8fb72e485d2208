//! Dr. GRPO, "GRPO done right" (Liu et al. 2025, "Understanding R1-Zero-like training", arXiv 2503.20783).
//!
//! Two divisions of GRPO bias it: by the deviation of a group's rewards, which inflates questions that are almost
//! always or almost never answered, and by a completion's own length, which makes long wrong answers cheap. Both are
//! dropped:
//!
//! ```text
//! A_i = R_i − mean R
//! L   = 1/(N · C) Σ_i Σ_t −min(r_t A_i, clip(r_t, 1 − ε, 1 + ε) A_i)      C constant, N completions
//! ```
//!
//! Up to the factor n/(n − 1) the advantages are those of RLOO. The constant is the token limit in TRL (`dr_grpo`) and
//! 3000 in the authors' runs; with Adam it matters only through `max_grad_norm`. There is no KL term, and the clip is
//! GRPO's, as in the paper.

use super::family::{self, Method, Penalty, Shared, settings};
use crate::algorithm::Evidence;
use crate::batch::Signals;
use crate::objective::{Aggregation, Clip, KlEstimator, Scale, Surrogate};
use crate::{Error, Result};
use schema::Metrics;

settings! {
    /// `[algorithm.dr_grpo]`: GRPO without its two biased divisions.
    pub struct DrGrpo, "dr_grpo" {
        /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 0.2,
        /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 0.2,
        /// Estimator of the KL penalty.
        kl_estimator: KlEstimator = KlEstimator::K3,
        /// Constant C, in tokens, that token sums are divided by; `rollout.max_new_tokens` is a good choice.
        length_constant: f64 = 256.0,
    }
    shared: Shared::default()
}

impl DrGrpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        if self.length_constant <= 0.0 {
            return Err(Error::input(format!(
                "algorithm.dr_grpo.length_constant must be above 0 (rollout.max_new_tokens is usual), but is {}",
                self.length_constant
            )));
        }
        let numbers =
            [("clip_low", self.clip_low), ("clip_high", self.clip_high), ("length_constant", self.length_constant)];
        family::checked(self, &numbers)
    }
}

impl Method for DrGrpo {
    fn surrogate(&self) -> Surrogate {
        Surrogate { clip: Clip::Ratio { low: self.clip_low, high: self.clip_high }, ..Surrogate::default() }
    }

    fn aggregation(&self) -> Aggregation {
        Aggregation::SequenceMeanTokenSumOverConstant(self.length_constant)
    }

    fn penalty(&self) -> Penalty {
        Penalty::Loss(self.kl_estimator)
    }

    fn advantages(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        family::group_relative(evidence, Scale::None, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::objective::testing::check_slice;
    use crate::testing::{Losses, advantages};

    #[test]
    fn credit_is_the_reward_less_the_mean() {
        let config = Config::DrGrpo(DrGrpo::default());
        check_slice(&advantages(&config, &[&[1.0, 0.0, 0.0, 0.0]])[0], &[0.75, -0.25, -0.25, -0.25]);
        // Rewards are f32.
        let thirds = &advantages(&config, &[&[0.2, 0.9, -0.4]])[0];
        check_slice(thirds, &[-0.033_333_333, 0.666_666_67, -0.633_333_33]);
    }

    #[test]
    fn every_token_counts_alike_whatever_the_length() {
        // Losses 1, 2, 3, 4 | 10 | none over three completions and a constant of 4: 20/12.
        let losses = [1.0, 2.0, 3.0, 4.0, 10.0];
        let config = Config::DrGrpo(DrGrpo { length_constant: 4.0, ..DrGrpo::default() });
        let loss = Losses::unmoved(&[4, 1, 0], &losses.map(|loss| -loss)).of(&config);
        check_slice(&[loss.value], &[1.666_666_7]);
        check_slice(&loss.gradient, &losses.map(|loss| loss / 12.0));
    }

    #[test]
    fn a_constant_of_nothing_is_refused() {
        let refused = build(&Config::DrGrpo(DrGrpo { length_constant: 0.0, ..DrGrpo::default() })).err().unwrap();
        assert!(refused.is_input() && refused.to_string().contains("length_constant"), "{refused}");
    }
}
