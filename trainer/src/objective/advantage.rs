//! From rewards to advantages, for methods without a critic: a sample is judged against the others of its group.
//!
//! ```text
//! GRPO      A_i = (R_i − mean) / (std + ε)      std unbiased (n − 1), of the group or of the whole batch
//! Dr. GRPO  A_i =  R_i − mean                   no division: it inflates easy and hopeless prompts alike
//! RLOO      A_i =  R_i − mean of the others     = n/(n − 1) · (R_i − mean)
//! ```
//!
//! REINFORCE++ shifts and scales the credit of every token of a step together: [`whiten`].
//!
//! Numbers are f64 on the host: groups are small. A sample that could not be judged has no reward (`None`), takes no
//! part in its group's statistics and gets no advantage, so that it is not trained on. Rewards that are all equal, and
//! a sample alone in its group, teach nothing: their advantage is exactly 0.

use serde::{Deserialize, Serialize};

/// The divisor of a group's centred rewards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The deviation of the group's rewards (GRPO).
    #[default]
    Group,
    /// The deviation of all rewards of the batch.
    Batch,
    /// Nothing (Dr. GRPO).
    None,
}

/// The advantage of each sample of each group: its reward less the mean of its group, divided as `scale` says, where
/// `epsilon` is added to the deviation (1e-4 in TRL, 1e-6 in verl).
pub fn group_advantages<R>(groups: &[Vec<Option<R>>], scale: Scale, epsilon: f64) -> Vec<Vec<Option<f64>>>
where
    R: Into<f64> + Copy,
{
    let batch: Vec<f64> = groups.iter().flat_map(|group| judged(group)).collect();
    let divide = |group: &Vec<Option<R>>| {
        let rewards = judged(group);
        let mean = mean(&rewards);
        let divisor = match scale {
            Scale::Group => deviation(&rewards) + epsilon,
            Scale::Batch => deviation(&batch) + epsilon,
            Scale::None => 1.0,
        };
        let credit = |reward: f64| if all_equal(&rewards) { 0.0 } else { (reward - mean) / divisor };
        group.iter().map(|reward| finite(*reward).map(credit)).collect()
    };
    groups.iter().map(divide).collect()
}

/// The advantage of each sample of one group: its reward less the mean of the others' (RLOO).
pub fn leave_one_out<R>(group: &[Option<R>]) -> Vec<Option<f64>>
where
    R: Into<f64> + Copy,
{
    let rewards = judged(group);
    let (sum, others) = (rewards.iter().sum::<f64>(), rewards.len() as f64 - 1.0);
    let credit = |reward: f64| if all_equal(&rewards) { 0.0 } else { reward - (sum - reward) / others };
    group.iter().map(|reward| finite(*reward).map(credit)).collect()
}

/// Returns `true` if the rewards of a group differ, so that it teaches something. A group of one has no signal.
pub fn has_signal<R>(group: &[Option<R>]) -> bool
where
    R: Into<f64> + Copy,
{
    !all_equal(&judged(group))
}

/// The variance whose root divides advantages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The unbiased one, over n − 1 (verl).
    #[default]
    Bessel,
    /// The mean of the squares, over n (`OpenRLHF`).
    Biased,
}

/// Numbers shifted and scaled to mean 0 and variance 1, where 1e-8 is added to the variance. Numbers that are all equal
/// become exactly 0; a single one has no variance and is left as it is.
pub fn whiten(numbers: &[f64], variance: Variance) -> Vec<f64> {
    if numbers.len() < 2 {
        return numbers.to_vec();
    }
    if all_equal(numbers) {
        return vec![0.0; numbers.len()];
    }
    let degrees = match variance {
        Variance::Bessel => numbers.len() - 1,
        Variance::Biased => numbers.len(),
    };
    let mean = mean(numbers);
    let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
    let deviation = (squares / degrees as f64 + 1e-8).sqrt();
    numbers.iter().map(|number| (number - mean) / deviation).collect()
}

/// The rewards that there are.
fn judged<R: Into<f64> + Copy>(group: &[Option<R>]) -> Vec<f64> {
    group.iter().filter_map(|reward| finite(*reward)).collect()
}

/// A reward that is not a number is no judgement.
fn finite<R: Into<f64>>(reward: Option<R>) -> Option<f64> {
    reward.map(Into::into).filter(|reward: &f64| reward.is_finite())
}

/// Compared exactly, because the mean of equal numbers may differ from them by a rounding error.
fn all_equal(rewards: &[f64]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

fn mean(rewards: &[f64]) -> f64 {
    rewards.iter().sum::<f64>() / rewards.len().max(1) as f64
}

fn deviation(rewards: &[f64]) -> f64 {
    let mean = mean(rewards);
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    (squares / rewards.len().saturating_sub(1).max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_slice;
    use super::*;

    fn some(rewards: &[f64]) -> Vec<Option<f64>> {
        rewards.iter().copied().map(Some).collect()
    }

    fn one_group(rewards: &[f64], scale: Scale, epsilon: f64) -> Vec<f64> {
        group_advantages(&[some(rewards)], scale, epsilon).remove(0).into_iter().flatten().collect()
    }

    #[test]
    fn one_group_by_each_rule() {
        let check = |rewards: &[f64], verl: &[f64], trl: &[f64], centred: &[f64], rloo: &[f64]| {
            check_slice(&one_group(rewards, Scale::Group, 1e-6), verl);
            check_slice(&one_group(rewards, Scale::Group, 1e-4), trl);
            check_slice(&one_group(rewards, Scale::None, 1e-4), centred);
            check_slice(&leave_one_out(&some(rewards)).into_iter().flatten().collect::<Vec<_>>(), rloo);
        };
        let signs = |x: f64| [x, -x, -x, x];
        let (verl, trl, rloo) = (signs(0.866_023_9), signs(0.865_875_43), signs(0.666_666_67));
        check(&[1.0, 0.0, 0.0, 1.0], &verl, &trl, &signs(0.5), &rloo);
        let winner = |win: f64, lose: f64| [win, lose, lose, lose];
        check(
            &[1.0, 0.0, 0.0, 0.0],
            &winner(1.499_997, -0.499_999),
            &winner(1.499_700_1, -0.499_900_02),
            &winner(0.75, -0.25),
            &winner(1.0, -0.333_333_33),
        );
        check(
            &[0.2, 0.9, -0.4],
            &[-0.051_231_473, 1.024_629_5, -0.973_397_99],
            &[-0.051_223_679, 1.024_473_6, -0.973_249_9],
            &[-0.033_333_333, 0.666_666_67, -0.633_333_33],
            &[-0.05, 1.0, -0.95],
        );
    }

    #[test]
    fn equal_rewards_and_a_single_sample_teach_exactly_nothing() {
        // Three times 0.1 has a mean of 0.10000000000000002.
        for rewards in [vec![1.0; 4], vec![0.1; 3], vec![0.7]] {
            for scale in [Scale::Group, Scale::Batch, Scale::None] {
                assert_eq!(one_group(&rewards, scale, 1e-4), vec![0.0; rewards.len()]);
            }
            assert!(leave_one_out(&some(&rewards)).iter().all(|credit| *credit == Some(0.0)));
            assert!(!has_signal(&some(&rewards)));
        }
        assert!(has_signal(&some(&[1.0, 0.0])));
    }

    #[test]
    fn an_unjudged_sample_is_left_out() {
        for missing in [None, Some(f64::NAN)] {
            let group = vec![Some(1.0), missing, Some(0.0), Some(0.0)];
            let credit = group_advantages(std::slice::from_ref(&group), Scale::Group, 1e-4).remove(0);
            assert_eq!(credit[1], None);
            check_slice(
                &credit.into_iter().flatten().collect::<Vec<_>>(),
                &[1.154_500_6, -0.577_250_29, -0.577_250_29],
            );
            assert_eq!(leave_one_out(&group), [Some(1.0), None, Some(-0.5), Some(-0.5)]);
        }
        let nobody: Vec<Option<f32>> = vec![None, None];
        assert_eq!(group_advantages(&[nobody], Scale::Group, 1e-4), [[None, None]]);
    }

    #[test]
    fn the_batch_deviation_is_shared_by_all_groups() {
        // All rewards: 1, 0, 3, 3. Their mean is 7/4, so their variance is (9/16 + 49/16 + 25/16 + 25/16)/3 = 9/4.
        let credit = group_advantages(&[some(&[1.0, 0.0]), some(&[3.0, 3.0])], Scale::Batch, 0.0);
        assert_eq!(credit, [some(&[0.5 / 1.5, -0.5 / 1.5]), some(&[0.0, 0.0])]);
    }

    #[test]
    fn whitened_numbers_have_mean_0_and_variance_1() {
        // Mean 2; squares 1, 0 and 1: variance 1 with Bessel's correction, 2/3 without.
        check_slice(&whiten(&[1.0, 2.0, 3.0], Variance::Bessel), &[-1.0, 0.0, 1.0]);
        check_slice(&whiten(&[1.0, 2.0, 3.0], Variance::Biased), &[-(1.5_f64.sqrt()), 0.0, 1.5_f64.sqrt()]);
        assert_eq!(whiten(&[0.1; 3], Variance::Bessel), [0.0; 3]);
        assert_eq!(whiten(&[0.7], Variance::Bessel), [0.7]);
        assert!(whiten(&[], Variance::Biased).is_empty());
    }

    #[test]
    fn permuting_the_group_permutes_the_credit() {
        let rewards = [0.25, -1.5, 3.0, 0.5];
        let order = [2, 0, 3, 1];
        let permuted = order.map(|place| rewards[place]);
        for scale in [Scale::Group, Scale::Batch, Scale::None] {
            let credit = one_group(&rewards, scale, 1e-4);
            check_slice(&one_group(&permuted, scale, 1e-4), &order.map(|place| credit[place]));
        }
        let credit = leave_one_out(&some(&rewards));
        assert_eq!(leave_one_out(&some(&permuted)), order.map(|place| credit[place]));
    }
}
