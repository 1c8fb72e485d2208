//! `SoRA` (Ding et al. 2023, arXiv 2311.11696): `LoRA` with a gate per rank that training can close.
//!
//! `ΔW = alpha / rank · B diag(g) A`. After each optimizer step the gate goes through a proximal step of the L1 norm,
//! the soft threshold, which makes small gates exactly zero; what stays open is the rank that the task needs. The
//! threshold lives with the optimizer; this file holds the layer.
//!
//! At the first step `B` is zero, so the gradients of `A` and `g` are zero too and only `B` moves.

use schema::Seed;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[model.adapter.sora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sora {
    /// Rank of each update at the start.
    #[serde(alias = "r", alias = "lora_r", alias = "r_max")]
    pub rank: i64,
    /// Updates are scaled by `alpha / rank`; the scale stays when gates close.
    #[serde(alias = "lora_alpha")]
    pub alpha: f64,
    /// The layers to adapt, by the last part of their names; `all-linear` means every linear layer of the decoder.
    #[serde(alias = "lora_target_modules")]
    pub target_modules: Vec<String>,
    /// The initial value of the gates.
    pub gate_init: GateInit,
}

impl Default for Sora {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, target_modules: vec!["all-linear".into()], gate_init: GateInit::default() }
    }
}

/// The initial value of gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateInit {
    /// Sampled from the standard normal distribution, as in the authors' code.
    Normal,
    /// One, so that the update equals `LoRA`'s and a rank stays for its use instead of its first draw.
    #[default]
    Ones,
}

impl GateInit {
    /// The initial gate, `[rank]` f32.
    pub(super) fn gate(self, rank: i64, seed: &Seed) -> Tensor {
        match self {
            Self::Normal => Tensor::from_slice(&seed.normals(rank as usize)),
            Self::Ones => Tensor::from_slice(&vec![1.0f32; rank as usize]),
        }
    }
}
