//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A gate is folded into `B` (`B' = B diag(g)`), which leaves the product and so the model's output as it is; PEFT then
//! sees a plain `LoRA` adapter. Ranks whose gate is zero stay as zero columns.

use super::{tensors, write_synced};
use crate::{Error, Result};
use model::Policy;
use model::adapter::Adapter;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use tch::Tensor;

/// Writes the policy's adapter into `folder`, which is created. `base` is the name of the base model, for PEFT's
/// `base_model_name_or_path`.
pub fn export_peft(policy: &Policy, base: &str, folder: &Path) -> Result<()> {
    let adapter = policy.adapter();
    let first = adapter.layers().next().ok_or_else(|| Error::input("the model has no adapter to export"))?;
    let rank = first.a.size()[0];
    let targets: BTreeSet<&str> = adapter.layers().filter_map(|layer| layer.name.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first.scale * rank as f64,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": targets,
    });
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        write_synced(&folder.join("adapter_model.safetensors"), &tensors::to_bytes(&folded(adapter))?)?;
        write_synced(&folder.join("adapter_config.json"), serde_json::to_string_pretty(&config)?.as_bytes())
    };
    write().map_err(|error| Error::input(format!("cannot write the adapter to {}: {error}", folder.display())))
}

/// `A` and `B diag(g)` of each layer under PEFT's names.
fn folded(adapter: &Adapter) -> Vec<(String, Tensor)> {
    let _no_grad = tch::no_grad_guard();
    adapter
        .layers()
        .flat_map(|layer| {
            let name = |part: &str| format!("base_model.model.{}.{part}.weight", layer.name);
            let b = layer.gate.as_ref().map_or_else(|| layer.b.copy(), |gate| &layer.b * gate);
            [(name("lora_A"), layer.a.copy()), (name("lora_B"), b)]
        })
        .collect()
}
