//! Online DPO (Guo et al. 2024, arXiv 2402.04792): the policy samples its own pairs, and rewards or a judge label them.
//!
//! Each group's best and worst sample form a pair for the loss of DPO or of IPO; the reference is the base model
//! throughout. The data are always on-policy, unlike those of offline DPO. With equal rewards the first sample wins, as
//! in TRL, or the pair is skipped.
//!
//! ```text
//! sigmoid  ℓ = −log σ(β h)                h = log(π / π_ref)(better) − log(π / π_ref)(worse)
//! ipo      ℓ = (h − 1/(2β))²
//! ```

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use super::pairing::{self, Against, Ties};
use crate::Result;
use crate::algorithm::{Compares, Needs};
use crate::collected::{Collected, Pair};
use crate::objective::MetricSums;
use crate::objective::preference::{LabelNoise, sigmoid, squared};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.online_dpo]`: DPO on pairs of the policy's own samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnlineDpo {
    /// Weight β of the pull towards the base model: the larger, the closer the policy stays to it.
    pub beta: f64,
    /// Loss on the margin: `sigmoid` or `ipo`.
    #[serde(alias = "loss_type")]
    pub loss: OnlineLoss,
    /// Treatment of a pair with equal rewards: `first_wins` or `skip`.
    pub ties: Ties,
}

/// Loss on the margin of a sampled pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnlineLoss {
    /// Loss of DPO.
    #[default]
    Sigmoid,
    /// Loss of IPO, on sums over tokens.
    Ipo,
}

impl Default for OnlineDpo {
    fn default() -> Self {
        Self { beta: 0.1, loss: OnlineLoss::Sigmoid, ties: Ties::FirstWins }
    }
}

impl OnlineDpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::positive("online_dpo", "beta", self.beta)?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for OnlineDpo {
    fn needs(&self) -> Needs {
        pair_loss::sampled_needs(2, Compares::Group, None)
    }

    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        self.ties.resolve(pairing::best_and_worst(collected, 0.0, Against::Partner))
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let h = pairs.logprobs.ratio_margin();
        match self.loss {
            OnlineLoss::Sigmoid => sigmoid(&h, self.beta, LabelNoise::None),
            OnlineLoss::Ipo => squared(&h, &h.ones_like(), self.beta),
        }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
