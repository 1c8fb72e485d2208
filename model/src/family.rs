//! Network families: which decoder a hub's `config.json` describes.
//!
//! A family is one file with one function: it reads `config.json` into [`Dimensions`], whose switches (biases, norms
//! per head, rotary scaling) select the family's variant of the shared decoder.

mod fields;
mod keys;
mod llama;
mod qwen2;
mod qwen3;

use crate::dimensions::Dimensions;
use crate::{Error, Result};
use fields::Fields;
use serde_json::Value;

/// A function that reads a family's `config.json`.
type ReadConfig = fn(&Value) -> Result<Dimensions>;

/// The families by the hub's `model_type`. A new family is one file and its line here.
const FAMILIES: &[(&str, ReadConfig)] =
    &[("llama", llama::dimensions), ("qwen2", qwen2::dimensions), ("qwen3", qwen3::dimensions)];

/// Reads the sizes of a network from the hub's `config.json`.
///
/// # Errors
/// If the `model_type` or a setting is not supported, a setting has the wrong type, or a size is missing or not a
/// positive whole number.
pub fn dimensions(config: &Value) -> Result<Dimensions> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, read) = FAMILIES.iter().find(|(name, _)| *name == model_type).ok_or_else(|| {
        Error::input(format!("model_type `{model_type}` is not supported; known families: {}", known()))
    })?;
    keys::check(config)?;
    read(config)
}

#[cfg(test)]
mod tests;
