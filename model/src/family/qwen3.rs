//! Qwen3 (Yang et al. 2025): Llama's decoder with an RMS norm over each head's query and key, and a head size of
//! its own.

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
    dimensions.qkv_bias = fields.flag("attention_bias")?;
    dimensions.output_bias = fields.flag("attention_bias")?;
    dimensions.qk_norm = true;
    // This family's default; the others divide the width among the heads.
    dimensions.head_dim = fields.optional("head_dim")?.unwrap_or(128);
    Ok(dimensions)
}
