//! The way of the kernels and the way of libtorch's operations, which GPUs go, are one network.

use super::*;
use crate::adapter::{AdapterConfig, Sora};
use crate::attention::GroupAttention;
use crate::device::HOST;
use schema::Seed;

/// Normal numbers, small enough for sums of them to stay about 1.
struct Random(Seed);

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let numbers = self.0.child(name).normals(shape.iter().product::<i64>() as usize);
        Ok(Tensor::from_slice(&numbers).reshape(shape) * 0.2)
    }
}

fn decoder(arithmetic: Arithmetic) -> Decoder {
    let dimensions = Dimensions {
        vocab: 40,
        hidden: 24,
        intermediate: 36,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        norm_epsilon: 1e-5,
        rope_theta: 100.0,
        rope_scaling: RopeScaling::None,
        max_position: 64,
        tied_embeddings: true,
        qkv_bias: true,
        output_bias: false,
        mlp_bias: false,
        qk_norm: true,
    };
    Decoder { arithmetic, ..Decoder::new(dimensions, &Random(Seed::new(2)), HOST, Dtype::F32).unwrap() }
}

/// The last hidden states of two groups, and the gradients of the adapter given some of theirs.
fn there_and_back(decoder: &Decoder, activations: Activations) -> (Tensor, Vec<Tensor>) {
    let config = AdapterConfig::Sora(Sora { rank: 3, ..Sora::default() });
    let adapter = config.build(decoder, &Seed::new(5), HOST).unwrap();
    adapter.perturb(0.1);
    let attention = GroupAttention::new(&[(3, vec![2, 4]), (2, vec![])], HOST, Kind::Float);
    let ids = Tensor::from_slice(&[3i64, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]);
    let positions = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1]);
    let (hidden, tape) = decoder.forward_with_tape(&ids, &positions, attention, &adapter, activations);
    let above = Random(Seed::new(7)).tensor("above", &[11, 24]).unwrap();
    decoder.backward(tape, &above, &adapter);
    let gradients = adapter.tensors().map(|(_, tensor)| tensor.grad()).collect();
    (hidden, gradients)
}

#[test]
fn both_ways_have_the_same_states_and_gradients() {
    let way = |arithmetic: Arithmetic| there_and_back(&decoder(arithmetic), Activations::Kept);
    let (by_kernels, by_tensors) = (way(Arithmetic::Kernels), way(Arithmetic::Tensors));
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(apart(&by_kernels.0, &by_tensors.0) < 1e-5, "states: {}", apart(&by_kernels.0, &by_tensors.0));
    assert!(by_kernels.1.len() > 10);
    for (place, (kernels, tensors)) in by_kernels.1.iter().zip(&by_tensors.1).enumerate() {
        assert!(kernels.abs().max().double_value(&[]) > 0.0, "tensor {place} has no gradient");
        assert!(apart(kernels, tensors) < 2e-5, "gradient {place}: {}", apart(kernels, tensors));
    }
}

#[test]
fn activations_that_are_computed_again_give_the_same_gradient() {
    for arithmetic in [Arithmetic::Kernels, Arithmetic::Tensors] {
        let decoder = decoder(arithmetic);
        let (kept, again) =
            (there_and_back(&decoder, Activations::Kept), there_and_back(&decoder, Activations::Recomputed));
        assert_eq!(kept.0, again.0, "{arithmetic:?}: states");
        assert!(kept.1.iter().all(|gradient| gradient.abs().max().double_value(&[]) > 0.0));
        assert_eq!(kept.1, again.1, "{arithmetic:?}: gradients");
    }
}

#[test]
fn both_ways_decode_alike() {
    let hidden = |arithmetic: Arithmetic| {
        let _no_grad = tch::no_grad_guard();
        let decoder = decoder(arithmetic);
        let mut cache = KvCache::new(&decoder.dimensions, 2, 8, HOST, Kind::Float);
        let first = decoder.decode(&[3, 7], &[0, 0], &mut cache, &Adapter::none());
        let second = decoder.decode(&[1, 2], &[1, 1], &mut cache, &Adapter::none());
        Tensor::cat(&[first, second], 0)
    };
    let apart = (hidden(Arithmetic::Kernels) - hidden(Arithmetic::Tensors)).abs().max().double_value(&[]);
    assert!(apart < 1e-5, "{apart}");
}
