//! Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's decoder with biases on queries, keys and values.

use super::decoder::{Dimensions, Fields};
use crate::{Error, Result};
use serde_json::Value;

pub(super) fn dimensions(config: &Value) -> Result<Dimensions> {
    let fields = Fields::new(config);
    if fields.flag("use_sliding_window") {
        return Err(Error::input(
            "config.json: use_sliding_window = true is not supported; models that were released with it off work",
        ));
    }
    let mut dimensions = fields.dimensions()?;
    dimensions.qkv_bias = true;
    Ok(dimensions)
}
