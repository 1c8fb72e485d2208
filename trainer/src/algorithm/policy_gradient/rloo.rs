//! REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, "Back to basics", arXiv 2402.14740).
//!
//! The baseline of a sample is the mean reward of the *others* of its group, which does not depend on it, so the
//! gradient is unbiased. A completion is one action, and the KL penalty towards the reference policy is part of its
//! reward:
//!
//! ```text
//! R_i ← R_i − β Σ_t (log π − log π_ref)
//! A_i = R_i − 1/(n − 1) Σ_{j ≠ i} R_j
//! L   = 1/N Σ_i −min(ρ_i A_i, clip(ρ_i, 1 − ε, 1 + ε) A_i)       ρ_i = exp Σ_t (log π − log π_old)
//! ```
//!
//! The defaults are TRL's: the ratio of the sequence, not normalised by length, ε 0.2 and β 0.05. `level = "token"` is
//! the form of verl and `OpenRLHF`: the ratio of each token, and a mean over all tokens.

use super::family::{self, Method, Penalty, RatioOf, Shared, settings};
use crate::Result;
use crate::algorithm::Evidence;
use crate::batch::{self, Signals};
use crate::objective::{Aggregation, Clip, Level, Surrogate, leave_one_out};
use schema::Metrics;

settings! {
    /// `[algorithm.rloo]`: REINFORCE leave-one-out. Its `kl_coefficient` acts in the reward, summed over the tokens of
    /// a completion.
    pub struct Rloo, "rloo" {
        /// Level of the clipped ratio: `sequence` or `token`.
        level: RatioOf = RatioOf::Sequence,
        /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 0.2,
        /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 0.2,
    }
    shared: Shared { kl_coefficient: 0.05, ..Shared::default() }
}

impl Rloo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        let numbers = [("clip_low", self.clip_low), ("clip_high", self.clip_high)];
        family::checked(self, &numbers)
    }
}

impl Method for Rloo {
    fn surrogate(&self) -> Surrogate {
        Surrogate {
            level: match self.level {
                RatioOf::Sequence => Level::SequenceSum,
                RatioOf::Token => Level::Token,
            },
            clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
            ..Surrogate::default()
        }
    }

    fn aggregation(&self) -> Aggregation {
        match self.level {
            // Each token of a sequence has the sequence's loss, so their mean is that loss.
            RatioOf::Sequence => Aggregation::SequenceMeanTokenMean,
            RatioOf::Token => Aggregation::TokenMean,
        }
    }

    fn penalty(&self) -> Penalty {
        Penalty::Reward
    }

    fn advantages(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        let rewards = family::penalised_rewards(evidence, self.kl_coefficient);
        batch::advantages(rewards.iter().map(|group| leave_one_out(group)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Config;
    use crate::objective::testing::check_slice;
    use crate::testing::{Losses, advantages, advantages_with_k1};

    fn free() -> Rloo {
        Rloo { kl_coefficient: 0.0, ..Rloo::default() }
    }

    #[test]
    fn the_baseline_is_the_mean_of_the_others() {
        let config = Config::Rloo(free());
        check_slice(
            &advantages(&config, &[&[1.0, 0.0, 0.0, 0.0]])[0],
            &[1.0, -0.333_333_33, -0.333_333_33, -0.333_333_33],
        );
        check_slice(&advantages(&config, &[&[0.2, 0.9, -0.4]])[0], &[-0.05, 1.0, -0.95]);
        check_slice(&advantages(&config, &[&[1.0, 1.0]])[0], &[0.0, 0.0]);
    }

    #[test]
    fn the_penalty_lowers_the_reward_of_whoever_strays() {
        // Lengths 1, 2 and 3. Sums of k1: 0.5, 0.2 − 0.1 = 0.1 and 0. Rewards: 1 − 0.05, 0 − 0.01 and 0.
        let config = Config::Rloo(Rloo { kl_coefficient: 0.1, ..Rloo::default() });
        let credit = advantages_with_k1(&config, &[&[1.0, 0.0, 0.0]], &[&[0.5], &[0.2, -0.1], &[0.0; 3]]);
        check_slice(&credit[0], &[0.95 - (-0.01) / 2.0, -0.01 - 0.95 / 2.0, 0.0 - 0.94 / 2.0]);
    }

    #[test]
    fn a_completion_is_one_action() {
        // Sums of log-ratios: 0.3 and −0.4. exp(0.3) is clipped to 1.2; exp(−0.4) with A = −1 to 0.8.
        let clipped = Losses::pair().of(&Config::Rloo(free()));
        check_slice(&[clipped.value], &[-0.2]);
        check_slice(&clipped.gradient, &[0.0; 5]);
        // With more room, the gradient at every token of a sequence is −A ρ / N.
        let wide = Losses::pair().of(&Config::Rloo(Rloo { clip_low: 1.0, clip_high: 1.0, ..free() }));
        let (up, down) = (0.3_f64.exp(), (-0.4_f64).exp());
        check_slice(&[wide.value], &[f64::midpoint(-up, down)]);
        check_slice(&wide.gradient, &[-up / 2.0, -up / 2.0, -up / 2.0, down / 2.0, down / 2.0]);
    }

    #[test]
    fn at_token_level_it_is_a_token_mean_of_token_ratios() {
        // Log-ratios 0.1, −0.1, 0.3 (clipped at 1.2) with A = 1; −0.1 and −0.3 (clipped at 0.8) with A = −1.
        let loss = Losses::pair().of(&Config::Rloo(Rloo { level: RatioOf::Token, ..free() }));
        let (a, b) = (0.1_f64.exp(), (-0.1_f64).exp());
        check_slice(&[loss.value], &[(-a - b - 1.2 + b + 0.8) / 5.0]);
        check_slice(&loss.gradient, &[-a / 5.0, -b / 5.0, 0.0, b / 5.0, 0.0]);
    }
}
