//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's decoder with biases on queries, keys and values.

use super::Fields;
use crate::Result;
use crate::dimensions::Dimensions;
use serde_json::Value;

/// Reads the `config.json` of this family.
///
/// # Errors
/// If a size is missing or not a positive whole number, or a setting such as sliding-window
/// attention is not supported.
pub(super) fn dimensions(config: &Value) -> Result<Dimensions> {
    let fields = Fields::new(config);
    fields.refuse_sliding_window()?;
    let mut dimensions = fields.dimensions()?;
    dimensions.qkv_bias = true;
    Ok(dimensions)
}
