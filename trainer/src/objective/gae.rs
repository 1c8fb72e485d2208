//! Advantages over time: token rewards, rewards to go, generalised advantage estimation, and the critic's loss.
//!
//! ```text
//! δ_t = r_t + γ V_{t+1} − V_t          V = 0 after the last trained token
//! A_t = δ_t + γ λ A_{t+1}              J. Schulman et al., "High-dimensional continuous control", 2016
//! return_t = A_t + V_t                 before any whitening
//! ```
//!
//! Recursions run on the host over one sequence at a time and skip masked tokens (of tools and environments): a reward
//! behind a masked span still reaches the tokens before it.

use super::Rows;
use tch::Tensor;

/// Discount and trace decay of generalised advantage estimation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gae {
    /// Discount γ per token; 1 for a single reward at the end of a completion.
    pub gamma: f64,
    /// Trace decay λ: 1 uses only rewards, 0 only the critic.
    pub lambda: f64,
}

impl Gae {
    /// Returns the advantages and returns of one sequence, both `[token]` and zero at masked tokens. `values[t]` is the
    /// critic's estimate *before* token t. All slices have one length.
    pub fn estimate(&self, rewards: &[f64], values: &[f64], mask: &[bool]) -> (Vec<f64>, Vec<f64>) {
        self.traced(rewards, values, &vec![1.0; rewards.len()], mask)
    }

    /// Returns advantages and returns for tokens of another policy (V-trace; Espeholt et al. 2018, in the form of
    /// `GePPO`, Queeney et al. 2021). `traces` are the truncated ratios `c̄_t = min(π / π_behaviour, limit)`, which
    /// discount everything after a token by its likelihood under the current policy:
    ///
    /// ```text
    /// A_t = δ_t + γ λ c̄_{t+1} A_{t+1}        return_t = c̄_t A_t + V_t
    /// ```
    pub fn traced(&self, rewards: &[f64], values: &[f64], traces: &[f64], mask: &[bool]) -> (Vec<f64>, Vec<f64>) {
        let mut advantages = vec![0.0; rewards.len()];
        let mut returns = vec![0.0; rewards.len()];
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        for t in (0..rewards.len()).rev().filter(|t| mask[*t]) {
            let delta = rewards[t] + self.gamma * next_value - values[t];
            advantages[t] = delta + self.gamma * self.lambda * next_advantage;
            returns[t] = traces[t] * advantages[t] + values[t];
            (next_value, next_advantage) = (values[t], traces[t] * advantages[t]);
        }
        (advantages, returns)
    }
}

/// Returns the discounted sum of this and all later rewards at each trained token of one sequence, `[token]`; zero at
/// masked tokens.
pub fn reward_to_go(rewards: &[f64], mask: &[bool], gamma: f64) -> Vec<f64> {
    let nothing = vec![0.0; rewards.len()];
    Gae { gamma, lambda: 1.0 }.estimate(rewards, &nothing, mask).0
}

/// Returns the reward of each token of one sequence, `[token]`: `−beta · kl`, plus the outcome at the last trained
/// token. `None` if no token is trained on, because no token could then carry the outcome.
pub fn token_rewards(outcome: f64, kl: &[f64], beta: f64, mask: &[bool]) -> Option<Vec<f64>> {
    let last = mask.iter().rposition(|kept| *kept)?;
    let mut rewards: Vec<f64> = kl.iter().zip(mask).map(|(kl, kept)| if *kept { -beta * kl } else { 0.0 }).collect();
    rewards[last] += outcome;
    Some(rewards)
}

/// Returns the critic's loss per token, `[token]`: `½ max((V − ret)², (clip(V, V_old ± clip) − ret)²)`, zero where
/// masked. `clip` keeps the new value near the old one (0.2 in TRL, 0.5 in verl); infinity for no clip.
pub fn value_losses(values: &Tensor, old_values: &Tensor, returns: &Tensor, clip: f64, rows: &Rows) -> Tensor {
    let (values, old_values) = (rows.keep(values), rows.keep(&old_values.detach()));
    let returns = rows.keep(&returns.detach());
    let near = values.clamp_tensor(Some(&old_values - clip), Some(&old_values + clip));
    (&values - &returns).square().maximum(&(near - &returns).square()) * 0.5
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, check_slice, device, f64s, full_rows, gradient};
    use super::super::{Aggregation, Denominator};
    use super::*;

    const REWARDS: [[f64; 5]; 2] = [[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, -1.0, 0.0, 0.0]];
    const VALUES: [[f64; 5]; 2] = [[0.2, 0.3, 0.4, 0.5, 9.0], [0.1, 0.0, -0.2, 9.0, 9.0]];
    const MASKS: [[bool; 5]; 2] = [[true, true, true, true, false], [true, true, true, false, false]];

    fn estimate(gamma: f64, lambda: f64) -> [(Vec<f64>, Vec<f64>); 2] {
        [0, 1].map(|row| Gae { gamma, lambda }.estimate(&REWARDS[row], &VALUES[row], &MASKS[row]))
    }

    #[test]
    fn advantages_and_returns_ignore_what_is_masked() {
        let [(a, r), (b, s)] = estimate(1.0, 0.95);
        check_slice(&a, &[0.713_937_5, 0.646_25, 0.575, 0.5, 0.0]);
        check_slice(&r, &[0.913_937_5, 0.946_25, 0.975, 1.0, 0.0]);
        check_slice(&b, &[-1.012, -0.96, -0.8, 0.0, 0.0]);
        check_slice(&s, &[-0.912, -0.96, -1.0, 0.0, 0.0]);

        let [(a, r), (b, s)] = estimate(1.0, 1.0);
        check_slice(&a, &[0.8, 0.7, 0.6, 0.5, 0.0]);
        check_slice(&r, &[1.0, 1.0, 1.0, 1.0, 0.0]);
        check_slice(&b, &[-1.1, -1.0, -0.8, 0.0, 0.0]);
        check_slice(&s, &[-1.0, -1.0, -1.0, 0.0, 0.0]);

        let [(a, r), (b, s)] = estimate(0.99, 0.9);
        check_slice(&a, &[0.611_628_68, 0.577_585_5, 0.5405, 0.5, 0.0]);
        check_slice(&r, &[0.811_628_68, 0.877_585_5, 0.9405, 1.0, 0.0]);
        check_slice(&b, &[-0.911_522_8, -0.9108, -0.8, 0.0, 0.0]);
        check_slice(&s, &[-0.811_522_8, -0.9108, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn old_samples_count_as_far_as_the_policy_would_have_gone_there() {
        let gae = Gae { gamma: 1.0, lambda: 0.95 };
        let traced = |traces: &[f64]| gae.traced(&[0.0, 0.0, 1.0], &[0.2, 0.3, 0.4], traces, &[true; 3]);
        // Ratios 1.5, 0.5 and 0.8, truncated at 1.
        let (advantages, returns) = traced(&[1.0, 0.5, 0.8]);
        check_slice(&advantages, &[0.3641, 0.556, 0.6]);
        check_slice(&returns, &[0.5641, 0.578, 0.88]);
        check_slice(&traced(&[1.0; 3]).0, &[0.7365, 0.67, 0.6]);
    }

    #[test]
    fn whitened_advantages_span_both_sequences() {
        let [(a, _), (b, _)] = estimate(1.0, 0.95);
        let rows = Rows::new(&[5, 5], &MASKS.concat(), device()).unwrap();
        let expected = [
            [0.924_407_96, 0.842_299_74, 0.755_870_03, 0.664_891_39, 0.0],
            [-1.169_238, -1.106_159_5, -0.912_071_69, 0.0, 0.0],
        ];
        check(&rows.whiten(&f64s(&[a, b].concat())), &expected.concat());
    }

    #[test]
    fn a_hole_in_the_mask_changes_nothing_around_it() {
        let gae = Gae { gamma: 0.99, lambda: 0.9 };
        let (whole, _) = gae.estimate(&[0.1, 0.0, 1.0], &[0.2, 0.3, 0.4], &[true; 3]);
        let (holed, _) =
            gae.estimate(&[0.1, 0.0, f64::NAN, 1.0], &[0.2, 0.3, f64::NAN, 0.4], &[true, true, false, true]);
        assert_eq!(holed, [whole[0], whole[1], 0.0, whole[2]]);
    }

    #[test]
    fn reinforce_plus_plus_whitens_the_reward_to_go() {
        let kl: [&[f64]; 3] = [&[0.1, -0.05], &[0.2, 0.1, 0.05], &[0.0, 0.0, 0.0, 0.3]];
        let to_go: Vec<f64> = kl
            .iter()
            .zip([1.0, 0.0, 0.5])
            .flat_map(|(kl, outcome)| {
                let mask = vec![true; kl.len()];
                reward_to_go(&token_rewards(outcome, kl, 0.1, &mask).unwrap(), &mask, 1.0)
            })
            .collect();
        check_slice(&to_go, &[0.995, 1.005, -0.035, -0.015, -0.005, 0.47, 0.47, 0.47, 0.47]);
        let expected = [
            1.436_55,
            1.461_752_6,
            -1.159_321_1,
            -1.108_915_8,
            -1.083_713_2,
            0.113_411_84,
            0.113_411_84,
            0.113_411_84,
            0.113_411_84,
        ];
        check(&full_rows(&[2, 3, 4]).whiten(&f64s(&to_go)), &expected);
    }

    #[test]
    fn an_outcome_needs_a_trained_token() {
        assert_eq!(token_rewards(1.0, &[0.5], 0.1, &[false]), None);
        assert_eq!(token_rewards(1.0, &[f64::NAN, 0.0], 0.1, &[false, true]), Some(vec![0.0, 1.0]));
    }

    #[test]
    fn the_clipped_value_loss() {
        let rows = Rows::new(&[3], &[true, true, false], device()).unwrap();
        let loss = |clip: f64, values: &Tensor| {
            let losses = value_losses(values, &f64s(&[0.5, 0.1, 0.3]), &f64s(&[1.0, 0.0, -1.0]), clip, &rows);
            Denominator::of(Aggregation::TokenMean, rows.trained_per_sequence()).aggregate(&losses, &rows)
        };
        let values = [0.9, 0.2, -0.4];
        check(&loss(0.2, &f64s(&values)), &[0.0325]);
        check(&loss(0.5, &f64s(&values)), &[0.0125]);
        // Clipped at 0.7 the first value is worse, and constant: no gradient. The second is free: (0.2 − 0)/2.
        check_slice(&gradient(&values, |x| loss(0.2, x)), &[0.0, 0.1, 0.0]);
        check_slice(&gradient(&values, |x| loss(f64::INFINITY, x)), &[-0.05, 0.1, 0.0]);
    }
}
