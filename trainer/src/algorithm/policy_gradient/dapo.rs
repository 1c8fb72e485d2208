//! DAPO, decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).
//!
//! ```text
//! A_i = (R_i − mean R) / std R
//! L   = 1/Σ|y_i| Σ_i Σ_t −min(r_t A_i, clip(r_t, 1 − 0.2, 1 + 0.28) A_i)
//! ```
//!
//! GRPO with four changes, each of them a setting. The clip leaves more room above than below, so that rare tokens can
//! become likely (clip-higher). Every token of the batch counts alike. Groups with all answers right or all wrong, by the
//! first reward of the config, carry no signal and are replaced by groups of further prompts (dynamic sampling; its cost
//! is reported in `sampling/*`, see [`crate::sampling`]). Completions near the token limit get a soft penalty from the reward function `overlong`, or
//! are left out of the loss with `mask_truncated_completions`.
//!
//! Defaults are the paper's. There is no KL term. Masking is off, as in verl's best reproduction. As in verl, dynamic
//! sampling ends after ten rounds, but the step then learns from the groups that it has instead of ending the run.

use super::family::{self, Method, Penalty, Shared, settings};
use super::surrogate_loss::at_least_one;
use crate::Result;
use crate::algorithm::FilterBy;
use crate::objective::{Clip, KlEstimator, Surrogate};

settings! {
    /// `[algorithm.dapo]`: decoupled clip and dynamic sampling.
    pub struct Dapo, "dapo" {
        /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 0.2,
        /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 0.28,
        /// Dynamic sampling: replace groups with equal rewards by groups of further prompts.
        dynamic_sampling: bool = true,
        /// Largest number of rounds per step, each of `rollout.prompts_per_step` prompts; 10 as in verl.
        #[serde(alias = "max_num_gen_batches")]
        max_rounds: usize = 10,
        /// Rewards by which dynamic sampling tells groups apart: `first_reward` (verl's accuracy) or `total`.
        filter_by: FilterBy = FilterBy::FirstReward,
        /// Estimator of the KL penalty.
        kl_estimator: KlEstimator = KlEstimator::K3,
    }
    shared: Shared::default()
}

impl Dapo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        at_least_one("dapo", &[("max_rounds", self.max_rounds)])?;
        let numbers = [("clip_low", self.clip_low), ("clip_high", self.clip_high)];
        family::checked(self, &numbers)
    }
}

impl Method for Dapo {
    fn surrogate(&self) -> Surrogate {
        Surrogate { clip: Clip::Ratio { low: self.clip_low, high: self.clip_high }, ..Surrogate::default() }
    }

    fn penalty(&self) -> Penalty {
        Penalty::Loss(self.kl_estimator)
    }

    fn max_rounds(&self) -> usize {
        if self.dynamic_sampling { self.max_rounds } else { 1 }
    }

    fn filter_by(&self) -> FilterBy {
        self.filter_by
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::objective::testing::check_slice;
    use crate::testing::{Losses, advantages, scored};
    use schema::{Grade, GradedGroup, RewardPart, Verdict};

    /// Token ratios around both bounds, 0.8 and 1.28.
    const RATIOS: [f64; 8] = [0.5, 0.7, 1.0, 1.1, 1.2, 1.25, 1.5, 4.0];

    fn at_ratios(advantage: f64) -> Losses {
        Losses {
            proximal: tch::Tensor::from_slice(&[0.0_f64; 8]),
            ..Losses::at(&[8], &[advantage; 8], &RATIOS.map(f64::ln))
        }
    }

    #[test]
    fn there_is_more_room_above_than_below() {
        let config = Config::Dapo(Dapo::default());
        let up = at_ratios(1.0).of(&config);
        check_slice(&[up.value], &[-(0.5 + 0.7 + 1.0 + 1.1 + 1.2 + 1.25 + 1.28 + 1.28) / 8.0]);
        check_slice(&up.gradient, &[-0.5, -0.7, -1.0, -1.1, -1.2, -1.25, 0.0, 0.0].map(|slope| slope / 8.0));
        let down = at_ratios(-1.0).of(&config);
        check_slice(&[down.value], &[(0.8 + 0.8 + 1.0 + 1.1 + 1.2 + 1.25 + 1.5 + 4.0) / 8.0]);
        check_slice(&down.gradient, &[0.0, 0.0, 1.0, 1.1, 1.2, 1.25, 1.5, 4.0].map(|slope| slope / 8.0));
    }

    #[test]
    fn every_token_of_the_batch_counts_alike() {
        let losses = [1.0, 2.0, 3.0, 4.0, 10.0];
        let loss = Losses::unmoved(&[4, 1, 0], &losses.map(|loss| -loss)).of(&Config::Dapo(Dapo::default()));
        check_slice(&[loss.value], &[4.0]);
        check_slice(&loss.gradient, &losses.map(|loss| loss / 5.0));
    }

    #[test]
    fn credit_is_that_of_grpo() {
        let credit = advantages(&Config::Dapo(Dapo::default()), &[&[1.0, 0.0, 0.0, 1.0]]).remove(0);
        check_slice(&credit, &[0.865_875_43, -0.865_875_43, -0.865_875_43, 0.865_875_43]);
    }

    #[test]
    fn a_penalty_behind_the_accuracy_makes_no_group_of_wrong_answers_teach() {
        let part = |name: &str, value| RewardPart {
            name: name.into(),
            version: "1".into(),
            weight: 1.0,
            grade: Grade::of(value),
        };
        let graded = |rewards: [[f32; 2]; 2]| {
            let group = scored(&[&[0.0, 0.0]]).remove(0).group().clone();
            let verdict = |[right, penalty]: [f32; 2]| vec![part("right", right), part("overlong", penalty)];
            GradedGroup::new(group, rewards.map(verdict).map(Verdict::of_rewards).to_vec()).unwrap()
        };
        let penalised = graded([[0.0, 0.0], [0.0, -0.5]]);
        assert!(!FilterBy::FirstReward.has_signal(&penalised) && FilterBy::Total.has_signal(&penalised));
        let balanced = graded([[0.0, 0.0], [1.0, -1.0]]);
        assert!(FilterBy::FirstReward.has_signal(&balanced) && !FilterBy::Total.has_signal(&balanced));
        let filter = |settings: Dapo| build(&Config::Dapo(settings)).unwrap().schedule(1).filter_by;
        assert_eq!(filter(Dapo::default()), FilterBy::FirstReward);
        assert_eq!(filter(Dapo { filter_by: FilterBy::Total, ..Dapo::default() }), FilterBy::Total);
    }

    #[test]
    fn dynamic_sampling_can_be_switched_off() {
        let rounds = |settings: Dapo| build(&Config::Dapo(settings)).unwrap().schedule(1).max_rounds;
        assert_eq!(rounds(Dapo::default()), 10);
        assert_eq!(rounds(Dapo { dynamic_sampling: false, ..Dapo::default() }), 1);
    }
}
