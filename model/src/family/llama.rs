//! Llama 2 and 3, SmolLM2 and others of the family (Touvron et al. 2023; Grattafiori et al. 2024).
//!
//! Pre-norm decoder with rotary positions, grouped-query attention and `SwiGLU`; biases only where the config says so.

use super::Fields;
use crate::Result;
use crate::dimensions::Dimensions;
use serde_json::Value;

/// Reads the `config.json` of this family.
///
/// # Errors
/// If a size is missing or not a positive whole number, a setting is not supported.
pub(super) fn dimensions(config: &Value) -> Result<Dimensions> {
    let fields = Fields::new(config);
    fields.refuse_sliding_window()?;
    let mut dimensions = fields.dimensions()?;
    dimensions.qkv_bias = fields.flag("attention_bias")?;
    dimensions.output_bias = fields.flag("attention_bias")?;
    dimensions.mlp_bias = fields.flag("mlp_bias")?;
    Ok(dimensions)
}
