//! Low-rank updates of frozen linear layers.
//!
//! An [`Adapter`] holds, for some of a network's linear layers, the trainable part of
//! `y = W x + s · B (g ∘ (A x))`: `A` is `[rank, inputs]`, `B` is `[outputs, rank]`, and the gate `g`, `[rank]`, is
//! there in `SoRA` and absent in `LoRA`. `B` starts at zero, so a fresh adapter changes nothing. Its tensors are f32
//! whatever the network's format, because gates must keep exact zeros and small steps must not be rounded away.
//!
//! A network takes the adapter as an argument, so several (reference, previous, proximal, behaviour) can share one base
//! (`Policy::with_adapter`), and the empty adapter is the reference policy. Layers may have different ranks: pruning
//! removes the ranks of closed gates.

mod extrapolate;
mod lora;
mod peft;
mod prune;
mod sora;

pub use lora::Lora;
pub use peft::{PeftAdapter, TASK_PREFIX};
pub use prune::Cut;
pub use sora::{GateInit, Sora};

use crate::dimensions::LinearShape;
use crate::{Error, Result};
use schema::Seed;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

/// The adapter of the config: `[model.adapter.lora]`, `[model.adapter.sora]` or `[model.adapter.peft]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterConfig {
    /// Low-rank adaptation (Hu et al. 2021).
    Lora(Lora),
    /// Sparse low-rank adaptation (Ding et al. 2023).
    Sora(Sora),
    /// A trained `LoRA` adapter of Hugging Face PEFT, to continue from.
    Peft(PeftAdapter),
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self::Lora(Lora::default())
    }
}

impl AdapterConfig {
    /// The rank that every adapted layer starts with; `None` for a saved adapter, which may have several.
    pub fn rank(&self) -> Option<i64> {
        match self {
            Self::Lora(lora) => Some(lora.rank),
            Self::Sora(sora) => Some(sora.rank),
            Self::Peft(_) => None,
        }
    }

    /// True if its layers have gates.
    pub fn has_gates(&self) -> bool {
        matches!(self, Self::Sora(_))
    }

    /// Builds an adapter for the layers of `linears` that the config names, fresh or read from a folder.
    ///
    /// # Errors
    /// If the rank is not from 1 to 4096, a target module names no layer, or a saved adapter cannot be read or does not
    /// fit.
    pub fn build(&self, linears: &[LinearShape], seed: &Seed, device: Device) -> Result<Adapter> {
        let shape = match self {
            Self::Lora(lora) => Shape { rank: lora.rank, alpha: lora.alpha, gates: None },
            Self::Sora(sora) => Shape { rank: sora.rank, alpha: sora.alpha, gates: Some(sora.gate_init) },
            Self::Peft(saved) => return saved.read(linears, device),
        };
        if !(1..=4096).contains(&shape.rank) {
            return Err(Error::input(format!("model.adapter: rank must be 1 to 4096, but is {}", shape.rank)));
        }
        let targets = match self {
            Self::Lora(lora) => &lora.target_modules[..],
            Self::Sora(sora) => &sora.target_modules[..],
            Self::Peft(_) => &[],
        };
        let unmatched = |target: &&String| !linears.iter().any(|linear| linear.is_target(target));
        if let Some(target) = targets.iter().find(unmatched) {
            let mut known: Vec<&str> = linears.iter().map(LinearShape::short_name).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::input(format!(
                "model.adapter: target_modules names `{target}`, which this network does not have; it has {}",
                known.join(", ")
            )));
        }
        let layers = linears
            .iter()
            .map(|linear| {
                let adapted = targets.iter().any(|target| linear.is_target(target));
                adapted.then(|| shape.low_rank(linear, &seed.child(&linear.name), device))
            })
            .collect();
        Ok(Adapter { layers })
    }
}

/// The settings of a fresh adapter.
struct Shape {
    rank: i64,
    alpha: f64,
    gates: Option<GateInit>,
}

impl Shape {
    fn low_rank(&self, linear: &LinearShape, seed: &Seed, device: Device) -> LowRank {
        let rank = self.rank;
        // Kaiming-uniform with a = √5, as in LoRA's and SoRA's code: U(-1/√inputs, 1/√inputs).
        let bound = (linear.inputs as f64).sqrt().recip();
        let a = seed.child("a").uniforms((rank * linear.inputs) as usize, -bound, bound);
        LowRank {
            name: linear.name.clone(),
            a: trainable(&Tensor::from_slice(&a).reshape([rank, linear.inputs]), device),
            b: trainable(&Tensor::zeros([linear.outputs, rank], (Kind::Float, crate::device::HOST)), device),
            gate: self.gates.map(|init| trainable(&init.gate(rank, &seed.child("gate")), device)),
            scale: self.alpha / rank as f64,
            full_rank: rank,
        }
    }
}

/// Adds each gradient to that of its leaf, given as pairs of leaf and gradient of one shape, such as `[rank, inputs]`.
pub(crate) fn add_gradients(gradients: Vec<(Tensor, Tensor)>) {
    for (leaf, gradient) in gradients {
        let mut sum = leaf.grad();
        if sum.defined() {
            let _ = tch::no_grad(|| sum.g_add_(&gradient));
        } else {
            // Only autograd may give a leaf its first gradient.
            (leaf * gradient).sum(Kind::Float).backward();
        }
    }
}

/// True if every number of a float tensor of any shape is finite.
pub(crate) fn is_finite(tensor: &Tensor) -> bool {
    let _no_grad = tch::no_grad_guard();
    tensor.numel() == 0 || {
        // The extremes of numbers among which one is NaN are NaN.
        let (low, high) = tensor.aminmax(None, false);
        low.double_value(&[]).is_finite() && high.double_value(&[]).is_finite()
    }
}

/// A trainable copy of `tensor`, `[rank]`, `[rank, inputs]` or `[outputs, rank]`, in f32 on `device`.
fn trainable(tensor: &Tensor, device: Device) -> Tensor {
    tensor.detach().to_device(device).to_kind(Kind::Float).copy().set_requires_grad(true)
}

/// The trainable part of one linear layer.
#[derive(Debug)]
pub struct LowRank {
    /// The layer's hub name without `.weight`.
    pub name: String,
    /// `A`, `[rank, inputs]` f32.
    pub a: Tensor,
    /// `B`, `[outputs, rank]` f32.
    pub b: Tensor,
    /// `g`, `[rank]` f32; absent in `LoRA`.
    pub gate: Option<Tensor>,
    /// `s = alpha / rank` with the initial rank; pruning does not change it.
    pub scale: f64,
    /// The initial rank; pruning does not change it.
    pub full_rank: i64,
}

impl LowRank {
    /// The update `s · B diag(g) A` of the weight, `[outputs, inputs]` f32, without gradient.
    pub fn delta_weight(&self) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let (a, b) = self.folded();
        b.matmul(&a) * self.scale
    }

    /// Copies of `A`, `[active rank, inputs]`, and `B diag(g)`, `[outputs, active rank]`, without gradient.
    pub fn folded(&self) -> (Tensor, Tensor) {
        let _no_grad = tch::no_grad_guard();
        let Some(gate) = &self.gate else { return (self.a.detach().copy(), self.b.detach().copy()) };
        let open = gate.ne(0.0).nonzero().squeeze_dim(1);
        (self.a.index_select(0, &open), self.b.index_select(1, &open) * gate.index_select(0, &open))
    }

    /// The number of ranks, with open or closed gates.
    pub fn rank(&self) -> i64 {
        self.a.size()[0]
    }

    /// The number of ranks with a non-zero gate.
    pub fn active_rank(&self) -> i64 {
        match &self.gate {
            Some(gate) => gate.ne(0.0).sum(Kind::Int64).int64_value(&[]),
            None => self.rank(),
        }
    }

    /// Its tensors by their short names: `lora_A`, `[rank, inputs]`, `lora_B`, `[outputs, rank]`, and `gate`, `[rank]`.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [("lora_A", &self.a), ("lora_B", &self.b)].into_iter().chain(self.gate.as_ref().map(|gate| ("gate", gate)))
    }

    /// A second handle on the same tensors.
    fn share(&self) -> Self {
        Self {
            name: self.name.clone(),
            a: self.a.shallow_clone(),
            b: self.b.shallow_clone(),
            gate: self.gate.as_ref().map(Tensor::shallow_clone),
            scale: self.scale,
            full_rank: self.full_rank,
        }
    }
}

/// Low-rank updates by the id of the linear layer they attach to.
#[derive(Debug, Default)]
pub struct Adapter {
    layers: Vec<Option<LowRank>>,
}

impl Adapter {
    /// The empty adapter, which leaves the base model unchanged.
    pub fn none() -> Self {
        Self::default()
    }

    /// An adapter with these updates, by the ids of their layers.
    #[cfg(test)]
    pub(crate) fn of_layers(layers: Vec<Option<LowRank>>) -> Self {
        Self { layers }
    }

    /// The update of layer `id`, if there is one.
    pub(crate) fn layer(&self, id: usize) -> Option<&LowRank> {
        self.layers.get(id)?.as_ref()
    }

    /// The updates of the adapted layers.
    pub fn layers(&self) -> impl Iterator<Item = &LowRank> {
        self.layers.iter().flatten()
    }

    /// Every trainable tensor by its full name, such as `model.layers.0.self_attn.q_proj.lora_A`, in a fixed order;
    /// shapes as in [`LowRank`].
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.layers().flat_map(|layer| layer.tensors().map(|(part, tensor)| (format!("{}.{part}", layer.name), tensor)))
    }

    /// The full name of the first tensor with a number that is not finite, if there is one.
    pub fn first_non_finite(&self) -> Option<String> {
        self.tensors().find(|(_, tensor)| !is_finite(tensor)).map(|(name, _)| name)
    }

    /// The number of trained parameters.
    pub fn parameters(&self) -> i64 {
        self.tensors().map(|(_, tensor)| tensor.numel() as i64).sum()
    }

    /// The mean number of active ranks per adapted layer.
    pub fn active_rank(&self) -> f64 {
        let layers = self.layers().count().max(1);
        self.layers().map(LowRank::active_rank).sum::<i64>() as f64 / layers as f64
    }

    /// The sum of the ranks of all layers.
    pub fn ranks(&self) -> i64 {
        self.layers().map(LowRank::rank).sum()
    }

    /// A second handle on the same tensors: changes through one show in the other.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { layers: self.layers.iter().map(|layer| layer.as_ref().map(LowRank::share)).collect() }
    }

    /// A copy with tensors of its own, independent of the original's training.
    #[must_use]
    pub fn copy(&self) -> Self {
        let own = |x: &Tensor| x.detach().copy();
        let copy = |layer: &LowRank| LowRank {
            name: layer.name.clone(),
            a: own(&layer.a),
            b: own(&layer.b),
            gate: layer.gate.as_ref().map(own),
            scale: layer.scale,
            full_rank: layer.full_rank,
        };
        Self { layers: self.layers.iter().map(|layer| layer.as_ref().map(copy)).collect() }
    }

    /// SHA-256 of names, shapes and values, in hexadecimal: equal adapters have equal hashes.
    pub fn hash(&self) -> String {
        let mut digest = Sha256::new();
        for (name, tensor) in self.tensors() {
            digest.update(name.as_bytes());
            for size in tensor.size() {
                digest.update(size.to_le_bytes());
            }
            let flat = tensor.detach().to_device(crate::device::HOST).reshape([-1]);
            let mut bytes = vec![0u8; flat.numel() * 4];
            flat.copy_data_u8(&mut bytes, flat.numel());
            digest.update(&bytes);
        }
        schema::hex(&digest.finalize())
    }

    /// Restores the tensors of the same names. Where the saved rank differs because of pruning, the layer gets new
    /// tensors of that rank; all others are overwritten in place, which other handles see.
    ///
    /// # Errors
    /// If a tensor is missing, holds a number that is not finite, or has a shape that pruning does not explain. The
    /// adapter is unchanged if a number is not finite.
    pub fn restore(&mut self, saved: &[(String, Tensor)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        if let Some((name, _)) = saved.iter().find(|(_, tensor)| !is_finite(tensor)) {
            return Err(Error::input(format!(
                "tensor `{name}` of the saved adapter holds numbers that are not finite; take an earlier checkpoint"
            )));
        }
        for layer in self.layers.iter_mut().flatten() {
            let find = |part: &str| {
                let name = format!("{}.{part}", layer.name);
                saved.iter().find(|(saved, _)| *saved == name).map(|(_, tensor)| tensor).ok_or_else(|| {
                    Error::input(format!("the saved adapter has no tensor `{name}`; was it made with another config?"))
                })
            };
            let (a, b) = (find("lora_A")?, find("lora_B")?);
            let gate = layer.gate.is_some().then(|| find("gate")).transpose()?;
            let rank = a.size().first().copied().unwrap_or_default();
            let pruned = gate.is_some() && rank != layer.rank() && rank <= layer.full_rank;
            let expected = if pruned { rank } else { layer.rank() };
            let fits = a.size() == [expected, layer.a.size()[1]]
                && b.size() == [layer.b.size()[0], expected]
                && gate.is_none_or(|gate| gate.size() == [expected]);
            if !fits {
                return Err(Error::input(format!(
                    "the saved adapter of `{}` has shapes {:?} and {:?}, but this config asks for {:?} and {:?}",
                    layer.name,
                    a.size(),
                    b.size(),
                    layer.a.size(),
                    layer.b.size()
                )));
            }
            if pruned {
                let device = layer.a.device();
                (layer.a, layer.b) = (trainable(a, device), trainable(b, device));
                layer.gate = gate.map(|gate| trainable(gate, device));
            } else {
                layer.a.copy_(a);
                layer.b.copy_(b);
                layer.gate.as_mut().into_iter().zip(gate).for_each(|(own, gate)| own.copy_(gate));
            }
        }
        Ok(())
    }

    /// Adds `amount` to every element of every `B`, to check that the adapter is in use.
    pub fn perturb(&self, amount: f64) {
        let _no_grad = tch::no_grad_guard();
        for layer in self.layers() {
            let _ = layer.b.shallow_clone().g_add_scalar_(amount);
        }
    }
}
