//! Both backends, our kernels and libtorch's operations, compute the same network.

use super::*;
use crate::adapter::{AdapterConfig, Sora};
use crate::attention::GroupAttention;
use crate::device::{Dtype, HOST};
use crate::dimensions::RopeScaling;
use schema::Seed;

/// Normal numbers, small enough for sums of them to stay about 1.
struct Random(Seed);

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let numbers = self.0.child(name).normals(shape.iter().product::<i64>() as usize);
        Ok(Tensor::from_slice(&numbers).reshape(shape) * 0.2)
    }
}

fn decoder(backend: Backend) -> Decoder {
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
    let placement = Placement { device: HOST, dtype: Dtype::F32, backend };
    Decoder::new(dimensions, 40, &Random(Seed::new(2)), placement).unwrap()
}

/// The last hidden states of two groups, and the gradients of the adapter given some of theirs.
fn forward_and_backward(decoder: &Decoder, activations: Activations) -> (Tensor, Vec<Tensor>) {
    let config = AdapterConfig::Sora(Sora { rank: 3, ..Sora::default() });
    let adapter = config.build(decoder.linears(), &Seed::new(5), HOST).unwrap();
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
fn both_backends_have_the_same_states_and_gradients() {
    let run = |backend: Backend| forward_and_backward(&decoder(backend), Activations::Kept);
    let (by_kernels, by_libtorch) = (run(Backend::Kernels), run(Backend::Libtorch));
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(apart(&by_kernels.0, &by_libtorch.0) < 1e-5, "states: {}", apart(&by_kernels.0, &by_libtorch.0));
    assert!(by_kernels.1.len() > 10);
    for (index, (kernels, tensors)) in by_kernels.1.iter().zip(&by_libtorch.1).enumerate() {
        assert!(kernels.abs().max().double_value(&[]) > 0.0, "tensor {index} has no gradient");
        assert!(apart(kernels, tensors) < 2e-5, "gradient {index}: {}", apart(kernels, tensors));
    }
}

#[test]
fn recomputed_activations_give_the_same_gradient() {
    for backend in [Backend::Kernels, Backend::Libtorch] {
        let decoder = decoder(backend);
        let (kept, again) = (
            forward_and_backward(&decoder, Activations::Kept),
            forward_and_backward(&decoder, Activations::Recomputed),
        );
        assert_eq!(kept.0, again.0, "{backend:?}: states");
        assert!(kept.1.iter().all(|gradient| gradient.abs().max().double_value(&[]) > 0.0));
        assert_eq!(kept.1, again.1, "{backend:?}: gradients");
    }
}

#[test]
fn both_backends_decode_alike() {
    let hidden = |backend: Backend| {
        let _no_grad = tch::no_grad_guard();
        let decoder = decoder(backend);
        let mut cache = KvCache::new(&decoder.dimensions, 2, 8, HOST, Kind::Float);
        let first = decoder.decode(&[3, 7], &[0, 0], &mut cache, &Adapter::none());
        let second = decoder.decode(&[1, 2], &[1, 1], &mut cache, &Adapter::none());
        Tensor::cat(&[first, second], 0)
    };
    let apart = (hidden(Backend::Kernels) - hidden(Backend::Libtorch)).abs().max().double_value(&[]);
    assert!(apart < 1e-5, "{apart}");
}
