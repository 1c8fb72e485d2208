//! Tiny networks made from a seed: for tests, smoke runs and a first look without any download.
//!
//! Weights are normal with deviation `1/√inputs`, norms are one, so that activations keep their size. The output head
//! is tied to the embedding, and the tokenizer is one of bytes.

use super::{CausalLm, TensorSource, build};
use crate::backend::Placement;
use crate::{Error, Result};
use schema::Seed;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

/// The sizes of a random network, `[model.random]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomModel {
    /// `llama`, `qwen2` or `qwen3`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Decoder layers.
    pub layers: i64,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads.
    pub kv_heads: i64,
    /// Width inside the feed-forward layer.
    pub intermediate_size: i64,
    /// The seed of the weights.
    pub seed: u64,
}

impl Default for RandomModel {
    fn default() -> Self {
        Self {
            family: "llama".into(),
            hidden_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            intermediate_size: 128,
            seed: 0,
        }
    }
}

impl RandomModel {
    /// The hub-style `config.json` of this network.
    pub fn config(&self, vocab: usize) -> Value {
        json!({
            "model_type": self.family,
            "vocab_size": vocab,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden_size / self.heads.max(1),
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true,
        })
    }

    /// Builds the network for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// If the family is not supported, or the sizes do not fit together.
    pub fn build(&self, vocab: usize, placement: Placement) -> Result<Box<dyn CausalLm>> {
        if self.heads == 0 || self.hidden_size % (2 * self.heads) != 0 {
            return Err(Error::input(format!(
                "model.random: hidden_size ({}) must be a multiple of twice the heads ({})",
                self.hidden_size, self.heads
            )));
        }
        build(&self.config(vocab), vocab, &Source(Seed::new(self.seed).child("weights")), placement)
    }
}

/// Random tensors by name.
struct Source(Seed);

impl TensorSource for Source {
    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let len = shape.iter().product::<i64>() as usize;
        if name.ends_with("norm.weight") {
            return Ok(Tensor::from_slice(&vec![1.0f32; len]).reshape(shape));
        }
        let deviation = if shape.len() == 1 { 0.02 } else { (shape[shape.len() - 1] as f32).sqrt().recip() };
        let numbers: Vec<f32> = self.0.child(name).normals(len).into_iter().map(|x| x * deviation).collect();
        Ok(Tensor::from_slice(&numbers).reshape(shape))
    }
}
