//! Extrapolation of adapters in the direction of their last move.
//!
//! An update `ΔW = s B A` is bilinear, so `A` and `B` must not be extrapolated by themselves: that is another matrix.
//! By concatenation it is exact, at the sum of both ranks:
//!
//! ```text
//! (1 + α) B₁A₁ − α B₀A₀ = [(1 + α) B₁, −α B₀] · [A₁; A₀]
//! ```
//!
//! To go on training at the working rank, the product is cut to its largest singular values (Eckart and Young 1936). It
//! is never multiplied out: with `B = Q_b R_b` and `Aᵀ = Q_a R_a`, the singular values are those of the small
//! `R_b R_aᵀ`.

use super::{Adapter, LowRank};
use crate::{Error, Result};
use tch::{Kind, Tensor};

/// The norm of `A`'s rows after a cut: that of a fresh adapter's, sampled from `U(±1/√inputs)`. The rows are
/// orthogonal, so a direction without any update can still be learned, since its `B` has a gradient.
const ROW_LENGTH: f64 = 0.577_350_269_189_625_8;

impl Adapter {
    /// The extrapolated adapter: `(1 + α)` times this adapter's updates less `α` times those of `before`, exactly, at
    /// the sum of both ranks and without gates.
    ///
    /// # Errors
    /// If they do not adapt the same layers.
    pub fn extrapolated(&self, before: &Self, alpha: f64) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        if self.layers.len() != before.layers.len() {
            return Err(Error::input("adapters of different networks cannot be extrapolated"));
        }
        let layer = |(now, before): (&Option<LowRank>, &Option<LowRank>)| match (now, before) {
            (None, None) => Ok(None),
            (Some(now), Some(before)) if now.name == before.name => Ok(Some(now.extrapolated(before, alpha))),
            (Some(layer), _) | (None, Some(layer)) => {
                Err(Error::input(format!("only one of two adapters has the layer `{}`", layer.name)))
            }
        };
        let layers = self.layers.iter().zip(&before.layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// The best approximation with at most `rank` ranks in each layer, and its error: the Frobenius norm of the part
    /// cut off, as a share of the whole, over all layers. Rows of `A` are orthogonal; missing ranks are zero.
    ///
    /// # Errors
    /// If a decomposition does not converge, as with updates that are not finite.
    pub fn compressed(&self, rank: i64) -> Result<(Self, f64)> {
        let _no_grad = tch::no_grad_guard();
        let (mut lost, mut all) = (0.0, 0.0);
        let mut layer = |layer: &Option<LowRank>| {
            layer
                .as_ref()
                .map(|layer| {
                    let (small, values) = layer.compressed(rank)?;
                    let squares = values.square() * layer.scale.powi(2);
                    let cut = squares.size()[0].min(rank);
                    all += squares.sum(Kind::Double).double_value(&[]);
                    lost += squares.slice(0, cut, None, 1).sum(Kind::Double).double_value(&[]);
                    Ok(small)
                })
                .transpose()
        };
        let layers = self.layers.iter().map(&mut layer).collect::<Result<_>>()?;
        Ok((Self { layers }, if all > 0.0 { (lost / all).sqrt() } else { 0.0 }))
    }

    /// Copies another adapter's tensors into these, which every handle on them sees.
    ///
    /// # Errors
    /// If names or shapes differ.
    pub fn overwrite(&self, other: &Self) -> Result<()> {
        self.mix(other, 1.0)
    }

    /// Moves each tensor towards the other adapter's: `x ← (1 − κ) x + κ y`. The average of two factors is not the
    /// average of their product; for small κ it is close.
    ///
    /// # Errors
    /// If names or shapes differ.
    pub fn mix(&self, other: &Self, kappa: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut others = other.tensors();
        for (name, own) in self.tensors() {
            let Some((_, tensor)) =
                others.next().filter(|(other, tensor)| *other == name && tensor.size() == own.size())
            else {
                return Err(Error::input(format!("the other adapter has no tensor `{name}` of this shape")));
            };
            let mixed = if kappa == 1.0 { tensor.detach() } else { own * (1.0 - kappa) + tensor * kappa };
            own.shallow_clone().copy_(&mixed);
        }
        Ok(())
    }
}

impl LowRank {
    /// `B diag(g)`, `[outputs, rank]`.
    fn gated_b(&self) -> Tensor {
        match &self.gate {
            Some(gate) => &self.b * gate,
            None => self.b.detach(),
        }
    }

    fn extrapolated(&self, before: &Self, alpha: f64) -> Self {
        let earlier = before.gated_b() * (-alpha * before.scale / self.scale);
        Self {
            name: self.name.clone(),
            a: Tensor::cat(&[self.a.detach(), before.a.detach()], 0),
            b: Tensor::cat(&[self.gated_b() * (1.0 + alpha), earlier], 1),
            gate: None,
            scale: self.scale,
            full_rank: self.full_rank,
        }
    }

    /// The layer at a smaller rank, and all singular values of `B A`, `[rank]`, in descending order.
    fn compressed(&self, rank: i64) -> Result<(Self, Tensor)> {
        let (device, exact) = (self.a.device(), |x: &Tensor| x.to_device(crate::device::HOST).to_kind(Kind::Double));
        let (q_b, r_b) = Tensor::f_linalg_qr(&exact(&self.gated_b()), "reduced")?;
        let (q_a, r_a) = Tensor::f_linalg_qr(&exact(&self.a.detach()).tr(), "reduced")?;
        let (u, values, v) = r_b.matmul(&r_a.tr()).f_svd(true, true)?;
        let kept = rank.min(values.size()[0]);
        let a = v.narrow(1, 0, kept).tr().matmul(&q_a.tr()) * ROW_LENGTH;
        let b = q_b.matmul(&u.narrow(1, 0, kept)) * (values.narrow(0, 0, kept) / ROW_LENGTH);
        let own = |x: Tensor| x.to_kind(Kind::Float).to_device(device);
        let missing = rank - kept;
        let small = Self {
            name: self.name.clone(),
            a: own(a.constant_pad_nd([0, 0, 0, missing])),
            b: own(b.constant_pad_nd([0, missing])),
            gate: None,
            scale: self.scale,
            full_rank: self.full_rank,
        };
        Ok((small, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(a: &[f32], b: &[f32], rank: i64, scale: f64) -> Adapter {
        let a = Tensor::from_slice(a).reshape([rank, -1]);
        let b = Tensor::from_slice(b).reshape([-1, rank]);
        Adapter { layers: vec![None, Some(LowRank { name: "x".into(), a, b, gate: None, scale, full_rank: 2 })] }
    }

    /// `s B A`, row by row.
    fn product(adapter: &Adapter) -> Vec<f32> {
        let layer = adapter.layers().next().unwrap();
        let product = layer.gated_b().matmul(&layer.a.detach()) * layer.scale;
        Vec::<f32>::try_from(product.reshape([-1])).unwrap()
    }

    fn close(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-5), "{actual:?} against {expected:?}");
    }

    #[test]
    fn the_product_is_extrapolated_and_not_its_factors() {
        let (before, now) = (adapter(&[1.0, 0.0], &[1.0, 2.0], 1, 1.0), adapter(&[0.5, 1.0], &[2.0, 0.0], 1, 1.0));
        let exact = now.extrapolated(&before, 0.3).unwrap();
        close(&product(&exact), &[1.0, 2.6, -0.6, 0.0]);
        // What the factors by themselves would give: A = (0.35, 1.3), B = (2.3, −0.6).
        let naive = adapter(&[0.35, 1.3], &[2.3, -0.6], 1, 1.0);
        close(&product(&naive), &[0.805, 2.99, -0.21, -0.78]);
        close(&product(&now.extrapolated(&before, 0.0).unwrap()), &product(&now));
    }

    #[test]
    fn scales_and_gates_are_folded_in() {
        let before = adapter(&[1.0, 0.0], &[0.5, 1.0], 1, 2.0);
        let mut now = adapter(&[0.5, 1.0], &[1.0, 0.0], 1, 4.0);
        if let Some(Some(layer)) = now.layers.get_mut(1) {
            layer.gate = Some(Tensor::from_slice(&[0.5f32]));
        }
        close(&product(&now.extrapolated(&before, 0.3).unwrap()), &[1.0, 2.6, -0.6, 0.0]);
    }

    #[test]
    fn a_cut_keeps_the_largest_singular_values_and_says_what_it_lost() {
        // diag(3, 1) and scale 2: cut to rank 1 it is diag(6, 0), and loses 2 of √(36 + 4).
        let whole = adapter(&[1.0, 0.0, 0.0, 1.0], &[3.0, 0.0, 0.0, 1.0], 2, 2.0);
        let (small, error) = whole.compressed(1).unwrap();
        close(&product(&small), &[6.0, 0.0, 0.0, 0.0]);
        assert!((error - 2.0 / 40f64.sqrt()).abs() < 1e-9, "{error}");
        let (same, error) = whole.compressed(2).unwrap();
        close(&product(&same), &product(&whole));
        assert!(error < 1e-9);
    }

    #[test]
    fn a_direction_without_update_can_still_be_learned() {
        // Rank one in three inputs and two outputs, kept at rank two: the second row of A is orthogonal and not zero.
        let (layer, error) =
            adapter(&[1.0, 2.0, 2.0, 0.0, 1.0, -1.0], &[1.0, 0.0, 1.0, 0.0], 2, 1.0).compressed(2).unwrap();
        assert!(error < 1e-6);
        let a = &layer.layers().next().unwrap().a;
        let gram = Vec::<f32>::try_from(a.matmul(&a.tr()).reshape([-1])).unwrap();
        close(&gram, &[1.0 / 3.0, 0.0, 0.0, 1.0 / 3.0]);
        // More ranks than the matrix has are padded.
        let (padded, _) = adapter(&[1.0, 2.0], &[1.0], 1, 1.0).compressed(3).unwrap();
        assert_eq!(padded.layers().next().unwrap().a.size(), [3, 2]);
        close(&product(&padded), &[1.0, 2.0]);
    }

    #[test]
    fn mixing_moves_each_number_its_share() {
        let (own, other) = (adapter(&[1.0, 2.0], &[4.0], 1, 1.0), adapter(&[3.0, 2.0], &[0.0], 1, 1.0));
        own.mix(&other, 0.25).unwrap();
        close(&product(&own), &[1.5 * 3.0, 2.0 * 3.0]);
        own.overwrite(&other).unwrap();
        assert_eq!(own.hash(), other.hash());
        assert!(own.overwrite(&adapter(&[1.0], &[1.0], 1, 1.0)).unwrap_err().is_input());
        assert!(own.extrapolated(&Adapter::none(), 0.1).unwrap_err().is_input());
    }
}
