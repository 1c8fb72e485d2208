//! ggml's names and row order of the tensors of a network, and the hub's.
//!
//! For the Llama family ggml has its own order of the rows of q and k: its rotary embedding rotates neighbours
//! (elements `2i` and `2i + 1` of a head), while the hub's rotates halves (`i` and `i + d/2`).

use serde_json::Value;
use tch::Tensor;

/// The row order of q and k: the numbers of query and key heads if ggml reorders them.
pub(crate) struct RowOrder(Option<(i64, i64)>);

impl RowOrder {
    /// The row order of the model of a hub config.
    pub(crate) fn of(config: &Value) -> Self {
        let heads = |key: &str| config.get(key).and_then(Value::as_i64);
        match config.get("model_type").and_then(Value::as_str) {
            Some("llama") => {
                let queries = heads("num_attention_heads");
                Self(queries.zip(heads("num_key_value_heads").or(queries)))
            }
            _ => Self(None),
        }
    }

    /// The number of heads of this tensor's rows (a weight or a bias), if they are reordered.
    fn heads(&self, name: &str) -> Option<i64> {
        let (heads, kv_heads) = self.0?;
        if name.contains(".self_attn.q_proj.") {
            Some(heads)
        } else {
            name.contains(".self_attn.k_proj.").then_some(kv_heads)
        }
    }

    /// Reorders the rows of q and k, `[rows, …]`, from the hub's order into ggml's.
    pub(crate) fn apply(&self, name: &str, tensor: Tensor) -> Tensor {
        let Some(heads) = self.heads(name) else { return tensor };
        let shape = tensor.size();
        tensor.view([heads, 2, shape[0] / heads / 2, -1]).transpose(1, 2).reshape(shape)
    }

    /// Reorders the rows of q and k, `[rows, …]`, from ggml's order into the hub's.
    ///
    /// # Errors
    /// A clause if the heads cannot share the rows evenly.
    pub(crate) fn restore(&self, name: &str, tensor: Tensor) -> std::result::Result<Tensor, String> {
        let Some(heads) = self.heads(name) else { return Ok(tensor) };
        let shape = tensor.size();
        if heads < 1 || shape[0] % (2 * heads) != 0 {
            return Err(format!("tensor `{name}` has {} rows, which {heads} heads cannot share evenly", shape[0]));
        }
        let pairs = shape[0] / heads / 2;
        Ok(tensor.view([heads, pairs, 2, -1]).transpose(1, 2).reshape(shape))
    }
}

/// ggml's names outside layers, each with the hub's.
const GLOBAL_NAMES: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// ggml's names inside a layer, each with the hub's.
const LAYER_NAMES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The hub's name of a ggml tensor: `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`. A tensor that
/// no network here uses has none.
pub(crate) fn hub_name(ggml: &str) -> Option<String> {
    let (module, parameter) = ggml.rsplit_once('.')?;
    let find = |names: &[(&str, &'static str)], module: &str| {
        names.iter().find(|(ggml, _)| *ggml == module).map(|(_, hub)| *hub)
    };
    match module.strip_prefix("blk.") {
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            Some(format!("model.layers.{layer}.{}.{parameter}", find(LAYER_NAMES, module)?))
        }
        None => Some(format!("{}.{parameter}", find(GLOBAL_NAMES, module)?)),
    }
}

/// The reverse of [`hub_name`].
pub(crate) fn ggml_name(hub: &str) -> Option<String> {
    let (module, parameter) = hub.rsplit_once('.')?;
    let find = |names: &[(&'static str, &str)], module: &str| {
        names.iter().find(|(_, hub)| *hub == module).map(|(ggml, _)| *ggml)
    };
    match module.strip_prefix("model.layers.") {
        Some(rest) => {
            let (layer, module) = rest.split_once('.')?;
            Some(format!("blk.{layer}.{}.{parameter}", find(LAYER_NAMES, module)?))
        }
        None => Some(format!("{}.{parameter}", find(GLOBAL_NAMES, module)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_both_ways() {
        for (ggml, hub) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ] {
            assert_eq!(hub_name(ggml).as_deref(), Some(hub));
            assert_eq!(ggml_name(hub).as_deref(), Some(ggml));
        }
        assert_eq!(hub_name("rope_freqs.weight"), None);
    }

    #[test]
    fn neighbouring_pairs_become_halves() {
        // One head of four rows in ggml's order: pair 0 is rows 0 and 1, pair 1 is rows 2 and 3.
        let ggml = Tensor::from_slice(&[10f32, 11.0, 20.0, 21.0]).view([4, 1]);
        let hub = RowOrder(Some((1, 1))).restore("model.layers.0.self_attn.q_proj.weight", ggml).unwrap();
        assert_eq!(Vec::<f32>::try_from(hub.view([-1])).unwrap(), [10.0, 20.0, 11.0, 21.0]);
        let back = RowOrder(Some((1, 1))).apply("model.layers.0.self_attn.q_proj.weight", hub);
        assert_eq!(Vec::<f32>::try_from(back.view([-1])).unwrap(), [10.0, 11.0, 20.0, 21.0]);
    }

    #[test]
    fn values_keep_their_order() {
        let tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]);
        let same = RowOrder(Some((1, 1))).restore("model.layers.0.self_attn.v_proj.bias", tensor).unwrap();
        assert_eq!(Vec::<f32>::try_from(same).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }
}
