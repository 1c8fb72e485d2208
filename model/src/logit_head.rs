//! A low-rank correction of the logits, for a sampler that differs a little from the policy.
//!
//! ```text
//! logits = W h + U (V h)          U: [vocab, rank], starts at zero; V: [rank, hidden], random and fixed
//! ```
//!
//! It costs two thin products per token and no pass through the network: training it needs the hidden states alone.

use schema::Seed;
use tch::{Device, Kind, Tensor};

/// The factors `U` and `V` of a correction of the logits.
#[derive(Debug)]
pub struct LogitHead {
    /// `U`, `[vocab, rank]` f32, trained.
    pub up: Tensor,
    /// `V`, `[rank, hidden]` f32, fixed.
    pub down: Tensor,
}

impl LogitHead {
    /// A head whose correction is zero. `V` is sampled from the normal distribution with variance `1 / hidden`, so that
    /// its products with normed hidden states are about 1.
    pub fn zero(vocab: i64, hidden: i64, rank: i64, seed: &Seed, device: Device) -> Self {
        let numbers = Tensor::from_slice(&seed.normals((rank * hidden) as usize)).reshape([rank, hidden]);
        Self {
            up: Tensor::zeros([vocab, rank], (Kind::Float, device)).set_requires_grad(true),
            down: (numbers / (hidden as f64).sqrt()).to_device(device),
        }
    }

    /// `V h`, `[token, hidden]` to `[token, rank]` f32.
    pub fn inner(&self, hidden: &Tensor) -> Tensor {
        hidden.to_kind(Kind::Float).matmul(&self.down.tr())
    }

    /// `U (V h)`, `[token, hidden]` to `[token, vocab]` f32.
    pub fn shift(&self, hidden: &Tensor) -> Tensor {
        self.inner(hidden).matmul(&self.up.tr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    #[test]
    fn it_begins_with_no_change_and_then_changes_by_both_factors() {
        let mut head = LogitHead::zero(3, 3, 2, &Seed::new(1), HOST);
        let hidden = Tensor::from_slice(&[1.0f32, -2.0, 0.5]).unsqueeze(0);
        assert_eq!(head.shift(&hidden).abs().max().double_value(&[]), 0.0);
        head.down = Tensor::from_slice(&[0.2f32, 0.1, 0.0, 0.0, 0.3, -0.4]).reshape([2, 3]);
        head.up = Tensor::from_slice(&[0.0f32, 1.0, 0.0, 0.0, 5.0, 0.5]).reshape([3, 2]);
        // V h = (0.2 − 0.2, −0.6 − 0.2) = (0, −0.8)
        let shift = Vec::<f32>::try_from(head.shift(&hidden).squeeze_dim(0)).unwrap();
        for (got, expected) in shift.iter().zip([-0.8, 0.0, -0.4]) {
            assert!((got - expected).abs() < 1e-6, "{shift:?}");
        }
    }
}
