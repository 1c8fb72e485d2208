//! Group-relative policy optimisation (Shao et al. 2024, `DeepSeekMath`, arXiv 2402.03300).
//!
//! A sample's advantage is its reward minus the mean of its group, so no critic is needed and only differences within a
//! group carry a signal:
//!
//! ```text
//! A_i = (R_i − mean R) / (std R + ε)
//! ℓ_t = −min(r_t A, clip(r_t, 1 − low, 1 + high) A) + β KL(π ‖ π_ref)_t − c H_t
//! ```
//!
//! The defaults are those of current practice and of TRL: token-mean aggregation (DAPO), no KL term, one update per
//! step, in which the ratio is 1 and the clip has no effect. The reference policy is the network with its adapter off.

use super::family::{self, Method, Penalty, Shared, settings};
use super::surrogate_loss::{self, unless_zero};
use crate::Result;
use crate::algorithm::Evidence;
use crate::batch::Signals;
use crate::objective::{Aggregation, Clip, KlEstimator, Level, RatioReference, Scale, Surrogate};
use schema::Metrics;

settings! {
    /// `[algorithm.grpo]`: group-relative policy optimisation.
    pub struct Grpo, "grpo" {
        /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 0.2,
        /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 0.2,
        /// Cap on the ratio in the unclipped branch (two-sided clipping, INTELLECT-2); 0 for no cap.
        delta: f64 = 0.0,
        /// Cap on the loss of tokens with negative advantage, in multiples of the advantage (dual clip); 0 for no cap.
        dual_clip: f64 = 0.0,
        /// Level of the ratio: `token`, or the whole sequence.
        #[serde(alias = "importance_sampling_level")]
        ratio_level: Level = Level::Token,
        /// Estimator of the KL penalty.
        kl_estimator: KlEstimator = KlEstimator::K3,
        /// Aggregation of token losses into one loss.
        #[serde(alias = "loss_type")]
        aggregation: LossType = Aggregation::TokenMean,
        /// Divisor of the centred rewards: `group`, `batch` or `none`.
        scale_rewards: ScaleRewards = Scale::Group,
        /// Constant ε added to the deviation by which rewards are divided.
        scale_epsilon: f64 = family::SCALE_EPSILON,
    }
    shared: Shared::default()
}

/// Aggregation of token losses, by the field's names.
pub type LossType = Aggregation;

/// Divisor of the centred rewards: `group`, `batch` or `none`.
pub type ScaleRewards = Scale;

impl Grpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        surrogate_loss::dual_clip("grpo", self.dual_clip)?;
        let numbers = [
            ("clip_low", self.clip_low),
            ("clip_high", self.clip_high),
            ("delta", self.delta),
            ("scale_epsilon", self.scale_epsilon),
        ];
        family::checked(self, &numbers)
    }
}

impl Method for Grpo {
    fn surrogate(&self) -> Surrogate {
        Surrogate {
            level: self.ratio_level,
            ratio_reference: RatioReference::Proximal,
            clip: Clip::Ratio { low: self.clip_low, high: self.clip_high },
            dual_clip: unless_zero(self.dual_clip),
            delta: unless_zero(self.delta),
        }
    }

    fn aggregation(&self) -> Aggregation {
        self.aggregation
    }

    fn penalty(&self) -> Penalty {
        Penalty::Loss(self.kl_estimator)
    }

    fn advantages(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        family::group_relative(evidence, self.scale_rewards, self.scale_epsilon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::objective::RolloutCorrection;
    use crate::objective::testing::{check_slice, f64s};
    use crate::testing::Losses;

    /// Token losses 1, 2, 3, 4 | 10 | none: the policy has not moved, so each is minus its advantage.
    fn unmoved() -> Losses {
        let losses = [1.0, 2.0, 3.0, 4.0, 10.0];
        Losses::unmoved(&[4, 1, 0], &losses.map(|loss| -loss))
    }

    #[test]
    fn every_mean_that_goes_by_this_name() {
        let loss = |aggregation| unmoved().of(&Config::Grpo(Grpo { aggregation, ..Grpo::default() })).value;
        check_slice(&[loss(Aggregation::TokenMean)], &[4.0]);
        check_slice(&[loss(Aggregation::SequenceMeanTokenMean)], &[6.25]);
        check_slice(&[loss(Aggregation::AllSequenceMeanTokenMean)], &[4.166_666_7]);
    }

    #[test]
    fn the_penalty_is_added_and_pulls_back() {
        // One sequence, no credit: what is left is β · k3, over three tokens.
        let settings = Grpo { kl_coefficient: 0.3, ..Grpo::default() };
        let reference = Some(f64s(&[-1.2, -1.5, -0.5]));
        let case = Losses { reference, ..Losses::at(&[3], &[0.0; 3], &[-1.0, -2.0, -0.5]) };
        let loss = case.of(&Config::Grpo(settings));
        check_slice(&[loss.value], &[0.1 * (0.018_730_753 + 0.148_721_27)]);
        check_slice(&loss.gradient, &[0.018_126_925, -0.064_872_127, 0.0]);
    }

    #[test]
    fn truncated_weights_make_it_decoupled_ppo() {
        // The weights are proximal/behaviour = 1.5 and 0.75, the ratios 1.2 and 0.9 are inside the clip.
        let logs = |x: [f64; 2]| f64s(&x.map(f64::ln));
        let case = Losses {
            behaviour: logs([0.1, 0.4]),
            proximal: logs([0.15, 0.3]),
            ..Losses::at(&[2], &[1.0, -1.0], &[0.18_f64.ln(), 0.27_f64.ln()])
        };
        let settings = Grpo {
            rollout_correction: RolloutCorrection::TokenTruncate { cap: 1.4 },
            clip_high: 0.3,
            ..Grpo::default()
        };
        let loss = case.of(&Config::Grpo(settings));
        check_slice(&[loss.value], &[f64::midpoint(-1.4 * 1.2, 0.75 * 0.9)]);
        check_slice(&loss.gradient, &[-1.4 * 1.2 / 2.0, 0.75 * 0.9 / 2.0]);
    }

    #[test]
    fn a_ratio_per_sequence_under_a_mean_over_tokens_is_told() {
        let warning = |settings: Grpo| build(&Config::Grpo(settings)).unwrap().warning();
        let by_sequence = Grpo { ratio_level: Level::SequenceMean, ..Grpo::default() };
        assert!(warning(by_sequence.clone()).unwrap().contains("algorithm.grpo.aggregation"));
        assert_eq!(warning(Grpo { aggregation: Aggregation::SequenceMeanTokenMean, ..by_sequence }), None);
        for config in Config::defaults() {
            assert_eq!(build(&config).unwrap().warning(), None, "{}", config.name());
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let refused = |settings: Grpo| build(&Config::Grpo(settings)).err().unwrap().to_string();
        assert!(refused(Grpo { clip_low: -0.1, ..Grpo::default() }).contains("clip_low"));
        assert!(refused(Grpo { dual_clip: 0.5, ..Grpo::default() }).contains("dual_clip"));
        assert!(refused(Grpo { epochs: 0, ..Grpo::default() }).contains("epochs"));
        let backwards = RolloutCorrection::TokenMask { floor: 5.0, cap: 0.5 };
        assert!(refused(Grpo { rollout_correction: backwards, ..Grpo::default() }).contains("floor"));
    }
}
