//! Low-rank updates of frozen linear layers.
//!
//! An [`Adapter`] holds, for some of a network's linear layers, the trainable part of
//! `y = W x + s · B (g ∘ (A x))`: `A` is `[rank, inputs]`, `B` is `[outputs, rank]`, and the gate `g`, `[rank]`, is
//! there in `SoRA` and absent in `LoRA`. `B` starts at zero, so a fresh adapter changes nothing. Its tensors are f32
//! whatever the network's format, because gates must keep exact zeros and small steps must not be rounded away.
//!
//! A network takes the adapter as an argument, so several (reference, proximal, behaviour) can share one base, and the
//! empty adapter is the reference policy.

mod extrapolate;
mod lora;
mod sora;

pub use lora::Lora;
pub use sora::{GateInit, Sora};

use crate::architecture::{CausalLm, LinearShape};
use crate::{Error, Result};
use schema::Seed;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

/// Which adapter, as the config writes it: `[model.adapter.lora]` or `[model.adapter.sora]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterConfig {
    /// Low-rank adaptation (Hu et al. 2021).
    Lora(Lora),
    /// Sparse low-rank adaptation (Ding et al. 2023).
    Sora(Sora),
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self::Lora(Lora::default())
    }
}

impl AdapterConfig {
    /// The rank that every adapted layer starts with.
    pub fn rank(&self) -> i64 {
        match self {
            Self::Lora(lora) => lora.rank,
            Self::Sora(sora) => sora.rank,
        }
    }

    /// `alpha` of the scale `s = alpha / rank`.
    pub fn alpha(&self) -> f64 {
        match self {
            Self::Lora(lora) => lora.alpha,
            Self::Sora(sora) => sora.alpha,
        }
    }

    /// The last name parts of the adapted layers, such as `q_proj`.
    pub fn targets(&self) -> &[String] {
        match self {
            Self::Lora(lora) => &lora.target_modules,
            Self::Sora(sora) => &sora.target_modules,
        }
    }

    /// A fresh adapter for the layers of `network` that the config names.
    pub fn build(&self, network: &dyn CausalLm, seed: &Seed, device: Device) -> Result<Adapter> {
        if !(1..=4096).contains(&self.rank()) {
            return Err(Error::input(format!("model.adapter: rank must be 1 to 4096, but is {}", self.rank())));
        }
        let linears = network.linears();
        let unmatched = |target: &&String| !linears.iter().any(|linear| linear.is_target(target));
        if let Some(target) = self.targets().iter().find(unmatched) {
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
                let adapted = self.targets().iter().any(|target| linear.is_target(target));
                adapted.then(|| self.low_rank(linear, &seed.child(&linear.name), device))
            })
            .collect();
        Ok(Adapter { layers })
    }

    fn low_rank(&self, linear: &LinearShape, seed: &Seed, device: Device) -> LowRank {
        let rank = self.rank();
        // Kaiming-uniform with a = √5, as in LoRA's and SoRA's code: U(-1/√inputs, 1/√inputs).
        let bound = (linear.inputs as f64).sqrt().recip();
        let a = seed.child("a").uniforms((rank * linear.inputs) as usize, -bound, bound);
        let trainable = |x: Tensor| x.to_device(device).set_requires_grad(true);
        LowRank {
            name: linear.name.clone(),
            a: trainable(Tensor::from_slice(&a).reshape([rank, linear.inputs])),
            b: trainable(Tensor::zeros([linear.outputs, rank], (Kind::Float, crate::device::HOST))),
            gate: match self {
                Self::Lora(_) => None,
                Self::Sora(sora) => Some(trainable(sora.gate_init.gate(rank, &seed.child("gate")))),
            },
            scale: self.alpha() / rank as f64,
        }
    }
}

impl LinearShape {
    /// The last part of the name, such as `q_proj`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    fn is_target(&self, target: &str) -> bool {
        target == "all-linear" || self.short_name() == target || self.name == target
    }
}

/// The trainable part of one linear layer.
#[derive(Debug)]
pub struct LowRank {
    /// The layer's hub name without `.weight`.
    pub name: String,
    /// `[rank, inputs]` f32
    pub a: Tensor,
    /// `[outputs, rank]` f32
    pub b: Tensor,
    /// `[rank]` f32; absent in `LoRA`.
    pub gate: Option<Tensor>,
    /// `alpha / rank at the start`; does not change when ranks are pruned.
    pub scale: f64,
}

impl LowRank {
    /// `s · B (g ∘ (A x))`, `[token, outputs]`.
    fn delta(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let scale = match &self.gate {
            Some(gate) => gate * self.scale,
            None => Tensor::from(self.scale as f32).to_device(x.device()),
        };
        let inner = x.linear(&self.a.to_kind(kind), None::<Tensor>) * scale.to_kind(kind);
        inner.linear(&self.b.to_kind(kind), None::<Tensor>)
    }

    /// How many ranks have a non-zero gate.
    pub fn active_rank(&self) -> i64 {
        match &self.gate {
            Some(gate) => gate.ne(0.0).sum(Kind::Int64).int64_value(&[]),
            None => self.a.size()[0],
        }
    }

    /// Its tensors with their short names, `lora_A`, `lora_B` and `gate`.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [("lora_A", &self.a), ("lora_B", &self.b)].into_iter().chain(self.gate.as_ref().map(|gate| ("gate", gate)))
    }

    fn share(&self) -> Self {
        Self {
            name: self.name.clone(),
            a: self.a.shallow_clone(),
            b: self.b.shallow_clone(),
            gate: self.gate.as_ref().map(Tensor::shallow_clone),
            scale: self.scale,
        }
    }
}

/// Low-rank updates by the id of the linear layer they attach to.
#[derive(Debug, Default)]
pub struct Adapter {
    layers: Vec<Option<LowRank>>,
}

impl Adapter {
    /// The adapter that changes nothing: the base model.
    pub fn none() -> Self {
        Self::default()
    }

    /// `y` plus the update of layer `id` for input `x`, if there is one.
    pub(crate) fn add(&self, id: usize, x: &Tensor, y: Tensor) -> Tensor {
        match self.layers.get(id) {
            Some(Some(low_rank)) => y + low_rank.delta(x),
            _ => y,
        }
    }

    /// The adapted layers.
    pub fn layers(&self) -> impl Iterator<Item = &LowRank> {
        self.layers.iter().flatten()
    }

    /// Every trainable tensor with its full name, such as `model.layers.0.self_attn.q_proj.lora_A`, in a fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.layers().flat_map(|layer| layer.tensors().map(|(part, tensor)| (format!("{}.{part}", layer.name), tensor)))
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> i64 {
        self.tensors().map(|(_, tensor)| tensor.numel() as i64).sum()
    }

    /// The mean number of active ranks per adapted layer.
    pub fn active_rank(&self) -> f64 {
        let layers = self.layers().count().max(1);
        self.layers().map(LowRank::active_rank).sum::<i64>() as f64 / layers as f64
    }

    /// A second handle on the same tensors: what one changes the other sees.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { layers: self.layers.iter().map(|layer| layer.as_ref().map(LowRank::share)).collect() }
    }

    /// A copy with tensors of its own, which the original's training does not change.
    #[must_use]
    pub fn copy(&self) -> Self {
        let own = |x: &Tensor| x.detach().copy();
        let copy = |layer: &LowRank| LowRank {
            name: layer.name.clone(),
            a: own(&layer.a),
            b: own(&layer.b),
            gate: layer.gate.as_ref().map(own),
            scale: layer.scale,
        };
        Self { layers: self.layers.iter().map(|layer| layer.as_ref().map(copy)).collect() }
    }

    /// SHA-256 of names, shapes and numbers, in hexadecimal: equal adapters have equal hashes.
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

    /// Overwrites every tensor with the one of the same name.
    pub fn restore(&self, saved: &[(String, Tensor)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        for (name, own) in self.tensors() {
            let (_, saved) = saved.iter().find(|(saved, _)| *saved == name).ok_or_else(|| {
                Error::input(format!("the saved adapter has no tensor `{name}`; was it made with another config?"))
            })?;
            if saved.size() != own.size() {
                return Err(Error::input(format!(
                    "the saved adapter's `{name}` has shape {:?}, but this config asks for {:?}",
                    saved.size(),
                    own.size()
                )));
            }
            own.shallow_clone().copy_(saved);
        }
        Ok(())
    }

    /// Adds `amount` to every number of every `B`: used to check that the adapter is in use.
    pub fn perturb(&self, amount: f64) {
        let _no_grad = tch::no_grad_guard();
        for layer in self.layers() {
            let _ = layer.b.shallow_clone().g_add_scalar_(amount);
        }
    }
}
