//! `LoRA` (Hu et al. 2021): `ΔW = alpha / rank · B A`, every rank always on.

use serde::{Deserialize, Serialize};

/// `[model.adapter.lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of each update.
    #[serde(alias = "r", alias = "lora_r")]
    pub rank: i64,
    /// Updates are scaled by `alpha / rank`.
    #[serde(alias = "lora_alpha")]
    pub alpha: f64,
    /// The layers to adapt, by the last part of their names; `all-linear` means every linear layer of the decoder.
    #[serde(alias = "lora_target_modules")]
    pub target_modules: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, target_modules: vec!["all-linear".into()] }
    }
}
