//! Storage formats of exported tensors.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The storage format of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with eleven bits of precision.
    F16,
    /// 16-bit floats with the range of f32 and eight bits of precision.
    Bf16,
    /// ggml's blocks of 32 signed bytes that share an f16 scale: `x ≈ d·q` with `d = max|x| / 127`. GGUF only.
    Q8_0,
}

/// Elements in a block of `Q8_0`.
const BLOCK: usize = 32;

impl Storage {
    /// The names in safetensors and in Hugging Face configs, if the format has them.
    pub(crate) fn hub_names(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::F32 => Some(("F32", "float32")),
            Self::F16 => Some(("F16", "float16")),
            Self::Bf16 => Some(("BF16", "bfloat16")),
            Self::Q8_0 => None,
        }
    }

    /// ggml's id of the format, and of a file whose matrices are mostly in it.
    pub(crate) fn ggml_ids(self) -> (u32, u32) {
        match self {
            Self::F32 => (0, 0),
            Self::F16 => (1, 1),
            Self::Bf16 => (30, 32),
            Self::Q8_0 => (8, 7),
        }
    }

    /// Elements in a block; a row must hold a whole number of blocks.
    pub(crate) fn block(self) -> usize {
        if self == Self::Q8_0 { BLOCK } else { 1 }
    }

    /// Bytes of this many elements, a whole number of blocks.
    pub(crate) fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => elements * 4,
            Self::F16 | Self::Bf16 => elements * 2,
            Self::Q8_0 => elements / BLOCK * (BLOCK + 2),
        }
    }

    /// The stored bytes of an f32 tensor on the CPU of any shape, little-endian, row by row.
    pub(crate) fn encode(self, tensor: &Tensor) -> Vec<u8> {
        let flat = tensor.contiguous();
        let mut numbers = vec![0f32; flat.numel()];
        flat.copy_data(&mut numbers, flat.numel());
        match self {
            Self::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Self::Bf16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Self::Q8_0 => numbers.chunks(BLOCK).flat_map(q8_0).collect(),
        }
    }
}

/// Encodes one block: the scale, then the elements in units of it.
fn q8_0(numbers: &[f32]) -> Vec<u8> {
    let largest = numbers.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
    let quantised = numbers.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned());
    f16::from_f32(scale).to_le_bytes().into_iter().chain(quantised).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_bytes_by_hand() {
        // 127 in the block makes the scale 1 (0x3c00 as f16); ties are rounded away from zero.
        let mut numbers = [0f32; BLOCK];
        numbers[..5].copy_from_slice(&[127.0, -127.0, 2.5, -2.5, 0.4]);
        let bytes = Storage::Q8_0.encode(&Tensor::from_slice(&numbers));
        assert_eq!(bytes.len(), Storage::Q8_0.bytes(BLOCK));
        assert_eq!(bytes[..7], [0x00, 0x3c, 127, 129, 3, 253, 0]);
        assert!(Storage::Q8_0.encode(&Tensor::from_slice(&[0f32; BLOCK])).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn floats_in_every_width() {
        let one_and_a_half = Tensor::from_slice(&[1.5f32, -2.0]);
        assert_eq!(Storage::F32.encode(&one_and_a_half), [0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(Storage::F16.encode(&one_and_a_half), [0x00, 0x3e, 0x00, 0xc0]);
        assert_eq!(Storage::Bf16.encode(&one_and_a_half), [0xc0, 0x3f, 0x00, 0xc0]);
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            assert_eq!(storage.encode(&one_and_a_half).len(), storage.bytes(2));
        }
    }
}
