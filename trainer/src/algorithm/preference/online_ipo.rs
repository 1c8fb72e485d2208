//! Online IPO (Calandriello et al. 2024, arXiv 2403.08635): self-play on the regularised preference game.
//!
//! On pairs that the policy draws itself, and with the probability `P` that one beats the other in place of a label,
//!
//! ```text
//! ℓ = (h − (P − ½)/β)²,   h = log(π / π_ref)(y) − log(π / π_ref)(y′),   y, y′ ∼ π
//! ```
//!
//! has in expectation the gradient of `β KL(π ‖ π_ref) − P(π ≻ π)` with the opponent held, times 4/β: each step is one of
//! mirror descent against oneself. It reaches the equilibrium where β is not too small; where it is, it circles (see the
//! [laboratory](crate::lab)), and `[algorithm.nash_mp]` does not. The identity is a test of the objective.

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

/// `[algorithm.online_ipo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineIpo {
    /// Weight of the KL penalty towards the base model in the game.
    pub beta: f64,
    /// A difference of rewards of this size wins with σ(1) = 73 %; 0: the greater reward wins for certain.
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

    /// Neighbours and not extremes: the identity holds for pairs drawn without a look at their rewards.
    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        pairing::neighbours(collected, self.judge_temperature)
    }

    fn losses(&self, pairs: &PairBatch, _tally: &mut MetricSums) -> Tensor {
        squared(&pairs.logprobs.ratio_margin(), &pairs.chosen_win_rate, self.beta)
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
