//! Drawing from the geometric mixture of two policies over one network, token by token:
//!
//! ```text
//! log p(token) = (1 − c) log π(token) + c log μ(token) + const
//! ```
//!
//! Mixing logits gives the same as mixing log-probabilities, since their difference is the constant. The mixture is
//! normalised for each token and not for whole sequences, as in Munos et al. 2024 (arXiv 2312.00886, Nash-MD). Each
//! policy has keys and values of its own, so a mixture costs two forward passes and two caches.

use model::Policy;
use model::cache::KvCache;
use tch::Tensor;

/// The second policy of a mixture.
pub(super) struct Twin {
    pub(super) policy: Policy,
    /// Its weight c, in [0, 1].
    pub(super) share: f64,
    pub(super) cache: Option<KvCache>,
}

impl Twin {
    /// The logits of the mixture, `[row, vocab]`.
    pub(super) fn mix(&self, own: &Tensor, other: &Tensor) -> Tensor {
        mix(own, other, self.share)
    }
}

fn mix(own: &Tensor, other: &Tensor, share: f64) -> Tensor {
    own * (1.0 - share) + other * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_logits_is_one_of_log_probabilities() {
        let (own, other) = (Tensor::from_slice(&[2.0, 0.5, -1.0]), Tensor::from_slice(&[0.0, 1.0, 0.5]));
        let probabilities = |logits: &Tensor| Vec::<f64>::try_from(logits.softmax(0, tch::Kind::Double)).unwrap();
        let expected = [0.650_916_658_7, 0.271_342_432_9, 0.077_740_908_6];
        let normalised = |logits: &Tensor| logits.log_softmax(0, tch::Kind::Double);
        for mixed in [mix(&own, &other, 0.25), mix(&normalised(&own), &normalised(&other), 0.25)] {
            assert!(probabilities(&mixed).iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-9));
        }
    }
}
