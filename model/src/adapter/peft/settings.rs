//! `adapter_config.json`: the settings that give an adapter's tensors their meaning.
//!
//! Each key is read, known to change nothing here ([`HARMLESS`]), or must be off. An unknown key must be
//! off too: some later version of PEFT may mean another model by it.

use super::super::{LowRank, trainable};
use crate::dimensions::LinearShape;
use crate::files::read_json;
use crate::{Error, Result};
use regex::Regex;
use serde_json::{Map, Value};
use std::path::Path;
use tch::{Device, Tensor};

/// The problem with a setting, as a clause.
type Problem = String;

/// Keys that are read below.
const READ: [&str; 7] =
    ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"];

/// Keys that describe the adapter, choose the modules whose tensors are in the file anyway, or act in PEFT's own
/// training alone. The settings of an initialisation count only if `init_lora_weights` names it, and
/// `qalora_group_size` and `megatron_core` only with keys that must be off.
const HARMLESS: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "library_name",
];

/// Values of `init_lora_weights` that leave the base as it is. Others (`PiSSA`, `OLoRA`, `CorDA`, `LoftQ`, `LoRA-GA`)
/// take something out of the base whenever PEFT loads the adapter.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The settings of an adapter.
pub(super) struct Settings {
    rank: i64,
    alpha: f64,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    root_scale: bool,
}

impl Settings {
    /// Reads an `adapter_config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not of plain `LoRA`, or lacks a number.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let config = read_json(path)?;
        let fields = config.as_object().ok_or_else(|| Error::file(path, "is not a JSON object"))?;
        Self::parse(fields).map_err(|problem| Error::file(path, problem))
    }

    fn parse(fields: &Map<String, Value>) -> std::result::Result<Self, Problem> {
        let kind = fields.get("peft_type").and_then(Value::as_str).unwrap_or("(none)");
        if kind != "LORA" {
            return Err(format!("peft_type is {kind}; only LORA adapters can be read"));
        }
        let foreign = |(key, value): &(&String, &Value)| {
            !READ.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str()) && !is_off(value)
        };
        if let Some((key, value)) = fields.iter().find(foreign) {
            return Err(format!("`{key}` is set ({}); only plain LoRA on linear layers can be read", shown(value)));
        }
        match fields.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(start)) if HARMLESS_STARTS.contains(&start.as_str()) => {}
            Some(start) => {
                return Err(format!(
                    "`init_lora_weights` is {}, so this adapter may belong to a changed base; save it as plain LoRA (PEFT: \
                     `save_pretrained` with `path_initial_model_for_weight_conversion`)",
                    shown(start)
                ));
            }
        }
        let root_scale = match fields.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(root)) => *root,
            Some(other) => return Err(format!("`use_rslora` must be true or false, but is {}", shown(other))),
        };
        let rank = fields.get("r").and_then(Value::as_i64).filter(|rank| *rank >= 1);
        let alpha = fields.get("lora_alpha").and_then(Value::as_f64);
        let given = |key: &str| fields.get(key).map_or_else(|| "missing".into(), shown);
        let settings = Self {
            rank: rank.ok_or_else(|| format!("`r` must be a whole number from 1 on, but is {}", given("r")))?,
            alpha: alpha.ok_or_else(|| format!("`lora_alpha` must be a number, but is {}", given("lora_alpha")))?,
            rank_pattern: patterns(fields, "rank_pattern")?,
            alpha_pattern: patterns(fields, "alpha_pattern")?,
            root_scale,
        };
        let whole = |(_, rank): &&(Regex, f64)| rank.fract() != 0.0 || *rank < 1.0;
        if let Some((pattern, rank)) = settings.rank_pattern.iter().find(whole) {
            return Err(format!("`rank_pattern`: {rank} for `{pattern}` is not a whole number from 1 on"));
        }
        Ok(settings)
    }

    /// The update of a layer with the saved factors `a`, `[rank, inputs]`, and `b`, `[outputs, rank]`.
    ///
    /// # Errors
    /// A clause if the factors do not have the rank or the shape that the settings and the layer ask for.
    pub(super) fn layer(
        &self,
        linear: &LinearShape,
        a: &Tensor,
        b: &Tensor,
        device: Device,
    ) -> std::result::Result<LowRank, Problem> {
        let find = |patterns: &[(Regex, f64)]| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(&linear.name)).map(|(_, value)| *value)
        };
        let rank = find(&self.rank_pattern).map_or(self.rank, |rank| rank as i64);
        let alpha = find(&self.alpha_pattern).unwrap_or(self.alpha);
        if a.size() != [rank, linear.inputs] || b.size() != [linear.outputs, rank] {
            return Err(format!(
                "the tensors of `{}` have shapes {:?} and {:?}; rank {rank} on a layer of {} inputs and {} outputs was \
                 expected",
                linear.name,
                a.size(),
                b.size(),
                linear.inputs,
                linear.outputs
            ));
        }
        let divisor = if self.root_scale { (rank as f64).sqrt() } else { rank as f64 };
        let scale = alpha / divisor;
        if !(scale as f32).is_finite() {
            return Err(format!("`lora_alpha` is {alpha} for `{}`, which is too large", linear.name));
        }
        Ok(LowRank {
            name: linear.name.clone(),
            a: trainable(a, device),
            b: trainable(b, device),
            gate: None,
            scale,
            full_rank: rank,
        })
    }
}

/// True for the values by which a setting says that it is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A value, short enough for a message.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LONGEST { text } else { text.chars().take(LONGEST).collect::<String>() + "…" }
}

/// A pattern object: expressions that must match a whole path or its end after a dot, in the file's order.
fn patterns(fields: &Map<String, Value>, key: &str) -> std::result::Result<Vec<(Regex, f64)>, Problem> {
    let fields = match fields.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(fields)) => fields,
        Some(other) => return Err(format!("`{key}` must be an object, but is {}", shown(other))),
    };
    fields
        .iter()
        .map(|(pattern, value)| {
            let value = value.as_f64().ok_or_else(|| format!("`{key}`: `{pattern}` is not a number"))?;
            let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
                .map_err(|error| format!("`{key}`: `{pattern}` is no regular expression ({error})"))?;
            Ok((expression, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The config that PEFT 0.21 writes for plain `LoRA`.
    fn plain() -> Map<String, Value> {
        let config = json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "model", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
            "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0,
            "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
            "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2,
            "rank_pattern": {}, "revision": null, "target_modules": ["v_proj", "up_proj", "q_proj"],
            "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
            "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
        });
        config.as_object().cloned().unwrap()
    }

    fn with(key: &str, value: Value) -> std::result::Result<Settings, Problem> {
        let mut config = plain();
        config.insert(key.into(), value);
        Settings::parse(&config)
    }

    fn problem(key: &str, value: Value) -> String {
        with(key, value).err().unwrap_or_else(|| panic!("`{key}` was accepted"))
    }

    #[test]
    fn what_peft_writes_for_plain_lora_is_read() {
        let settings = Settings::parse(&plain()).unwrap();
        assert_eq!((settings.rank, settings.alpha, settings.root_scale), (2, 8.0, false));
    }

    /// Every key that PEFT writes is set to something: it is used, harmless, or refused by its name.
    #[test]
    fn every_key_is_used_harmless_or_refused_by_name() {
        let refused: Vec<String> = plain()
            .keys()
            .filter(|key| !READ.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str()))
            .map(|key| {
                for value in [json!(true), json!("all"), json!(["lm_head"]), json!({"a": 1}), json!(1)] {
                    assert!(problem(key, value).starts_with(&format!("`{key}` is set (")), "{key}");
                }
                key.clone()
            })
            .collect();
        let expected = [
            "alora_invocation_tokens",
            "arrow_config",
            "bias",
            "ensure_weight_tying",
            "fan_in_fan_out",
            "kasa_config",
            "layer_replication",
            "lora_bias",
            "megatron_config",
            "modules_to_save",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "use_dora",
            "use_qalora",
            "velora_config",
        ];
        assert_eq!(refused, expected);
        for key in HARMLESS {
            assert!(with(key, json!("anything")).is_ok(), "{key}");
        }
        assert!(problem("a_key_of_tomorrow", json!({"on": 1})).contains("`a_key_of_tomorrow` is set ({\"on\":1})"));
        assert!(with("a_key_of_tomorrow", Value::Null).is_ok());
    }

    #[test]
    fn a_start_that_changes_the_base_is_refused() {
        for start in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "a_start_of_tomorrow"] {
            let problem = problem("init_lora_weights", json!(start));
            assert!(problem.contains(&format!("`init_lora_weights` is \"{start}\"")), "{problem}");
        }
        for start in [json!(true), json!(false), Value::Null, json!("gaussian"), json!("eva"), json!("orthogonal")] {
            assert!(with("init_lora_weights", start.clone()).is_ok(), "{start}");
        }
    }

    #[test]
    fn numbers_are_numbers_and_none_is_guessed() {
        for (key, value) in [
            ("r", json!("8")),
            ("r", json!(0)),
            ("r", json!(2.5)),
            ("r", Value::Null),
            ("lora_alpha", json!("x")),
            ("lora_alpha", Value::Null),
            ("use_rslora", json!("yes")),
            ("rank_pattern", json!(["q_proj"])),
            ("rank_pattern", json!({"q_proj": 2.5})),
            ("rank_pattern", json!({"q_proj": 0})),
            ("alpha_pattern", json!({"q_proj": "x"})),
            ("alpha_pattern", json!({"(": 1})),
        ] {
            assert!(problem(key, value.clone()).contains(&format!("`{key}`")), "{key} = {value}");
        }
        for key in ["r", "lora_alpha"] {
            let mut config = plain();
            config.remove(key);
            let problem = Settings::parse(&config).err().unwrap();
            assert!(problem.contains(&format!("`{key}` must be")) && problem.contains("missing"), "{problem}");
        }
    }
}
