//! Estimators of a Kullback-Leibler divergence from single samples, and a coefficient that follows a target.
//!
//! With `d = log π − log π_ref` at tokens sampled from π (J. Schulman, "Approximating KL divergence", 2020):
//!
//! ```text
//! k1 = d               unbiased, high variance, may be negative
//! k2 = d² / 2          biased value; its gradient is that of the KL when on-policy
//! k3 = exp(−d) − 1 + d unbiased, never negative, low variance
//! ```
//!
//! `k1+` and `k3+` have the value of k1 and k3 and the gradient of k2, by a straight-through term, as in verl. Clamps
//! are verl's: `d` to ±20 and the result to ±10 for k3; the gradient of a clamped entry is zero.

use super::LOG_RATIO_LIMIT;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Largest k3 of one token, in nats.
const K3_LIMIT: f64 = 10.0;

/// Estimator of the divergence at one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `d`.
    #[serde(alias = "kl")]
    K1,
    /// `d² / 2`.
    #[serde(alias = "mse")]
    K2,
    /// `exp(−d) − 1 + d`, clamped.
    #[default]
    #[serde(alias = "low_var_kl")]
    K3,
    /// The value of k1 with the gradient of k2.
    #[serde(rename = "k1+")]
    K1Plus,
    /// The value of k3 with the gradient of k2.
    #[serde(rename = "k3+", alias = "low_var_kl+")]
    K3Plus,
}

impl KlEstimator {
    /// Returns the estimate for each token, `[token]`, in nats. `logprobs` is from the policy that (nearly) sampled the
    /// tokens and `reference` from the other, both `[token]`.
    pub fn estimate(self, logprobs: &Tensor, reference: &Tensor) -> Tensor {
        let d = logprobs - reference;
        match self {
            Self::K1 => d,
            Self::K2 => k2(&d),
            Self::K3 => k3(&d),
            Self::K1Plus => straight_through(&d, &k2(&d)),
            Self::K3Plus => straight_through(&k3(&d), &k2(&d)),
        }
    }
}

fn k2(d: &Tensor) -> Tensor {
    d.square() * 0.5
}

fn k3(d: &Tensor) -> Tensor {
    let d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    ((-&d).expm1() + d).clamp(-K3_LIMIT, K3_LIMIT)
}

/// Returns a tensor with the value of `forward` and the gradient of `backward`.
fn straight_through(forward: &Tensor, backward: &Tensor) -> Tensor {
    backward - backward.detach() + forward.detach()
}

/// A KL coefficient that rises while the divergence exceeds a target and falls while it is below (D. Ziegler et al.
/// 2019, as in verl and OpenRLHF): `coefficient ·= 1 + clip(KL/target − 1, ±0.2) · n/horizon`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// Current coefficient; part of a checkpoint.
    pub coefficient: f64,
    /// Target divergence, in nats per token.
    pub target: f64,
    /// Samples over which the coefficient changes by at most a fifth.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// Adapts the coefficient to `measured`, the divergence in nats per token over `samples` new samples.
    pub fn update(&mut self, measured: f64, samples: usize) {
        let error = (measured / self.target - 1.0).clamp(-0.2, 0.2);
        self.coefficient *= 1.0 + error * samples as f64 / self.horizon;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, check_slice, f64s, gradient};
    use super::*;

    const LOGPROBS: [f64; 4] = [-1.0, -2.0, -0.5, -3.0];
    const REFERENCE: [f64; 4] = [-1.2, -1.5, -0.5, -25.0];

    fn estimate(estimator: KlEstimator) -> Tensor {
        estimator.estimate(&f64s(&LOGPROBS), &f64s(&REFERENCE))
    }

    #[test]
    fn the_three_estimators() {
        check(&estimate(KlEstimator::K1), &[0.2, -0.5, 0.0, 22.0]);
        check(&estimate(KlEstimator::K2), &[0.02, 0.125, 0.0, 242.0]);
        check(&estimate(KlEstimator::K3), &[0.018_730_753, 0.148_721_27, 0.0, 10.0]);
        check(&KlEstimator::K3.estimate(&f64s(&[-30.0]), &f64s(&[-0.1])), &[10.0]);
    }

    #[test]
    fn the_gradient_of_k3_pulls_towards_the_reference() {
        let slope = |estimator: KlEstimator| gradient(&LOGPROBS, |x| estimator.estimate(x, &f64s(&REFERENCE)));
        // 1 − exp(−d), and 0 where the clamp binds; a loss that adds it lowers log π where it is above the reference.
        check_slice(&slope(KlEstimator::K3), &[0.181_269_25, -0.648_721_27, 0.0, 0.0]);
    }

    #[test]
    fn straight_through_has_the_value_of_one_and_the_slope_of_the_other() {
        check(&estimate(KlEstimator::K1Plus), &[0.2, -0.5, 0.0, 22.0]);
        check(&estimate(KlEstimator::K3Plus), &[0.018_730_753, 0.148_721_27, 0.0, 10.0]);
        for estimator in [KlEstimator::K1Plus, KlEstimator::K3Plus] {
            let slope = gradient(&LOGPROBS, |x| estimator.estimate(x, &f64s(&REFERENCE)));
            check_slice(&slope, &[0.2, -0.5, 0.0, 22.0]);
        }
    }

    #[test]
    fn the_coefficient_follows_its_target() {
        let mut kl = AdaptiveKl { coefficient: 0.1, target: 0.1, horizon: 10_000.0 };
        for (measured, expected) in [(0.05, 0.099_488), (0.3, 0.099_997_379), (0.1, 0.099_997_379)] {
            kl.update(measured, 256);
            check_slice(&[kl.coefficient], &[expected]);
        }
    }
}
