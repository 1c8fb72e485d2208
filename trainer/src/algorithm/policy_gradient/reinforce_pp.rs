//! REINFORCE++ (Hu et al. 2025, arXiv 2501.03262), and its form with a group baseline.
//!
//! PPO without a critic: a token's advantage is its reward to go, whitened over the whole step instead of the group.
//! One sample per prompt is enough.
//!
//! ```text
//! r_t = −β (log π − log π_ref)_t,  plus R at the last token
//! G_t = Σ_{s ≥ t} r_s                                            no discount
//! A_t = (G_t − mean G) / std G                                   over all tokens of the step
//! L   = 1/Σ|y_i| Σ_i Σ_t −min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t)
//! ```
//!
//! With `baseline = true`, REINFORCE++-baseline: `A = whiten(R_i − mean of the group)`, and the penalty moves into the
//! loss, as k2, whose gradient is that of the KL divergence. A group with equal rewards then has a nonzero advantage,
//! because the step's mean over tokens is subtracted from every token and depends on the lengths of other groups'
//! samples.
//!
//! β is verl's 0.001, ε is 0.2 everywhere. verl divides by the variance with Bessel's correction, `OpenRLHF` by the
//! biased one: `variance`.

use super::family::{self, Method, Penalty, Shared, settings};
use crate::Result;
use crate::algorithm::Evidence;
use crate::batch::{Signal, Signals};
use crate::objective::{
    Clip, KlEstimator, Scale, Surrogate, Variance, group_advantages, reward_to_go, token_rewards, whiten,
};
use schema::{Metrics, Sample};

settings! {
    /// `[algorithm.reinforce_pp]`: REINFORCE++. Its `kl_coefficient` acts in the reward of each token, or with
    /// `baseline` in the loss.
    pub struct ReinforcePp, "reinforce_pp" {
        /// Subtract the mean reward of the group first.
        baseline: bool = false,
        /// Lower clip: distance by which the ratio may fall below 1 before its gradient is cut.
        #[serde(alias = "epsilon")]
        clip_low: f64 = 0.2,
        /// Upper clip: distance by which the ratio may rise above 1 before its gradient is cut.
        #[serde(alias = "epsilon_high")]
        clip_high: f64 = 0.2,
        /// Variance that whitens the advantages: `bessel` or `biased`.
        variance: Variance = Variance::Bessel,
    }
    shared: Shared { kl_coefficient: 0.001, ..Shared::default() }
}

impl ReinforcePp {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        let numbers = [("clip_low", self.clip_low), ("clip_high", self.clip_high)];
        family::checked(self, &numbers)
    }

    /// Returns the reward to go of each token of each graded sample before whitening, sample by sample.
    fn raw(&self, evidence: &Evidence<'_>) -> Vec<Vec<Option<Vec<f64>>>> {
        let rewards = family::rewards(evidence);
        let outcomes = if self.baseline { group_advantages(&rewards, Scale::None, 0.0) } else { rewards };
        let samples = evidence.groups().into_iter().map(|group| &group.group().samples);
        let of_group = |(group, (outcomes, samples)): (usize, (Vec<Option<f64>>, &Vec<Sample>))| {
            let of_sample = |(index, (outcome, sample)): (usize, (Option<f64>, &Sample))| {
                let logprobs = evidence.logprobs.filter(|_| !self.baseline).map(|logprobs| &logprobs[group][index]);
                let kl = logprobs.map_or_else(|| vec![0.0; sample.len()], family::k1);
                self.of_sample(outcome?, &kl, sample)
            };
            outcomes.into_iter().zip(samples).enumerate().map(of_sample).collect()
        };
        outcomes.into_iter().zip(samples).enumerate().map(of_group).collect()
    }

    /// Returns the reward to go at each token; `None` if no token is trained on.
    fn of_sample(&self, outcome: f64, kl: &[f64], sample: &Sample) -> Option<Vec<f64>> {
        let kl = if kl.len() == sample.len() { kl } else { &vec![0.0; sample.len()] };
        let rewards = token_rewards(outcome, kl, self.kl_coefficient, &sample.mask)?;
        Some(reward_to_go(&rewards, &sample.mask, 1.0))
    }
}

impl Method for ReinforcePp {
    fn surrogate(&self) -> Surrogate {
        Surrogate { clip: Clip::Ratio { low: self.clip_low, high: self.clip_high }, ..Surrogate::default() }
    }

    fn penalty(&self) -> Penalty {
        if self.baseline { Penalty::Loss(KlEstimator::K2) } else { Penalty::Reward }
    }

    fn advantages(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Signals {
        let raw = self.raw(evidence);
        let samples = evidence.groups().into_iter().flat_map(|group| &group.group().samples);
        let known = raw.iter().flatten().zip(samples).filter_map(|(raw, sample)| Some((raw.as_ref()?, sample)));
        let trained = known.flat_map(|(raw, sample)| raw.iter().zip(&sample.mask));
        let tokens: Vec<f64> = trained.filter(|(_, trained)| **trained).map(|(raw, _)| *raw).collect();
        let mut whitened = whiten(&tokens, self.variance).into_iter();

        let mut credit = |raw: Option<Vec<f64>>, sample: &Sample| {
            raw.map(|_| {
                let token = |trained: &bool| if *trained { whitened.next().unwrap_or_default() as f32 } else { 0.0 };
                Signal::TokenAdvantages { advantages: sample.mask.iter().map(token).collect(), returns: Vec::new() }
            })
        };
        raw.into_iter()
            .zip(evidence.groups())
            .map(|(raw, group)| {
                raw.into_iter().zip(&group.group().samples).map(|(raw, sample)| credit(raw, sample)).collect()
            })
            .collect()
    }

    fn group_size(&self) -> usize {
        if self.baseline { 2 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, Samples, build};
    use crate::objective::testing::check_slice;
    use crate::testing::{Losses, scored_lengths, token_advantages};

    /// Three samples of 2, 3 and 4 tokens, each alone with its prompt.
    const K1: [&[f64]; 3] = [&[0.1, -0.05], &[0.2, 0.1, 0.05], &[0.0, 0.0, 0.0, 0.3]];

    fn plain(variance: Variance) -> Vec<f64> {
        let config = Config::ReinforcePp(ReinforcePp { kl_coefficient: 0.1, variance, ..ReinforcePp::default() });
        let groups = scored_lengths(&[(&[1.0], &[2]), (&[0.0], &[3]), (&[0.5], &[4])]);
        token_advantages(&config, &groups, Some(&K1)).concat()
    }

    #[test]
    fn what_follows_a_token_is_whitened_over_the_step() {
        // Rewards to go: 0.995, 1.005 | −0.035, −0.015, −0.005 | 0.47 four times.
        let verl = [1.436_55, 1.461_752_6, -1.159_321_1, -1.108_915_8, -1.083_713_2];
        check_slice(&plain(Variance::Bessel), &[&verl[..], &[0.113_411_84; 4]].concat());
        let openrlhf = [1.523_691_4, 1.550_422_9, -1.229_645_7, -1.176_182_9, -1.149_451_4];
        check_slice(&plain(Variance::Biased), &[&openrlhf[..], &[0.120_291_43; 4]].concat());
    }

    #[test]
    fn with_a_baseline_the_group_s_mean_goes_first() {
        // R = 1, 0 | 1, 1 with 2, 1 | 3, 3 tokens: ±0.5 and 0 before whitening.
        let config = Config::ReinforcePp(ReinforcePp { baseline: true, ..ReinforcePp::default() });
        let groups = scored_lengths(&[(&[1.0, 0.0], &[2, 1]), (&[1.0, 1.0], &[3, 3])]);
        let credit = token_advantages(&config, &groups, None).concat();
        check_slice(&credit, &[&[1.479_200_4, 1.479_200_4, -1.849_000_6][..], &[-0.184_900_06; 6]].concat());
    }

    #[test]
    fn an_unjudged_sample_takes_no_part() {
        let config = Config::ReinforcePp(ReinforcePp { kl_coefficient: 0.0, ..ReinforcePp::default() });
        let groups = scored_lengths(&[(&[1.0], &[1]), (&[f32::NAN], &[5]), (&[0.0], &[1])]);
        let credit = token_advantages(&config, &groups, None);
        // ±0.5 over Bessel's deviation of 1 and 0, √½.
        check_slice(&credit[0], &[0.5_f64.sqrt()]);
        assert!(credit[1].is_empty());
        check_slice(&credit[2], &[-(0.5_f64.sqrt())]);
    }

    #[test]
    fn rewards_that_are_all_alike_teach_nothing() {
        let config = Config::ReinforcePp(ReinforcePp { kl_coefficient: 0.0, ..ReinforcePp::default() });
        let groups = scored_lengths(&[(&[0.1], &[2]), (&[0.1], &[3])]);
        assert_eq!(token_advantages(&config, &groups, None).concat(), [0.0; 5]);
    }

    #[test]
    fn one_sample_is_enough_unless_groups_are_compared() {
        let least = |baseline| {
            let settings = ReinforcePp { baseline, ..ReinforcePp::default() };
            build(&Config::ReinforcePp(settings)).unwrap().needs().samples
        };
        assert_eq!(least(false), Samples::sampled(1));
        assert_eq!(least(true), Samples::sampled(2));
    }

    #[test]
    fn the_penalty_of_the_baseline_form_is_k2_in_the_loss() {
        // No credit; log-ratios to the reference are 0.2 and −0.5: k2 is 0.02 and 0.125, its gradient 0.2 and −0.5.
        let settings = ReinforcePp { baseline: true, kl_coefficient: 0.1, ..ReinforcePp::default() };
        let reference = Some(tch::Tensor::from_slice(&[-1.2, -1.5]));
        let case = Losses { reference, ..Losses::at(&[2], &[0.0; 2], &[-1.0, -2.0]) };
        let loss = case.of(&Config::ReinforcePp(settings));
        check_slice(&[loss.value], &[0.1 * (0.02 + 0.125) / 2.0]);
        check_slice(&loss.gradient, &[0.1 * 0.2 / 2.0, -0.1 * 0.5 / 2.0]);
    }

    #[test]
    fn advantages_may_differ_from_token_to_token() {
        let loss = Losses::at(&[3], &[1.0, -2.0, 0.5], &[-1.0; 3]).of(&Config::ReinforcePp(ReinforcePp::default()));
        check_slice(&[loss.value], &[(-1.0 + 2.0 - 0.5) / 3.0]);
        check_slice(&loss.gradient, &[-1.0 / 3.0, 2.0 / 3.0, -0.5 / 3.0]);
    }
}
