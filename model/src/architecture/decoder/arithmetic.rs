//! The decoder's operations on whole batches and their backward passes, by either [`Backend`].
//!
//! Autograd records nothing here: [`super::tape`] calls each backward function by name.
//!
//! A linear layer with an adapter computes `y = x Wᵀ + s (g ∘ (x Aᵀ)) Bᵀ`. With `z = x Aᵀ` and `u = s g ∘ z`, its
//! gradients are
//!
//! ```text
//! ∂u = ∂y B     ∂B = ∂yᵀ u     ∂z = s g ∘ ∂u     ∂A = ∂zᵀ x     ∂g = s Σ_token ∂u ∘ z     ∂x = ∂y W + ∂z A
//! ```
//!
//! and there is none of `W`, which is frozen.

use super::Linear;
use crate::adapter::{Adapter, LowRank};
use crate::architecture::rope::Angles;
use crate::backend::Backend;
use crate::kernel::{Accumulate, low_rank, ops};
use tch::{Kind, Tensor};

/// The direction of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    Forward,
    Backward,
}

/// A tensor of an adapter and the gradient to add to its own, of the same shape.
pub(super) type Gradient = (Tensor, Tensor);

impl Backend {
    /// The RMS norm of each row of `x`, `[row, width]`, and the inverse RMS of each row, `[row, 1]` f32.
    pub(super) fn norm(self, x: &Tensor, weight: &Tensor, epsilon: f64) -> (Tensor, Tensor) {
        match self {
            Self::Kernels => ops::norm(x, weight, epsilon as f32),
            Self::Libtorch => {
                let wide = x.to_kind(Kind::Float);
                let inverse = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + epsilon).rsqrt();
                ((wide * &inverse).to_kind(x.kind()) * weight, inverse)
            }
        }
    }

    /// Adds the gradient of [`Self::norm`] with respect to `x` to `grad_x`, `[row, width]`.
    ///
    /// * `inverse`: the inverse RMS that the norm returned, `[row, 1]`
    pub(super) fn norm_backward(
        self,
        grad_normed: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        inverse: &Tensor,
        grad_x: &mut Tensor,
    ) {
        match self {
            Self::Kernels => ops::norm_backward(grad_normed, x, weight, inverse, grad_x),
            Self::Libtorch => {
                let (above, wide) = ((grad_normed * weight).to_kind(Kind::Float), x.to_kind(Kind::Float));
                let mean = (&above * &wide).mean_dim([-1i64].as_slice(), true, Kind::Float);
                let along = wide * inverse.pow_tensor_scalar(3) * mean;
                let _ = grad_x.g_add_(&(above * inverse - along).to_kind(x.kind()));
            }
        }
    }

    /// Applies rotary embedding to the heads in the first `columns` of `x`, `[row, width]`, in place.
    pub(super) fn rotate(self, x: &Tensor, columns: i64, angles: &Angles, turn: Rotation) {
        match self {
            Self::Kernels => {
                let sign = if turn == Rotation::Forward { 1.0 } else { -1.0 };
                ops::rotate(x, columns as usize, &angles.cos, &angles.sin, sign);
            }
            Self::Libtorch => {
                let part = x.narrow(1, 0, columns);
                let heads = part.reshape([x.size()[0], -1, angles.cos.size()[2]]);
                let rotated = match turn {
                    Rotation::Forward => angles.rotate(&heads),
                    Rotation::Backward => angles.rotate_back(&heads),
                };
                part.shallow_clone().copy_(&rotated.reshape_as(&part));
            }
        }
    }

    /// `silu(gate) · up` of `gate_up`, `[row, 2 · width]` with the gate first, as `[row, width]`.
    pub(super) fn swiglu(self, gate_up: &Tensor) -> Tensor {
        match self {
            Self::Kernels => ops::swiglu(gate_up),
            Self::Libtorch => {
                let parts = gate_up.chunk(2, 1);
                parts[0].silu() * &parts[1]
            }
        }
    }

    /// The gradient of [`Self::swiglu`] with respect to `gate_up`, `[row, 2 · width]`.
    pub(super) fn swiglu_backward(self, grad_mixed: &Tensor, gate_up: &Tensor) -> Tensor {
        match self {
            Self::Kernels => ops::swiglu_backward(grad_mixed, gate_up),
            Self::Libtorch => {
                let parts = gate_up.chunk(2, 1);
                let (gate, up) = (&parts[0], &parts[1]);
                let sigmoid = gate.sigmoid();
                let silu = gate * &sigmoid;
                let slope = &sigmoid + &silu * (-&sigmoid + 1.0);
                Tensor::cat(&[grad_mixed * up * slope, grad_mixed * silu], 1)
            }
        }
    }

    /// The output of a fused layer, `[row, inputs]` to `[row, outputs]`, and the inner products of its adapters.
    pub(super) fn linear(self, layer: &Linear, x: &Tensor, adapter: &Adapter) -> (Tensor, Inner) {
        let outputs: i64 = layer.outputs.iter().sum();
        let y = Tensor::empty([x.size()[0], outputs], (x.kind(), x.device()));
        let inner = self.linear_into(layer, x, adapter, &y, Accumulate::Overwrite);
        (y, inner)
    }

    /// Adds the output of a fused layer to `y`, `[row, outputs]`; returns the inner products of its adapters.
    pub(super) fn add_linear(self, layer: &Linear, x: &Tensor, adapter: &Adapter, y: &Tensor) -> Inner {
        self.linear_into(layer, x, adapter, y, Accumulate::Add)
    }

    /// Writes or adds the output of a fused layer on `x`, `[row, inputs]`, to `y`, `[row, outputs]`.
    fn linear_into(self, layer: &Linear, x: &Tensor, adapter: &Adapter, y: &Tensor, accumulate: Accumulate) -> Inner {
        let inner =
            Inner { parts: layer.adapters(adapter).map(|part| part.map(|low_rank| self.inner(low_rank, x))).collect() };
        let parts = || layer.columns().zip(layer.adapters(adapter)).zip(&inner.parts);
        match self {
            Self::Kernels => {
                let parts: Vec<ops::Columns<'_>> = parts()
                    .map(|((columns, low_rank), inner)| ops::Columns {
                        range: columns.start as usize..columns.end as usize,
                        low_rank: low_rank.zip(inner.as_ref()).map(|(low_rank, inner)| (&low_rank.b, &inner.scaled)),
                    })
                    .collect();
                ops::linear_into(x, &layer.weight, layer.bias.as_ref(), &parts, y, accumulate);
            }
            Self::Libtorch => {
                let whole = x.linear(&layer.weight, layer.bias.as_ref());
                for ((columns, low_rank), inner) in parts() {
                    if let Some((low_rank, inner)) = low_rank.zip(inner.as_ref()) {
                        let update = inner.scaled.matmul(&low_rank.b.to_kind(x.kind()).tr());
                        let _ = whole.narrow(1, columns.start, columns.end - columns.start).g_add_(&update);
                    }
                }
                match accumulate {
                    Accumulate::Overwrite => y.shallow_clone().copy_(&whole),
                    Accumulate::Add => {
                        let _ = y.shallow_clone().g_add_(&whole);
                    }
                }
            }
        }
        inner
    }

    /// The inner products of one adapter on `x`, `[row, inputs]`.
    fn inner(self, low_rank: &LowRank, x: &Tensor) -> InnerPart {
        let a = low_rank.a.detach();
        let plain = match self {
            Self::Kernels => low_rank::matmul_nt(low_rank::ColumnView::of(x, 0..x.size()[1]), &a),
            Self::Libtorch => x.linear(&a.to_kind(x.kind()), None::<Tensor>),
        };
        let scaled = &plain * scales(low_rank, x.kind());
        InnerPart { plain, scaled }
    }

    /// The gradient of a linear layer with respect to `x`, `[row, inputs]`; those of its adapters go to `gradients`.
    ///
    /// * `grad_y`: the gradient with respect to the output, `[row, outputs]`
    pub(super) fn linear_backward(
        self,
        layer: &Linear,
        x: &Tensor,
        grad_y: &Tensor,
        adapter: &Adapter,
        inner: &Inner,
        gradients: &mut Vec<Gradient>,
    ) -> Tensor {
        let mut inside = Vec::new();
        for ((columns, low_rank), inner) in layer.columns().zip(layer.adapters(adapter)).zip(&inner.parts) {
            let Some((low_rank, inner)) = low_rank.zip(inner.as_ref()) else { continue };
            let (grad_scaled, grad_b) = match self {
                Self::Kernels => {
                    let grad_y = low_rank::ColumnView::of(grad_y, columns);
                    let transposed = low_rank.b.detach().tr().contiguous();
                    (low_rank::matmul_nt(grad_y, &transposed), low_rank::matmul_tn(&inner.scaled, grad_y).tr())
                }
                Self::Libtorch => {
                    let grad_y = grad_y.narrow(1, columns.start, columns.end - columns.start);
                    (grad_y.matmul(&low_rank.b.to_kind(x.kind())), grad_y.tr().matmul(&inner.scaled))
                }
            };
            let mut gradient = |tensor: &Tensor, gradient: Tensor| {
                gradients.push((tensor.shallow_clone(), gradient.to_kind(Kind::Float)));
            };
            gradient(&low_rank.b, grad_b);
            if let Some(gate) = &low_rank.gate {
                let grad_gate = (&grad_scaled * &inner.plain).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                gradient(gate, grad_gate * low_rank.scale);
            }
            let grad_plain = grad_scaled * scales(low_rank, x.kind());
            let grad_a = match self {
                Self::Kernels => low_rank::matmul_tn(&grad_plain, low_rank::ColumnView::of(x, 0..x.size()[1])),
                Self::Libtorch => grad_plain.tr().matmul(x),
            };
            gradient(&low_rank.a, grad_a);
            inside.push((grad_plain, low_rank.a.detach()));
        }
        match self {
            Self::Kernels => {
                let inside = inside.iter().map(|(grad_plain, a)| (grad_plain, a));
                ops::linear_backward(&std::iter::once((grad_y, &layer.weight)).chain(inside).collect::<Vec<_>>())
            }
            Self::Libtorch => inside.iter().fold(grad_y.matmul(&layer.weight), |grad_x, (grad_plain, a)| {
                grad_x.addmm(grad_plain, &a.to_kind(x.kind()))
            }),
        }
    }
}

/// The inner products of the adapters of one fused layer.
#[derive(Debug)]
pub(super) struct Inner {
    parts: Vec<Option<InnerPart>>,
}

/// The inner products of one adapter.
#[derive(Debug)]
struct InnerPart {
    /// `z = x Aᵀ`, `[row, rank]`.
    plain: Tensor,
    /// `u = s g ∘ z`, `[row, rank]`.
    scaled: Tensor,
}

/// The scale of each rank: `s · g`, `[rank]`, or `s`, `[1]`, without a gate.
fn scales(low_rank: &LowRank, kind: Kind) -> Tensor {
    let scales = match &low_rank.gate {
        Some(gate) => gate.detach() * low_rank.scale,
        None => Tensor::full([1], low_rank.scale, (Kind::Float, low_rank.a.device())),
    };
    scales.to_kind(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::rope::Rope;
    use crate::device::HOST;
    use crate::dimensions::RopeScaling;
    use schema::Seed;

    const BACKENDS: [Backend; 2] = [Backend::Kernels, Backend::Libtorch];

    fn random(rows: i64, columns: i64, name: &str) -> Tensor {
        let numbers = Seed::new(4).child(name).normals((rows * columns) as usize);
        Tensor::from_slice(&numbers).reshape([rows, columns])
    }

    fn leaf(rows: i64, columns: i64, name: &str) -> Tensor {
        random(rows, columns, name).set_requires_grad(true)
    }

    /// Equal up to the rounding of f32 sums of some forty numbers about 1.
    fn close(got: &Tensor, expected: &Tensor, what: &str) {
        assert_eq!(got.size(), expected.size(), "{what}");
        let apart = (got - expected).abs().max().double_value(&[]);
        assert!(apart < 2e-5, "{what}: {apart}");
    }

    /// The gradient of `Σ above ∘ y` by autograd.
    fn by_autograd(y: &Tensor, above: &Tensor, leaf: &Tensor) -> Tensor {
        Tensor::run_backward(&[(y * above).sum(Kind::Float)], &[leaf], true, false).swap_remove(0)
    }

    #[test]
    fn norms_and_their_gradients_are_those_of_autograd() {
        for (backend, width) in BACKENDS.into_iter().flat_map(|backend| [7i64, 40].map(|width| (backend, width))) {
            let (x, weight, above) =
                (leaf(3, width, "x"), random(1, width, "w").reshape([width]), random(3, width, "a"));
            let reference = &x * (x.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-3).rsqrt() * &weight;
            let (normed, inverse) = backend.norm(&x.detach(), &weight, 1e-3);
            close(&normed, &reference.detach(), "norm");
            let mut grad_x = Tensor::ones_like(&above);
            backend.norm_backward(&above, &x.detach(), &weight, &inverse, &mut grad_x);
            close(&grad_x, &(by_autograd(&reference, &above, &x) + 1.0), "its gradient, on top of ones");
        }
    }

    #[test]
    fn gates_and_their_gradients_are_those_of_autograd() {
        for backend in BACKENDS {
            let (x, above) = (leaf(3, 38, "x"), random(3, 19, "a"));
            let reference = x.narrow(1, 0, 19).silu() * x.narrow(1, 19, 19);
            close(&backend.swiglu(&x.detach()), &reference.detach(), "gate");
            close(&backend.swiglu_backward(&above, &x.detach()), &by_autograd(&reference, &above, &x), "its gradient");
        }
    }

    #[test]
    fn rotating_backward_undoes_rotating() {
        let angles =
            Rope::new(8, 100.0, &RopeScaling::None, HOST, Kind::Float).angles(&Tensor::from_slice(&[0i64, 3, 9]));
        let start = random(3, 24, "x");
        let rotated: Vec<Tensor> = BACKENDS
            .into_iter()
            .map(|backend| {
                let x = start.copy();
                backend.rotate(&x, 16, &angles, Rotation::Forward);
                let rotated = x.copy();
                backend.rotate(&x, 16, &angles, Rotation::Backward);
                close(&x, &start, "there and back");
                rotated
            })
            .collect();
        close(&rotated[0], &rotated[1], "either backend");
        let heads = angles.rotate(&start.narrow(1, 0, 16).reshape([3, 2, 8])).reshape([3, 16]);
        close(&rotated[0].narrow(1, 0, 16), &heads, "the first two heads");
        close(&rotated[0].narrow(1, 16, 8), &start.narrow(1, 16, 8), "the third, which is left alone");
    }

    #[test]
    fn linear_layers_and_their_gradients_are_those_of_autograd() {
        let low_rank = |outputs: i64, rank: i64, gated: bool, name: &str| LowRank {
            name: name.into(),
            a: leaf(rank, 20, &format!("{name}.a")),
            b: leaf(outputs, rank, &format!("{name}.b")),
            gate: gated.then(|| random(1, rank, &format!("{name}.g")).reshape([rank]).set_requires_grad(true)),
            scale: 0.5,
            full_rank: rank,
        };
        let adapter = Adapter::of_layers(vec![Some(low_rank(6, 3, true, "q")), None, Some(low_rank(4, 2, false, "v"))]);
        let layer = Linear {
            weight: random(15, 20, "w"),
            bias: Some(random(1, 15, "bias").reshape([15])),
            first: 0,
            outputs: vec![6, 5, 4],
        };
        let (x, above) = (leaf(9, 20, "x"), random(9, 15, "a"));
        let whole = x.linear(&layer.weight, layer.bias.as_ref());
        let update = |low_rank: &LowRank| {
            let inner = x.matmul(&low_rank.a.tr());
            let gated = low_rank.gate.as_ref().map_or_else(|| inner.shallow_clone(), |gate| &inner * gate);
            (gated * low_rank.scale).matmul(&low_rank.b.tr())
        };
        let updates: Vec<Tensor> = adapter.layers().map(update).collect();
        let reference =
            &whole + Tensor::cat(&[&updates[0], &Tensor::zeros([9, 5], (Kind::Float, HOST)), &updates[1]], 1);
        for backend in BACKENDS {
            let plain = x.detach();
            let (y, inner) = backend.linear(&layer, &plain, &adapter);
            close(&y, &reference.detach(), "layer");
            let sum = Tensor::ones([9, 15], (Kind::Float, HOST));
            backend.add_linear(&layer, &plain, &adapter, &sum);
            close(&sum, &(reference.detach() + 1.0), "layer, on top of ones");
            let mut gradients = Vec::new();
            let grad_x =
                tch::no_grad(|| backend.linear_backward(&layer, &plain, &above, &adapter, &inner, &mut gradients));
            close(&grad_x, &by_autograd(&reference, &above, &x), "by x");
            assert_eq!(gradients.len(), 5);
            for (parameter, gradient) in &gradients {
                close(gradient, &by_autograd(&reference, &above, parameter), "by the adapter");
            }
        }
    }
}
