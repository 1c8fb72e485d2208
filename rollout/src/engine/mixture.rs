//! Sampling from the geometric mixture of two policies over one network, token by token:
//!
//! ```text
//! log p(token) = (1 − c) log π(token) + c log μ(token) + const
//! ```
//!
//! Mixing logits equals mixing log-probabilities, since their difference is the constant. The mixture is normalised for
//! each token and not for whole sequences, as in Munos et al. 2024 (arXiv 2312.00886, Nash-MD). Each policy has its own
//! key/value cache, so a mixture costs two forward passes and two caches.

use model::Policy;
use model::cache::KvCache;
use tch::Tensor;

/// The second policy of a mixture, μ.
pub(super) struct SecondPolicy {
    pub(super) policy: Policy,
    /// Weight c of μ, in [0, 1].
    pub(super) weight: f64,
    pub(super) cache: Option<KvCache>,
}

impl SecondPolicy {
    /// Returns the logits of the mixture, `[row, vocab]`, from those of π and μ.
    pub(super) fn mix(&self, first: &Tensor, second: &Tensor) -> Tensor {
        mix(first, second, self.weight)
    }
}

fn mix(first: &Tensor, second: &Tensor, weight: f64) -> Tensor {
    first * (1.0 - weight) + second * weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_logits_is_one_of_log_probabilities() {
        let (first, second) = (Tensor::from_slice(&[2.0, 0.5, -1.0]), Tensor::from_slice(&[0.0, 1.0, 0.5]));
        let probabilities = |logits: &Tensor| Vec::<f64>::try_from(logits.softmax(0, tch::Kind::Double)).unwrap();
        let expected = [0.650_916_658_7, 0.271_342_432_9, 0.077_740_908_6];
        let normalised = |logits: &Tensor| logits.log_softmax(0, tch::Kind::Double);
        for mixed in [mix(&first, &second, 0.25), mix(&normalised(&first), &normalised(&second), 0.25)] {
            assert!(probabilities(&mixed).iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-9));
        }
    }
}
