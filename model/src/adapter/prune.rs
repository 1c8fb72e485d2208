//! Pruning: a rank whose gate is exactly zero adds nothing, so its row of `A`, its column of `B` and its gate are
//! removed.
//!
//! The output stays the same up to the order of a sum, training becomes cheaper, and layers end with different ranks.
//! The scale `alpha / rank` stays that of the start: it belongs to the function, not to the shape. A pruned rank cannot
//! come back.

use super::{Adapter, LowRank, trainable};
use tch::Tensor;

/// The result of pruning one layer, so that an optimizer can prune its state too.
#[derive(Debug)]
pub struct Cut {
    /// The layer's hub name.
    pub name: String,
    /// The indices of the ranks that stay, ascending, `[kept]` i64.
    pub kept: Tensor,
}

impl Cut {
    /// The names of the layer's parameters, each with the axis of ranks.
    pub fn axes(&self) -> [(String, i64); 3] {
        [("lora_A", 0), ("lora_B", 1), ("gate", 0)].map(|(part, axis)| (format!("{}.{part}", self.name), axis))
    }
}

impl Adapter {
    /// Removes every rank whose gate is zero, and returns the layers that lost some. Those have new tensors, which
    /// other handles do not share.
    pub fn prune(&mut self) -> Vec<Cut> {
        let _no_grad = tch::no_grad_guard();
        self.layers.iter_mut().flatten().filter_map(LowRank::prune).collect()
    }

    /// An equivalent plain `LoRA` adapter: a copy with `B` multiplied by its gate and closed ranks removed.
    #[must_use]
    pub fn folded(&self) -> Self {
        let fold = |layer: &LowRank| {
            let ((a, b), device) = (layer.folded(), layer.a.device());
            let (a, b) = (trainable(&a, device), trainable(&b, device));
            LowRank { name: layer.name.clone(), a, b, gate: None, scale: layer.scale, full_rank: layer.full_rank }
        };
        Self { layers: self.layers.iter().map(|layer| layer.as_ref().map(fold)).collect() }
    }
}

impl LowRank {
    fn prune(&mut self) -> Option<Cut> {
        let gate = self.gate.as_ref()?;
        let kept = gate.ne(0.0).nonzero().squeeze_dim(1);
        if kept.numel() == gate.numel() {
            return None;
        }
        let device = gate.device();
        let gate = trainable(&gate.index_select(0, &kept), device);
        self.a = trainable(&self.a.index_select(0, &kept), device);
        self.b = trainable(&self.b.index_select(1, &kept), device);
        self.gate = Some(gate);
        Some(Cut { name: self.name.clone(), kept })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    /// The worked example of `SoRA`'s layer: four ranks, of which two are closed, alpha 16.
    fn example() -> LowRank {
        let leaf = |numbers: &[f64], shape: &[i64]| {
            Tensor::from_slice(numbers).reshape(shape).to_kind(Kind::Double).set_requires_grad(true)
        };
        LowRank {
            name: "model.layers.0.self_attn.q_proj".into(),
            a: leaf(&[0.1, 0.2, 0.3, -0.2, 0.4, 0.1, 0.5, -0.1, 0.2, 0.3, 0.3, -0.3], &[4, 3]),
            b: leaf(&[1.0, 0.5, -1.0, 2.0, 0.0, -0.5, 1.0, 1.0], &[2, 4]),
            gate: Some(leaf(&[0.8, 0.0, -0.5, 0.0], &[4])),
            scale: 4.0,
            full_rank: 4,
        }
    }

    fn close(tensor: &Tensor, expected: &[f64]) {
        let numbers = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap();
        assert_eq!(numbers.len(), expected.len());
        assert!(numbers.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-6), "{numbers:?} {expected:?}");
    }

    /// `s · B (g ∘ (A x))`
    fn delta(layer: &LowRank, x: &Tensor) -> Tensor {
        let weight = layer.delta_weight();
        x.to_kind(weight.kind()).matmul(&weight.tr())
    }

    #[test]
    fn forward_weight_and_pruned_forward_are_those_of_the_worked_example() {
        let x = Tensor::from_slice(&[1.0f64, 2.0, -1.0, 0.5, -0.5, 2.0]).reshape([2, 3]);
        let mut layer = example();
        close(&delta(&layer, &x), &[0.84, -0.2, 3.16, -1.4]);
        close(&layer.delta_weight(), &[1.32, 0.44, 1.36, -1.0, 0.2, -0.4]);
        let (a, b) = layer.folded();
        close(&a, &[0.1, 0.2, 0.3, 0.5, -0.1, 0.2]);
        close(&b, &[0.8, 0.5, 0.0, -0.5]);

        let cut = layer.prune().unwrap();
        assert_eq!(Vec::<i64>::try_from(&cut.kept).unwrap(), [0, 2]);
        assert_eq!((layer.rank(), layer.active_rank(), layer.scale), (2, 2, 4.0));
        close(&delta(&layer, &x), &[0.84, -0.2, 3.16, -1.4]);
        assert!(layer.a.requires_grad() && layer.a.is_leaf());
        assert!(layer.prune().is_none(), "there is nothing left to prune");
    }

    #[test]
    fn a_layer_without_open_gates_has_rank_zero_and_adds_nothing() {
        let mut layer = example();
        layer.gate = Some(Tensor::zeros([4], (Kind::Double, crate::device::HOST)).set_requires_grad(true));
        layer.prune().unwrap();
        assert_eq!((layer.rank(), layer.a.size(), layer.b.size()), (0, vec![0, 3], vec![2, 0]));
        close(&layer.delta_weight(), &[0.0; 6]);
    }

    #[test]
    fn folding_gives_the_same_function_without_gates() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, -1.0]).reshape([1, 3]);
        let adapter = Adapter { layers: vec![None, Some(example())] };
        let folded = adapter.folded();
        let layer = folded.layers().next().unwrap();
        assert!(layer.gate.is_none());
        assert_eq!(layer.rank(), 2);
        close(&delta(layer, &x), &[0.84, -0.2]);
    }
}
