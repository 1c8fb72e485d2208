//! Online IPO (Calandriello et al. 2024, arXiv 2403.08635): self-play on the regularised preference game.
//!
//! On pairs that the policy samples itself, and with the probability `P` that one beats the other in place of a label,
//!
//! ```text
//! ℓ = (h − (P − ½)/β)²,   h = log(π / π_ref)(y) − log(π / π_ref)(y′),   y, y′ ∼ π
//! ```
//!
//! has in expectation 4/β times the gradient of `β KL(π ‖ π_ref) − P(π ≻ π)` with the opponent held fixed: each step is
//! one of mirror descent against the policy itself. It reaches the equilibrium unless β is too small; then it cycles
//! (see the [laboratory](crate::lab)), and `[algorithm.nash_mp]` does not. A test of the objective checks the identity.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use super::pairing;
use crate::Result;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Compares, Needs};
use crate::collected::{Collected, Pair};
use crate::objective::MetricSums;
use crate::objective::preference::squared;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.online_ipo]`: self-play with IPO's loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineIpo {
    /// Weight of the KL penalty towards the base model in the game.
    pub beta: f64,
    /// Temperature of rewards in `P = σ(difference / temperature)`: a difference of this size wins with probability
    /// 0.73. 0: the greater reward wins for certain. Unused with a judge.
    pub judge_temperature: f64,
}

impl Default for OnlineIpo {
    fn default() -> Self {
        Self { beta: 0.1, judge_temperature: 0.0 }
    }
}

impl OnlineIpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::positive("online_ipo", "beta", self.beta)?;
        not_negative("online_ipo", &[("judge_temperature", self.judge_temperature)])?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for OnlineIpo {
    fn needs(&self) -> Needs {
        pair_loss::sampled_needs(2, Compares::Neighbours, None)
    }

    /// Neighbouring samples and not the best and worst: the identity holds for pairs chosen independently of their
    /// rewards.
    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        pairing::neighbours(collected, self.judge_temperature)
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        squared(&pairs.logprobs.ratio_margin(), &pairs.chosen_win_rate, self.beta)
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
