//! The choice between our CPU kernels and libtorch's operations.
//!
//! It is made once, in [`Placement::new`], and travels with the network: the decoder, its backward pass and the output
//! head all follow it.

use crate::device::{Dtype, HOST};
use tch::{Device, Kind};

/// The implementation of arithmetic on whole batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// The kernels of this crate, on the CPU: weights of f32 or bf16, activations of f32.
    Kernels,
    /// libtorch's operations, on any device.
    Libtorch,
}

impl Backend {
    /// The faster backend of a device: kernels on the CPU, libtorch elsewhere.
    pub fn of(device: Device) -> Self {
        if device == HOST { Self::Kernels } else { Self::Libtorch }
    }
}

/// The device of a network's tensors, the format of its weights, and the backend that computes with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The device of all tensors.
    pub device: Device,
    /// The format of the frozen weights.
    pub dtype: Dtype,
    /// The implementation of the arithmetic.
    pub backend: Backend,
}

impl Placement {
    /// A placement with the device's faster backend.
    pub fn new(device: Device, dtype: Dtype) -> Self {
        Self { device, dtype, backend: Backend::of(device) }
    }

    /// The format of activations, and of keys and values: f32 for our kernels, that of the weights for libtorch.
    pub fn activations(self) -> Kind {
        match self.backend {
            Backend::Kernels => Kind::Float,
            Backend::Libtorch => self.dtype.kind(),
        }
    }
}
