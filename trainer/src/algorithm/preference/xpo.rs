//! Exploratory preference optimisation (Xie et al. 2024, XPO, arXiv 2405.21046): online DPO with an exploration bonus.
//!
//! Each pair is a sample of the policy and one of the reference, and the reference's sample is made slightly less
//! likely, whichever wins: an optimism bonus for completions that the reference would not have written.
//!
//! ```text
//! ℓ = −log σ(β h) + α log π(y_ref),   h = log(π / π_ref)(better) − log(π / π_ref)(worse),   y ∼ π, y_ref ∼ π_ref
//! ```

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use super::pairing::{self, Ties};
use crate::Result;
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Compares, Needs, Opponent};
use crate::collected::{Collected, Pair};
use crate::objective::MetricSums;
use crate::objective::preference::{LabelNoise, sigmoid};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.xpo]`: exploratory preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Xpo {
    /// Weight β of the pull towards the base model: the larger, the closer the policy stays to it.
    pub beta: f64,
    /// Weight α of the exploration bonus.
    pub alpha: f64,
    /// Treatment of a pair with equal rewards: `first_wins`, that of the policy, or `skip`.
    pub ties: Ties,
}

impl Default for Xpo {
    fn default() -> Self {
        Self { beta: 0.1, alpha: 1e-5, ties: Ties::FirstWins }
    }
}

impl Xpo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::positive("xpo", "beta", self.beta)?;
        not_negative("xpo", &[("alpha", self.alpha)])?;
        Ok(Pairwise(self))
    }
}

impl PairLoss for Xpo {
    fn needs(&self) -> Needs {
        pair_loss::sampled_needs(1, Compares::Counterparts, Some(Opponent::Reference))
    }

    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        self.ties.resolve(pairing::with_opponents(collected, 0.0))
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let preferred = sigmoid(&pairs.logprobs.ratio_margin(), self.beta, LabelNoise::None);
        let (chosen, rejected) = (&pairs.chosen_by_opponent, &pairs.rejected_by_opponent);
        let bonus = &pairs.logprobs.chosen * chosen + &pairs.logprobs.rejected * rejected;
        preferred + bonus * self.alpha
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Config, build};
    use crate::batch::Signal;
    use crate::testing::{LossSignal, Losses, duel, signals};
    use schema::Metrics;

    #[test]
    fn the_references_sample_becomes_less_likely() {
        // The pair of the objective's tests; the reference's sample is the rejected one.
        let spread = |chosen: f64, rejected: f64| [vec![chosen / 10.0; 10], vec![rejected / 12.0; 12]].concat();
        let losses = Losses {
            reference: Some(Tensor::from_slice(&spread(-13.0, -14.5))),
            ..Losses::with(&[10, 12], LossSignal::Pairs(vec![(1.0, false), (0.0, true)]), &spread(-12.0, -15.0))
        };
        let loss = losses.of(&Config::Xpo(Xpo::default()));
        assert!((loss.value - 0.620_807_047_8).abs() < 1e-9, "{loss:?}");
        assert!((loss.gradient[0] + 0.046_257_015_5).abs() < 1e-9, "{loss:?}");
        assert!((loss.gradient[10] - 0.046_267_015_5).abs() < 1e-9, "{loss:?}");
    }

    #[test]
    fn a_pair_is_one_sample_of_each_policy() {
        let algorithm = build(&Config::Xpo(Xpo::default())).unwrap();
        // Own rewards 1, 2, 0 against 1, 0, 3: a tie, a win, a defeat.
        let collected = duel(&[1.0, 2.0, 0.0], &[1.0, 0.0, 3.0]);
        let found = signals(&*algorithm, &collected, None, &mut Metrics::new());
        let side = |win_rate, by_opponent| Some(Signal::Compared { win_rate, by_opponent });
        assert_eq!(
            found,
            [
                [side(0.5, false), side(0.5, true)],
                [side(1.0, false), side(0.0, true)],
                [side(1.0, true), side(0.0, false)]
            ]
        );
        let skip = build(&Config::Xpo(Xpo { ties: Ties::Skip, ..Xpo::default() })).unwrap();
        assert_eq!(skip.units(&duel(&[1.0, 2.0], &[1.0, 0.0])).len(), 1);
    }
}
