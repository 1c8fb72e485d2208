//! Named tensors to and from safetensors files.

use crate::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use tch::{Kind, Tensor};

/// Returns named tensors as the bytes of a safetensors file, all of them in f32.
pub(crate) fn to_bytes(tensors: &[(String, Tensor)]) -> std::io::Result<Vec<u8>> {
    let owned: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let flat = tensor.detach().to_device(model::device::HOST).to_kind(Kind::Float).contiguous();
            let mut bytes = vec![0u8; flat.numel() * 4];
            flat.copy_data_u8(&mut bytes, flat.numel());
            (name.as_str(), tensor.size().iter().map(|size| *size as usize).collect(), bytes)
        })
        .collect();
    let views = owned
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    views.and_then(|views| safetensors::serialize(views, None)).map_err(std::io::Error::other)
}

/// Reads every tensor of a safetensors file written with [`to_bytes`].
pub(crate) fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let bytes = std::fs::read(path).map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    from_bytes(&bytes, &path.display().to_string())
}

/// Reads every tensor from the bytes of such a file; `source` is its path or URL, for errors.
pub(crate) fn from_bytes(bytes: &[u8], source: &str) -> Result<Vec<(String, Tensor)>> {
    let problem = |error: &dyn std::fmt::Display| Error::input(format!("{source}: {error}"));
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| problem(&format!("{error}; the file is damaged, use an earlier checkpoint")))?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(problem(&format!("tensor `{name}` is {:?}, expected f32", view.dtype())));
            }
            let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
            Ok((name.to_owned(), Tensor::f_from_data_size(view.data(), &shape, Kind::Float)?))
        })
        .collect()
}
