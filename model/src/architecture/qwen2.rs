//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's decoder with biases on queries, keys and values.

use super::decoder::{Dimensions, Fields};
use crate::Result;
use serde_json::Value;

pub(super) fn dimensions(config: &Value) -> Result<Dimensions> {
    let fields = Fields::new(config);
    fields.refuse_sliding_window()?;
    let mut dimensions = fields.dimensions()?;
    dimensions.qkv_bias = true;
    Ok(dimensions)
}
