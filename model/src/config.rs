//! `[model]`: the network, its device and format, and its adapter.

use crate::adapter::AdapterConfig;
use crate::architecture::RandomModel;
use crate::device::{DeviceName, Dtype};
use serde::{Deserialize, Serialize};

/// `[model]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A Hugging Face folder, a GGUF file, the name of a model in the cache, or a hub id such as `owner/name`.
    #[serde(alias = "model_name_or_path", skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Instead of `path`: a tiny random network, made from its seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomModel>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: DeviceName,
    /// Format of the frozen weights and of activations: `f32` or `bf16`.
    #[serde(alias = "torch_dtype")]
    pub dtype: Dtype,
    /// Gradient checkpointing: an update keeps only the input of each layer and recomputes the rest in the backward
    /// pass.
    pub gradient_checkpointing: bool,
    /// Threads of libtorch on the CPU; 0 lets libtorch choose.
    pub threads: usize,
    /// A run folder whose newest adapter is the start of training and the reference of a KL penalty; a fresh adapter if
    /// empty. The training loop reads this key, not the network.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub adapter_from: String,
    /// The trained adapter.
    pub adapter: AdapterConfig,
}
