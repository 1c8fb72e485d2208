//! Merged export: the base's weights with the adapter's updates added, for programs without adapter support.
//!
//! `W' = W + s · B diag(g) A`, computed in f32 and stored in the requested format. Tensors are made, written and
//! dropped one at a time, so a merge needs the memory of its largest tensor and not that of the model.
//!
//! Two layouts are written: a Hugging Face folder ([`hub_shards`], [`hub_files`]) and one GGUF file ([`write_gguf`]),
//! whatever the base came in.

mod folder;
mod gguf;
#[cfg(test)]
mod tests;

pub use crate::weights::Storage;
pub use folder::{Shard, hub_files, hub_index, hub_shards};
pub use gguf::write_gguf;

use crate::adapter::{Adapter, LowRank};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// A checkpoint with an adapter multiplied into it.
pub struct Merged<'a> {
    checkpoint: &'a Checkpoint,
    /// The update of each weight, by the weight's hub name.
    updates: BTreeMap<String, &'a LowRank>,
}

impl<'a> Merged<'a> {
    /// Merges `adapter` into `checkpoint`, the base that it was trained on.
    ///
    /// # Errors
    /// If the checkpoint lacks a layer that the adapter changes, or has it in another shape, or a number of the adapter
    /// is not finite.
    pub fn new(checkpoint: &'a Checkpoint, adapter: &'a Adapter) -> Result<Self> {
        if let Some(name) = adapter.first_non_finite() {
            return Err(Error::input(format!(
                "the adapter's tensor `{name}` holds numbers that are not finite; export an earlier checkpoint"
            )));
        }
        let updates: BTreeMap<String, &LowRank> =
            adapter.layers().map(|layer| (format!("{}.weight", layer.name), layer)).collect();
        for (name, layer) in &updates {
            let shape = [layer.b.size()[0], layer.a.size()[1]].map(|size| size as usize);
            let found = checkpoint.shape(name);
            if found != shape {
                let problem =
                    format!("has tensor `{name}` in shape {found:?}, but the adapter changes one of shape {shape:?}");
                return Err(Error::file(
                    checkpoint.path(),
                    format!("{problem}; is it the base that the adapter was trained on?"),
                ));
            }
        }
        Ok(Self { checkpoint, updates })
    }

    /// The base checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    /// Every tensor's hub name, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.checkpoint.names()
    }

    /// The merged tensor of this hub name in the hub's layout and shape, f32 on the CPU.
    ///
    /// # Errors
    /// If the base has no such tensor, or its format is not supported.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let base = self.checkpoint.tensor(name)?.to_kind(Kind::Float);
        match self.updates.get(name) {
            Some(update) => Ok(base + update.delta_weight().to_device(crate::device::HOST)),
            None => Ok(base),
        }
    }
}
