//! The identity of the weights that a sample came from.

use serde::{Deserialize, Serialize};

/// A policy's name: its version in the run, and a hash of its content so that a name can be checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// The number of training steps that led to it; 0 is the model before training.
    pub version: u64,
    /// SHA-256, in hexadecimal, of the base model's identity and of the adapter's tensors.
    pub hash: String,
}
