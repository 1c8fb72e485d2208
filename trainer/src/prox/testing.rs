//! Fixtures of the penalties' tests: layers with given gates, and a search over a grid that serves as the reference.

use super::UpdateContext;
use model::adapter::LowRank;
use tch::{Kind, Tensor};

/// Returns a layer of two inputs and three outputs with this gate, in f64.
pub(super) fn layer(gate: &[f64]) -> LowRank {
    let rank = gate.len() as i64;
    let leaf = |tensor: Tensor| tensor.to_kind(Kind::Double).set_requires_grad(true);
    LowRank {
        name: "model.layers.0.self_attn.q_proj".into(),
        a: leaf(Tensor::arange(rank * 2, (Kind::Double, model::device::HOST)).reshape([rank, 2]) - 1.0),
        b: leaf(Tensor::arange(rank * 3, (Kind::Double, model::device::HOST)).reshape([3, rank]) - 2.0),
        gate: Some(leaf(Tensor::from_slice(gate))),
        scale: 1.0,
        full_rank: gate.len() as i64,
    }
}

/// The middle of a run of 100 steps.
pub(super) fn context(learning_rate: f64) -> UpdateContext {
    UpdateContext { learning_rate, step: 50, steps: 100 }
}

pub(super) fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).reshape([-1])).unwrap()
}

/// Returns the gates of all layers, concatenated.
pub(super) fn gates(layers: &[&LowRank]) -> Vec<f64> {
    layers.iter().flat_map(|layer| values(layer.gate.as_ref().unwrap())).collect()
}

pub(super) fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{actual:?} {expected:?}");
    assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() <= tolerance), "{actual:?} {expected:?}");
}

/// Asserts that `operator(v)` is as good as the best point of a fine grid for `½(x − v)² + penalty(x)`, for many `v`.
pub(super) fn minimises(penalty: impl Fn(f64) -> f64, operator: impl Fn(f64) -> f64) {
    for index in -60..=60 {
        let v = f64::from(index) * 0.05 + 0.013;
        let objective = |x: f64| 0.5 * (x - v).powi(2) + penalty(x);
        let best = (-8000..=8000).map(|index| objective(f64::from(index) * 5e-4)).fold(f64::INFINITY, f64::min);
        let ours = objective(operator(v));
        assert!(ours <= best + 1e-9, "at {v}: {ours} against {best}");
    }
}
