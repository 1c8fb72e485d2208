//! Rotary position embedding (Su et al. 2021), with the linear and Llama 3 scalings.
//!
//! Pair `i` of a head (elements `i` and `i + d/2`) rotates by `position · θ^(-2i/d)`. [`RopeScaling`] scales these
//! frequencies for longer contexts.

use crate::dimensions::RopeScaling;
use tch::{Device, Kind, Tensor};

/// The inverse frequencies of one head size.
#[derive(Debug)]
pub(super) struct Rope {
    inverse_frequencies: Tensor,
    kind: Kind,
}

impl Rope {
    pub(super) fn new(head_dim: i64, theta: f64, scaling: &RopeScaling, device: Device, kind: Kind) -> Self {
        let frequencies: Vec<f64> = (0..head_dim / 2)
            .map(|pair| scaling.apply(theta.powf(-2.0 * pair as f64 / head_dim as f64)))
            .map(|frequency| f64::from(frequency as f32))
            .collect();
        let inverse_frequencies = Tensor::from_slice(&frequencies).to_kind(Kind::Float).to_device(device);
        Self { inverse_frequencies, kind }
    }

    /// Cosines and sines of `positions`, `[token]`, each `[token, 1, head_dim]`, computed in f32.
    pub(super) fn angles(&self, positions: &Tensor) -> Angles {
        let half = positions.to_kind(Kind::Float).unsqueeze(1) * self.inverse_frequencies.unsqueeze(0);
        let angles = Tensor::cat(&[&half, &half], 1).unsqueeze(1);
        Angles { cos: angles.cos().to_kind(self.kind), sin: angles.sin().to_kind(self.kind) }
    }
}

/// The rotation angles of each token of a batch.
#[derive(Debug)]
pub(super) struct Angles {
    /// `[token, 1, head_dim]`; both halves of a head are alike.
    pub(super) cos: Tensor,
    /// `[token, 1, head_dim]`
    pub(super) sin: Tensor,
}

impl Angles {
    /// Rotates `x`, `[token, head, head_dim]`, back.
    pub(super) fn rotate_back(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let rotated = Tensor::cat(&[x.narrow(2, half, half), -x.narrow(2, 0, half)], 2);
        x * &self.cos + rotated * &self.sin
    }

    /// Rotates `x`, `[token, head, head_dim]`.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        let rotated = Tensor::cat(&[-x.narrow(2, half, half), x.narrow(2, 0, half)], 2);
        x * &self.cos + rotated * &self.sin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    #[test]
    fn position_zero_is_not_rotated_and_norms_are_kept() {
        let rope = Rope::new(4, 10_000.0, &RopeScaling::None, HOST, Kind::Float);
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]).reshape([2, 1, 4]);
        let y = rope.angles(&Tensor::from_slice(&[0i64, 5])).rotate(&x);
        assert!(y.get(0).allclose(&x.get(0), 1e-6, 1e-6, false));
        assert!((y.get(1).norm().double_value(&[]) - 30f64.sqrt()).abs() < 1e-5);
        // the first pair (1, 3) rotates by 5 radians
        let expected = 1.0 * 5f64.cos() - 3.0 * 5f64.sin();
        assert!((y.double_value(&[1, 0, 0]) - expected).abs() < 1e-5);
    }
}
