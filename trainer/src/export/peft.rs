//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! PEFT has no gates: they are folded into `B` (`B' = B diag(g)`), closed ranks are left out, and the result is a plain
//! `LoRA` adapter with the same output. Its layers may then differ in rank, for which there are two forms:
//!
//! | form | ranks | read by |
//! |---|---|---|
//! | compact | each its own, in `rank_pattern` | PEFT |
//! | padded | that of the largest, filled with zeros | servers that ignore `rank_pattern` and `alpha_pattern`, such as vLLM |
//!
//! PEFT multiplies by `lora_alpha / r` of each layer. If ranks differ, the scale is therefore folded into `B` as well
//! and `lora_alpha = r` throughout, so that it is 1 with or without the patterns.

use crate::checkpoint::tensors;
use crate::files::write_synced;
use crate::{Error, Result};
use model::Policy;
use model::adapter::{LowRank, TASK_PREFIX};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use tch::{Kind, Tensor};

/// Form in which layers of different ranks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftForm {
    /// Each layer with its own rank.
    Compact,
    /// All layers with the largest rank, padded with zeros.
    Padded,
}

/// Writes the policy's adapter into `folder`, which is created. `base` is the name of the base model, for PEFT's
/// `base_model_name_or_path`.
///
/// # Errors
/// If there is no adapter, all its ranks are closed, or the folder cannot be written.
pub fn export_peft(policy: &Policy, base: &str, form: PeftForm, folder: &Path) -> Result<()> {
    let layers: Vec<Folded> = policy.adapter().layers().map(Folded::new).collect();
    let largest = layers.iter().map(Folded::rank).max().ok_or_else(|| Error::input("the model has no adapter"))?;
    if largest == 0 {
        return Err(Error::input(
            "every rank of the adapter is closed, so it adds nothing; use the base model as it is",
        ));
    }
    let mut written = Written { layers, rank: largest, alpha: largest as f64, patterns: Map::new() };
    match form {
        _ if written.is_plain() => written.alpha = written.layers[0].scale * largest as f64,
        PeftForm::Compact => written.fold_scales_and_leave_ranks(),
        PeftForm::Padded => written.fold_scales_and_pad(),
    }
    let config = written.config(policy, base);
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        write_synced(&folder.join("adapter_model.safetensors"), &tensors::to_bytes(&written.tensors())?)?;
        write_synced(&folder.join("adapter_config.json"), serde_json::to_string_pretty(&config)?.as_bytes())
    };
    write().map_err(|error| Error::input(format!("cannot write the adapter to {}: {error}", folder.display())))
}

/// A layer with its gate folded into `B`.
struct Folded {
    name: String,
    /// Factor `A`, `[rank, inputs]`.
    a: Tensor,
    /// Factor `B`, `[outputs, rank]`.
    b: Tensor,
    scale: f64,
}

impl Folded {
    fn new(layer: &LowRank) -> Self {
        let (a, b) = layer.folded();
        Self { name: layer.name.clone(), a, b, scale: layer.scale }
    }

    fn rank(&self) -> i64 {
        self.a.size()[0]
    }

    fn fold_scale(&mut self) {
        self.b = &self.b * self.scale;
        self.scale = 1.0;
    }

    fn pad(&mut self, rank: i64) {
        let missing = rank - self.rank();
        let zeros = |sizes: [i64; 2]| Tensor::zeros(sizes, (Kind::Float, self.a.device()));
        let (a, b) = (zeros([missing, self.a.size()[1]]), zeros([self.b.size()[0], missing]));
        (self.a, self.b) = (Tensor::cat(&[&self.a, &a], 0), Tensor::cat(&[&self.b, &b], 1));
    }
}

/// An adapter in the form in which it is written.
struct Written {
    layers: Vec<Folded>,
    rank: i64,
    alpha: f64,
    /// Ranks other than `rank`, by module.
    patterns: Map<String, Value>,
}

impl Written {
    /// Returns true if one rank and one scale describe all layers.
    fn is_plain(&self) -> bool {
        self.layers.iter().all(|layer| layer.rank() == self.rank && layer.scale == self.layers[0].scale)
    }

    fn fold_scales_and_leave_ranks(&mut self) {
        // PEFT refuses a rank of 0; such a layer adds nothing.
        self.layers.retain(|layer| layer.rank() > 0);
        self.layers.iter_mut().for_each(Folded::fold_scale);
        let others = self.layers.iter().filter(|layer| layer.rank() != self.rank);
        self.patterns = others.map(|layer| (layer.name.clone(), json!(layer.rank()))).collect();
    }

    fn fold_scales_and_pad(&mut self) {
        for layer in &mut self.layers {
            layer.fold_scale();
            layer.pad(self.rank);
        }
    }

    /// Returns the adapted modules: their last name parts if these select exactly the adapted layers, else their full
    /// names.
    fn targets(&self, policy: &Policy) -> BTreeSet<&str> {
        let short: BTreeSet<&str> = self.layers.iter().filter_map(|layer| layer.name.rsplit('.').next()).collect();
        let meant = policy.network().linears().iter().filter(|linear| short.contains(linear.short_name())).count();
        if meant == self.layers.len() { short } else { self.layers.iter().map(|layer| layer.name.as_str()).collect() }
    }

    fn config(&self, policy: &Policy, base: &str) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "target_modules": self.targets(policy),
            "rank_pattern": self.patterns,
            "alpha_pattern": self.patterns,
        })
    }

    /// Returns `A` and `B` of each layer under PEFT's names.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        let name = |layer: &Folded, part: &str| format!("{TASK_PREFIX}{}.{part}.weight", layer.name);
        let pair = |layer: &Folded| {
            [(name(layer, "lora_A"), layer.a.shallow_clone()), (name(layer, "lora_B"), layer.b.shallow_clone())]
        };
        self.layers.iter().flat_map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::adapter::{AdapterConfig, PeftAdapter, Sora};
    use model::architecture::RandomModel;
    use model::device::DeviceName;
    use model::packed::{Packed, Sequences};
    use schema::Seed;

    fn policy(adapter: AdapterConfig) -> Policy {
        let config = model::Config {
            random: Some(RandomModel::default()),
            device: DeviceName::new("cpu"),
            adapter,
            ..model::Config::default()
        };
        Policy::load(&config, &Seed::new(1)).unwrap()
    }

    /// Ranks 4, 3, 2, 1, 0, 4, … over the layers, and a scale of 2.
    fn trained() -> Policy {
        let policy = policy(AdapterConfig::Sora(Sora { rank: 4, alpha: 8.0, ..Sora::default() }));
        for (index, layer) in policy.adapter().layers().enumerate() {
            let _no_grad = tch::no_grad_guard();
            let numbers = Seed::new(2).at(index as u64).normals(layer.b.numel());
            layer.b.shallow_clone().copy_(&(Tensor::from_slice(&numbers).reshape(layer.b.size()) * 0.05));
            let _ = layer.gate.as_ref().unwrap().narrow(0, 0, index as i64 % 5).zero_();
        }
        policy
    }

    fn logprobs(policy: &Policy) -> Tensor {
        let groups = [Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5, 6], &[7]] }];
        policy.logprobs(&Packed::new(&groups, 259, policy.device()).unwrap(), 1.0, policy.adapter())
    }

    fn config(folder: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    }

    #[test]
    fn both_forms_read_back_as_the_same_policy() {
        let policy = trained();
        for form in [PeftForm::Compact, PeftForm::Padded] {
            let folder = tempfile::tempdir().unwrap();
            export_peft(&policy, "base", form, folder.path()).unwrap();
            let again = self::policy(AdapterConfig::Peft(PeftAdapter { path: folder.path().to_owned() }));
            let error = (logprobs(&again) - logprobs(&policy)).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{form:?}: {error}");
            // The scale is 1 with and without the patterns.
            assert!(again.adapter().layers().all(|layer| layer.scale == 1.0));
        }
    }

    #[test]
    fn the_compact_form_has_patterns_and_no_empty_layer_the_padded_one_neither() {
        let (policy, folder) = (trained(), tempfile::tempdir().unwrap());
        export_peft(&policy, "base", PeftForm::Compact, folder.path()).unwrap();
        let compact = config(folder.path());
        assert_eq!((&compact["r"], &compact["lora_alpha"]), (&json!(4), &json!(4.0)));
        assert_eq!(compact["rank_pattern"], compact["alpha_pattern"]);
        assert_eq!(compact["rank_pattern"]["model.layers.0.self_attn.k_proj"], json!(3));
        // Of 14 layers the fifth and the tenth are closed, and the first, sixth and eleventh have all four ranks.
        assert_eq!(compact["target_modules"].as_array().unwrap().len(), 12);
        assert_eq!(compact["rank_pattern"].as_object().unwrap().len(), 9);

        export_peft(&policy, "base", PeftForm::Padded, folder.path()).unwrap();
        let padded = config(folder.path());
        assert_eq!(padded["rank_pattern"], json!({}));
        assert_eq!(padded["target_modules"].as_array().unwrap().len(), 7);
    }

    #[test]
    fn a_plain_adapter_stays_as_it_is() {
        let (policy, folder) = (policy(AdapterConfig::default()), tempfile::tempdir().unwrap());
        export_peft(&policy, "base", PeftForm::Compact, folder.path()).unwrap();
        let config = config(folder.path());
        assert_eq!(
            (&config["r"], &config["lora_alpha"], &config["rank_pattern"]),
            (&json!(16), &json!(32.0), &json!({}))
        );
    }

    #[test]
    fn a_closed_adapter_is_refused() {
        let policy = trained();
        for layer in policy.adapter().layers() {
            let _no_grad = tch::no_grad_guard();
            let _ = layer.gate.as_ref().unwrap().shallow_clone().zero_();
        }
        let error = export_peft(&policy, "base", PeftForm::Compact, Path::new("/nowhere")).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("adds nothing"), "{error}");
    }
}
