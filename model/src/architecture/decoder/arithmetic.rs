//! The decoder's arithmetic on whole batches, and its gradients, on any device.
//!
//! On the CPU it goes through the kernels of [`crate::kernel`]; elsewhere through libtorch's operations. Nothing
//! here is recorded by autograd: gradients are asked for by name, as [`super::tape`] does.
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
use crate::device::HOST;
use crate::kernel::{Into, sheet, thin};
use tch::{Device, Kind, Tensor};

/// Which way the arithmetic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Our kernels, on the CPU.
    Kernels,
    /// libtorch's operations.
    Tensors,
}

/// Which way a rotation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

/// A tensor of an adapter and the gradient to add to it.
pub(super) type Gradient = (Tensor, Tensor);

impl Arithmetic {
    pub(super) fn of(device: Device) -> Self {
        if device == HOST { Self::Kernels } else { Self::Tensors }
    }

    /// The RMS norm of each row, `[row, width]`, and what each row was multiplied by, `[row, 1]` f32.
    pub(super) fn norm(self, x: &Tensor, weight: &Tensor, epsilon: f64) -> (Tensor, Tensor) {
        match self {
            Self::Kernels => sheet::norm(x, weight, epsilon as f32),
            Self::Tensors => {
                let wide = x.to_kind(Kind::Float);
                let inverse = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + epsilon).rsqrt();
                ((wide * &inverse).to_kind(x.kind()) * weight, inverse)
            }
        }
    }

    /// Adds the gradient of a norm to `by_x`.
    pub(super) fn norm_gradient(
        self,
        by_normed: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        inverse: &Tensor,
        by_x: &mut Tensor,
    ) {
        match self {
            Self::Kernels => sheet::norm_gradient(by_normed, x, weight, inverse, by_x),
            Self::Tensors => {
                let (above, wide) = ((by_normed * weight).to_kind(Kind::Float), x.to_kind(Kind::Float));
                let mean = (&above * &wide).mean_dim([-1i64].as_slice(), true, Kind::Float);
                let along = wide * inverse.pow_tensor_scalar(3) * mean;
                let _ = by_x.g_add_(&(above * inverse - along).to_kind(x.kind()));
            }
        }
    }

    /// Turns the heads in the first `columns` of `x`, `[row, width]`, in place.
    pub(super) fn rotate(self, x: &Tensor, columns: i64, angles: &Angles, turn: Turn) {
        match self {
            Self::Kernels => {
                let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
                sheet::rotate(x, columns as usize, &angles.cos, &angles.sin, sign);
            }
            Self::Tensors => {
                let part = x.narrow(1, 0, columns);
                let heads = part.reshape([x.size()[0], -1, angles.cos.size()[2]]);
                let turned = match turn {
                    Turn::Forward => angles.rotate(&heads),
                    Turn::Back => angles.rotate_back(&heads),
                };
                part.shallow_clone().copy_(&turned.reshape_as(&part));
            }
        }
    }

    /// `silu(gate) · up` of `[row, 2 · width]`, gate first.
    pub(super) fn gated(self, gate_up: &Tensor) -> Tensor {
        match self {
            Self::Kernels => sheet::gated(gate_up),
            Self::Tensors => {
                let parts = gate_up.chunk(2, 1);
                parts[0].silu() * &parts[1]
            }
        }
    }

    /// Its gradient with respect to `gate_up`.
    pub(super) fn gated_gradient(self, by_mixed: &Tensor, gate_up: &Tensor) -> Tensor {
        match self {
            Self::Kernels => sheet::gated_gradient(by_mixed, gate_up),
            Self::Tensors => {
                let parts = gate_up.chunk(2, 1);
                let (gate, up) = (&parts[0], &parts[1]);
                let sigmoid = gate.sigmoid();
                let silu = gate * &sigmoid;
                let slope = &sigmoid + &silu * (-&sigmoid + 1.0);
                Tensor::cat(&[by_mixed * up * slope, by_mixed * silu], 1)
            }
        }
    }

    /// A fused layer's output, `[row, inputs]` to `[row, outputs]`, and the inner products of its adapters.
    pub(super) fn linear(self, layer: &Linear, x: &Tensor, adapter: &Adapter) -> (Tensor, Inner) {
        let outputs: i64 = layer.outputs.iter().sum();
        let y = Tensor::empty([x.size()[0], outputs], (x.kind(), x.device()));
        let inner = self.linear_into(layer, x, adapter, &y, Into::Fresh);
        (y, inner)
    }

    /// The same, added to `y`.
    pub(super) fn add_linear(self, layer: &Linear, x: &Tensor, adapter: &Adapter, y: &Tensor) -> Inner {
        self.linear_into(layer, x, adapter, y, Into::Sum)
    }

    fn linear_into(self, layer: &Linear, x: &Tensor, adapter: &Adapter, y: &Tensor, into: Into) -> Inner {
        let inner =
            Inner { parts: layer.adapters(adapter).map(|part| part.map(|low_rank| self.inner(low_rank, x))).collect() };
        let parts = || layer.columns().zip(layer.adapters(adapter)).zip(&inner.parts);
        match self {
            Self::Kernels => {
                let parts: Vec<sheet::Columns<'_>> = parts()
                    .map(|((columns, low_rank), inner)| sheet::Columns {
                        range: columns.start as usize..columns.end as usize,
                        low_rank: low_rank.zip(inner.as_ref()).map(|(low_rank, inner)| (&low_rank.b, &inner.scaled)),
                    })
                    .collect();
                sheet::linear_into(x, &layer.weight, layer.bias.as_ref(), &parts, y, into);
            }
            Self::Tensors => {
                let whole = x.linear(&layer.weight, layer.bias.as_ref());
                for ((columns, low_rank), inner) in parts() {
                    if let Some((low_rank, inner)) = low_rank.zip(inner.as_ref()) {
                        let update = inner.scaled.matmul(&low_rank.b.to_kind(x.kind()).tr());
                        let _ = whole.narrow(1, columns.start, columns.end - columns.start).g_add_(&update);
                    }
                }
                match into {
                    Into::Fresh => y.shallow_clone().copy_(&whole),
                    Into::Sum => {
                        let _ = y.shallow_clone().g_add_(&whole);
                    }
                }
            }
        }
        inner
    }

    fn inner(self, low_rank: &LowRank, x: &Tensor) -> InnerPart {
        let a = low_rank.a.detach();
        let plain = match self {
            Self::Kernels => thin::inner(thin::Wide::of(x, 0..x.size()[1]), &a),
            Self::Tensors => x.linear(&a.to_kind(x.kind()), None::<Tensor>),
        };
        let scaled = &plain * scales(low_rank, x.kind());
        InnerPart { plain, scaled }
    }

    /// The gradient of a linear layer with respect to `x`; those of its adapters go to `gradients`.
    pub(super) fn linear_gradient(
        self,
        layer: &Linear,
        x: &Tensor,
        by_y: &Tensor,
        adapter: &Adapter,
        inner: &Inner,
        gradients: &mut Vec<Gradient>,
    ) -> Tensor {
        let mut inside = Vec::new();
        for ((columns, low_rank), inner) in layer.columns().zip(layer.adapters(adapter)).zip(&inner.parts) {
            let Some((low_rank, inner)) = low_rank.zip(inner.as_ref()) else { continue };
            let (by_scaled, by_b) = match self {
                Self::Kernels => {
                    let by_y = thin::Wide::of(by_y, columns);
                    let transposed = low_rank.b.detach().tr().contiguous();
                    (thin::inner(by_y, &transposed), thin::gathered(&inner.scaled, by_y).tr())
                }
                Self::Tensors => {
                    let by_y = by_y.narrow(1, columns.start, columns.end - columns.start);
                    (by_y.matmul(&low_rank.b.to_kind(x.kind())), by_y.tr().matmul(&inner.scaled))
                }
            };
            let mut gradient = |tensor: &Tensor, gradient: Tensor| {
                gradients.push((tensor.shallow_clone(), gradient.to_kind(Kind::Float)));
            };
            gradient(&low_rank.b, by_b);
            if let Some(gate) = &low_rank.gate {
                let by_gate = (&by_scaled * &inner.plain).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                gradient(gate, by_gate * low_rank.scale);
            }
            let by_plain = by_scaled * scales(low_rank, x.kind());
            let by_a = match self {
                Self::Kernels => thin::gathered(&by_plain, thin::Wide::of(x, 0..x.size()[1])),
                Self::Tensors => by_plain.tr().matmul(x),
            };
            gradient(&low_rank.a, by_a);
            inside.push((by_plain, low_rank.a.detach()));
        }
        match self {
            Self::Kernels => {
                let inside = inside.iter().map(|(by_plain, a)| (by_plain, a));
                sheet::linear_back(&std::iter::once((by_y, &layer.weight)).chain(inside).collect::<Vec<_>>())
            }
            Self::Tensors => inside
                .iter()
                .fold(by_y.matmul(&layer.weight), |by_x, (by_plain, a)| by_x.addmm(by_plain, &a.to_kind(x.kind()))),
        }
    }
}

/// The inner products of the adapters of one fused layer.
#[derive(Debug)]
pub(super) struct Inner {
    parts: Vec<Option<InnerPart>>,
}

#[derive(Debug)]
struct InnerPart {
    /// `z = x Aᵀ`, `[row, rank]`
    plain: Tensor,
    /// `u = s g ∘ z`
    scaled: Tensor,
}

/// `s · g`, `[rank]`, or `[1]` where there is no gate.
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
    use crate::architecture::RopeScaling;
    use crate::architecture::rope::Rope;
    use schema::Seed;

    const WAYS: [Arithmetic; 2] = [Arithmetic::Kernels, Arithmetic::Tensors];

    fn random(rows: i64, columns: i64, name: &str) -> Tensor {
        let numbers = Seed::new(4).child(name).normals((rows * columns) as usize);
        Tensor::from_slice(&numbers).reshape([rows, columns])
    }

    fn leaf(rows: i64, columns: i64, name: &str) -> Tensor {
        random(rows, columns, name).set_requires_grad(true)
    }

    /// To the rounding of f32 sums of some forty numbers about 1.
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
        for (way, width) in WAYS.into_iter().flat_map(|way| [7i64, 40].map(|width| (way, width))) {
            let (x, weight, above) =
                (leaf(3, width, "x"), random(1, width, "w").reshape([width]), random(3, width, "a"));
            let reference = &x * (x.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-3).rsqrt() * &weight;
            let (normed, inverse) = way.norm(&x.detach(), &weight, 1e-3);
            close(&normed, &reference.detach(), "norm");
            let mut by_x = Tensor::ones_like(&above);
            way.norm_gradient(&above, &x.detach(), &weight, &inverse, &mut by_x);
            close(&by_x, &(by_autograd(&reference, &above, &x) + 1.0), "its gradient, on top of ones");
        }
    }

    #[test]
    fn gates_and_their_gradients_are_those_of_autograd() {
        for way in WAYS {
            let (x, above) = (leaf(3, 38, "x"), random(3, 19, "a"));
            let reference = x.narrow(1, 0, 19).silu() * x.narrow(1, 19, 19);
            close(&way.gated(&x.detach()), &reference.detach(), "gate");
            close(&way.gated_gradient(&above, &x.detach()), &by_autograd(&reference, &above, &x), "its gradient");
        }
    }

    #[test]
    fn turning_back_undoes_turning() {
        let angles =
            Rope::new(8, 100.0, &RopeScaling::None, HOST, Kind::Float).angles(&Tensor::from_slice(&[0i64, 3, 9]));
        let start = random(3, 24, "x");
        let turned: Vec<Tensor> = WAYS
            .into_iter()
            .map(|way| {
                let x = start.copy();
                way.rotate(&x, 16, &angles, Turn::Forward);
                let turned = x.copy();
                way.rotate(&x, 16, &angles, Turn::Back);
                close(&x, &start, "there and back");
                turned
            })
            .collect();
        close(&turned[0], &turned[1], "either way");
        let heads = angles.rotate(&start.narrow(1, 0, 16).reshape([3, 2, 8])).reshape([3, 16]);
        close(&turned[0].narrow(1, 0, 16), &heads, "the first two heads");
        close(&turned[0].narrow(1, 16, 8), &start.narrow(1, 16, 8), "the third, which is left alone");
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
        for way in WAYS {
            let plain = x.detach();
            let (y, inner) = way.linear(&layer, &plain, &adapter);
            close(&y, &reference.detach(), "layer");
            let sum = Tensor::ones([9, 15], (Kind::Float, HOST));
            way.add_linear(&layer, &plain, &adapter, &sum);
            close(&sum, &(reference.detach() + 1.0), "layer, on top of ones");
            let mut gradients = Vec::new();
            let by_x = tch::no_grad(|| way.linear_gradient(&layer, &plain, &above, &adapter, &inner, &mut gradients));
            close(&by_x, &by_autograd(&reference, &above, &x), "by x");
            assert_eq!(gradients.len(), 5);
            for (parameter, gradient) in &gradients {
                close(gradient, &by_autograd(&reference, &above, parameter), "by the adapter");
            }
        }
    }
}
