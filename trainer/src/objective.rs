//! The maths shared by the policy-gradient methods: pure functions on tensors, without model or state.
//!
//! A mini-batch is packed: the tokens of all its sequences lie end to end in flat `[token]` tensors, and [`Rows`] maps
//! each token to its sequence and says which tokens are trained on. There is no padding, so no entry is computed in
//! vain. The path from log-probabilities to the loss is always the same:
//!
//! ```text
//! surrogate (ratio, clip)  ×  rollout weight  +  β · KL  −  c · entropy   per token
//! Denominator::aggregate                                                  one number
//! ```
//!
//! | method | advantages | level | clip | aggregation |
//! |---|---|---|---|---|
//! | PPO (Schulman 2017) | GAE, whitened | token | ±0.2 | token mean |
//! | GRPO (DeepSeekMath 2024) | (R − mean)/std in the group | token | ±0.2 | sequence mean of token means |
//! | Dr. GRPO (Liu 2025) | R − mean | token | ±0.2 | token sum over a constant |
//! | DAPO (Yu 2025) | (R − mean)/std | token | −0.2, +0.28 | token mean |
//! | GSPO (Zheng 2025) | (R − mean)/std | sequence, geometric mean | −3e-4, +4e-4 | sequence mean of token means |
//! | RLOO (Ahmadian 2024) | leave-one-out | sequence sum or token | ±0.2 | sequence mean of token means |
//! | REINFORCE++ (Hu 2025) | reward to go, whitened | token | ±0.2 | token mean |
//! | REINFORCE (Williams 1992) | R − baseline | token | none | sequence mean of token sums |
//! | CISPO (`MiniMax` 2025) | (R − mean)/std | token | stop-gradient weight | token mean |
//! | Mix-PPG (`GePPO` 2021, ReMix 2025) | as its base | token, ratio to the behaviour policy | centre ± ε | as its base |
//!
//! Numerics, everywhere: masked entries are replaced by zero *before* any other operation (0 · NaN is NaN), log-ratios
//! are clamped to ±20 before `exp`, and the loss is minimised, so penalties are added and bonuses subtracted.

mod advantage;
mod aggregate;
mod bradley_terry;
mod correction;
mod gae;
mod kl;
mod metric_sums;
pub mod preference;
mod rows;
mod surrogate;

pub use advantage::{Scale, Variance, group_advantages, has_signal, leave_one_out, whiten};
pub use aggregate::{Aggregation, Denominator};
pub use bradley_terry::bradley_terry;
pub use correction::{RolloutCorrection, effective_sample_share, mismatch_kl, ratio_to_behaviour};
pub use gae::{Gae, reward_to_go, token_rewards, value_losses};
pub use kl::{AdaptiveKl, KlEstimator};
pub use metric_sums::MetricSums;
pub(crate) use metric_sums::Number;
pub use rows::Rows;
pub use surrogate::{
    Clip, EntropyBonus, KlPenalty, Level, LogProbs, RatioReference, Surrogate, TokenLosses, penalised,
};

use tch::Tensor;

/// Bound of a log-ratio before `exp`, on either side; as in verl and `OpenRLHF`.
const LOG_RATIO_LIMIT: f64 = 20.0;

/// Returns `exp` of a log-ratio that is first clamped to ±20, so that neither the value nor the gradient overflows.
fn bounded_exp(log_ratio: &Tensor) -> Tensor {
    log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Fixtures of this family's tests, here and in the methods.

    use super::Rows;
    use tch::{Device, Tensor};

    /// Tolerance of every value and gradient that the tests state, in f64.
    pub(crate) const TOLERANCE: f64 = 1e-6;

    pub(crate) fn device() -> Device {
        Tensor::from(0.0).device()
    }

    pub(crate) fn f64s(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    /// Returns rows of these lengths with every token trained on.
    pub(crate) fn full_rows(lengths: &[usize]) -> Rows {
        Rows::new(lengths, &vec![true; lengths.iter().sum()], device()).unwrap()
    }

    pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.detach().flatten(0, -1)).unwrap()
    }

    pub(crate) fn check(actual: &Tensor, expected: &[f64]) {
        check_slice(&values(actual), expected);
    }

    pub(crate) fn check_slice(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len(), "{actual:?} against {expected:?}");
        for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((a - e).abs() <= TOLERANCE, "entry {index} is {a}, expected {e}\n{actual:?}\n{expected:?}");
        }
    }

    /// Returns the gradient of the sum of `loss(x)` at `x`.
    pub(crate) fn gradient(x: &[f64], loss: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
        let leaf = f64s(x).set_requires_grad(true);
        loss(&leaf).sum(None).backward();
        values(&leaf.grad())
    }

    /// Returns central differences of the sum of `loss(x)`, entry by entry.
    pub(crate) fn numeric_gradient(x: &[f64], loss: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
        let step = 1e-6;
        let at = |index: usize, offset: f64| {
            let mut moved = x.to_vec();
            moved[index] += offset;
            loss(&f64s(&moved)).sum(None).double_value(&[])
        };
        (0..x.len()).map(|index| (at(index, step) - at(index, -step)) / (2.0 * step)).collect()
    }
}
