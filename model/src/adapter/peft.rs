//! `LoRA` adapters of Hugging Face PEFT, read to continue training.
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors`. The update of a module is
//! `lora_alpha / r · B A` (over `√r` with `use_rslora`), where `r` and `lora_alpha` may differ by module: of the keys
//! of `rank_pattern` and `alpha_pattern` the first counts, in the order of the file, whose expression matches the end
//! of the module's path. Anything but plain `LoRA` on linear layers (`DoRA`, trained biases, whole modules, an
//! initialisation that changes the base) is refused: leaving it out would give another model.

mod settings;

use super::{Adapter, is_finite};
use crate::dimensions::LinearShape;
use crate::files::map;
use crate::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use settings::Settings;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The prefix of a module's path in PEFT's files.
pub const TASK_PREFIX: &str = "base_model.model.";

/// `[model.adapter.peft]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeftAdapter {
    /// The folder with `adapter_config.json` and `adapter_model.safetensors`.
    pub path: PathBuf,
}

impl PeftAdapter {
    /// Reads the adapter for a network's linear layers, in their order.
    ///
    /// # Errors
    /// If a file is missing or damaged, a setting is not supported, a tensor has the wrong shape or belongs to no
    /// layer or holds a number that is not finite, or there are no tensors.
    pub(super) fn read(&self, linears: &[LinearShape], device: Device) -> Result<Adapter> {
        let config_file = self.path.join("adapter_config.json");
        let config = Settings::new(&config_file)?;
        let weights = self.path.join("adapter_model.safetensors");
        let map = map(&weights)?;
        let file = SafeTensors::deserialize(&map).map_err(|error| {
            Error::file(&weights, format!("is not a complete safetensors file ({error}); save the adapter again"))
        })?;
        let mut used = 0;
        let layers = linears
            .iter()
            .map(|linear| {
                let tensor = |part: &str| {
                    let name = format!("{TASK_PREFIX}{}.{part}.weight", linear.name);
                    file.tensor(&name).ok().map(|view| float(&weights, &name, &view)).transpose()
                };
                let (Some(a), Some(b)) = (tensor("lora_A")?, tensor("lora_B")?) else { return Ok(None) };
                used += 2;
                config.layer(linear, &a, &b, device).map_err(|problem| Error::file(&weights, problem)).map(Some)
            })
            .collect::<Result<Vec<_>>>()?;
        if used != file.len() {
            let known = |name: &&str| {
                let module = name.strip_prefix(TASK_PREFIX).and_then(|name| name.rsplit_once(".lora_"));
                !module.is_some_and(|(module, _)| linears.iter().any(|linear| linear.name == module))
            };
            let names = file.names();
            let stray = names.into_iter().find(known).unwrap_or("(half of a pair)");
            return Err(Error::file(
                &weights,
                format!("tensor `{stray}` belongs to no linear layer of this network; was the adapter made for it?"),
            ));
        }
        if used == 0 {
            return Err(Error::file(&weights, "holds no tensors; save the adapter again"));
        }
        Ok(Adapter { layers })
    }
}

/// A tensor of the file in f32, with the view's shape, such as `[rank, inputs]`.
fn float(path: &Path, name: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => {
            return Err(Error::file(path, format!("tensor `{name}` is {other:?}; F32, F16 and BF16 are supported")));
        }
    };
    let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
    let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?.to_kind(Kind::Float);
    if !is_finite(&tensor) {
        return Err(Error::file(path, format!("tensor `{name}` holds numbers that are not finite; train it again")));
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;
    use safetensors::tensor::TensorView;
    use serde_json::{Value, json};

    fn linears() -> Vec<LinearShape> {
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
            .map(|name| LinearShape { name: name.into(), inputs: 3, outputs: 2 })
            .into()
    }

    /// A folder with the layers of these names and ranks.
    fn saved(config: &Value, layers: &[(&str, usize)]) -> tempfile::TempDir {
        let numbers: Vec<f32> = (0..12u8).map(f32::from).collect();
        saved_with(config, layers, &numbers)
    }

    fn saved_with(config: &Value, layers: &[(&str, usize)], numbers: &[f32]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let tensors: Vec<(String, TensorView<'_>)> = layers
            .iter()
            .flat_map(|(name, rank)| {
                let view = |shape: [usize; 2]| {
                    TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..shape[0] * shape[1] * 4]).unwrap()
                };
                [
                    (format!("{TASK_PREFIX}{name}.lora_A.weight"), view([*rank, 3])),
                    (format!("{TASK_PREFIX}{name}.lora_B.weight"), view([2, *rank])),
                ]
            })
            .collect();
        std::fs::write(folder.path().join("adapter_model.safetensors"), safetensors::serialize(tensors, None).unwrap())
            .unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        folder
    }

    fn read(folder: &tempfile::TempDir) -> Result<Adapter> {
        PeftAdapter { path: folder.path().to_owned() }.read(&linears(), HOST)
    }

    fn refused(config: &Value, layers: &[(&str, usize)]) -> String {
        let error = read(&saved(config, layers)).unwrap_err();
        assert!(error.is_input(), "{error}");
        error.to_string()
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns_in_their_order() {
        let config = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"model.layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"up_proj": 6, "proj": 1000},
        });
        let folder = saved(&config, &[(&linears()[0].name, 4), (&linears()[1].name, 2), (&linears()[2].name, 4)]);
        let adapter = read(&folder).unwrap();
        let found: Vec<(i64, f64)> = adapter.layers().map(|layer| (layer.rank(), layer.scale)).collect();
        // 8/4; the whole path names another rank and the global alpha stays: 8/2; `proj` alone matches no last part:
        // 6/4.
        assert_eq!(found, [(4, 2.0), (2, 4.0), (4, 1.5)]);
        let first = adapter.layers().next().unwrap();
        assert!(first.a.requires_grad() && first.gate.is_none());
        assert_eq!(Vec::<f32>::try_from(first.b.reshape([-1])).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn rank_stabilised_scaling_and_layers_that_are_not_there() {
        let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true});
        let adapter = read(&saved(&config, &[(&linears()[1].name, 4)])).unwrap();
        let found: Vec<(&str, f64)> = adapter.layers().map(|layer| (layer.name.as_str(), layer.scale)).collect();
        assert_eq!(found, [("model.layers.1.self_attn.q_proj", 4.0)]);
    }

    #[test]
    fn what_is_not_plain_lora_for_this_network_is_refused() {
        let name = linears()[0].name.clone();
        let plain = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8});
        let with = |key: &str, value: Value| {
            let mut config = plain.clone();
            config[key] = value;
            config
        };
        assert!(refused(&with("peft_type", json!("IA3")), &[(&name, 2)]).contains("only LORA"));
        assert!(refused(&with("use_dora", json!(true)), &[(&name, 2)]).contains("`use_dora`"));
        assert!(refused(&with("bias", json!("all")), &[(&name, 2)]).contains("`bias`"));
        assert!(refused(&with("r", json!(4)), &[(&name, 2)]).contains("rank 4"));
        assert!(refused(&with("init_lora_weights", json!("pissa")), &[(&name, 2)]).contains("`init_lora_weights`"));
        assert!(refused(&with("lora_alpha", json!(1e300)), &[(&name, 2)]).contains("too large"));
        assert!(refused(&plain, &[("model.layers.7.mlp.up_proj", 2)]).contains("`base_model.model.model.layers.7"));
        assert!(refused(&plain, &[]).contains("no tensors"));
        let missing = PeftAdapter { path: "/nowhere".into() }.read(&linears(), HOST).unwrap_err();
        assert!(missing.is_input() && missing.to_string().contains("/nowhere"), "{missing}");
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_with_its_tensor() {
        let name = linears()[0].name.clone();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8});
        // `A` has six numbers, `B` the first four of them.
        for (index, part) in [(3, "lora_A"), (5, "lora_A")] {
            for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut numbers = [1.0; 12];
                numbers[index] = number;
                let error = read(&saved_with(&config, &[(&name, 2)], &numbers)).unwrap_err();
                let expected = format!("tensor `{TASK_PREFIX}{name}.{part}.weight` holds numbers that are not finite");
                assert!(error.is_input() && error.to_string().contains(&expected), "{error}");
            }
        }
    }
}
