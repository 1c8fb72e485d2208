//! Tensor formats of GGUF, and the decoding of their blocks.
//!
//! A row is cut into blocks of 32 or 256 elements that share a scale `d` and, in the `_1` and `K` formats, an offset.
//! `x = d·q` (`_0`), `x = d·q + m` (`_1`), and in the K formats `x = d·sᵢ·q − m·oᵢ` with 6-bit scales and offsets per
//! sub-block (ggml's `ggml-quants`). Layouts below give each block's bytes in order; all numbers are little-endian.

use half::f16;
use rayon::prelude::*;

/// The storage format of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
    /// Blocks that decode to f32.
    Quantised(&'static Quantised),
}

/// One kind of block.
#[derive(Debug)]
pub(crate) struct Quantised {
    name: &'static str,
    /// Bytes of one block.
    bytes: usize,
    /// Elements in one block.
    numbers: usize,
    decode: fn(&[u8], &mut [f32]),
}

/// Formats by their id in the file. A new one is its decoder and its line here.
const FORMATS: &[(u32, Format)] = &[
    (0, Format::F32),
    (1, Format::F16),
    (30, Format::Bf16),
    (2, Format::Quantised(&Quantised { name: "Q4_0", bytes: 18, numbers: 32, decode: q4_0 })),
    (3, Format::Quantised(&Quantised { name: "Q4_1", bytes: 20, numbers: 32, decode: q4_1 })),
    (6, Format::Quantised(&Quantised { name: "Q5_0", bytes: 22, numbers: 32, decode: q5_0 })),
    (7, Format::Quantised(&Quantised { name: "Q5_1", bytes: 24, numbers: 32, decode: q5_1 })),
    (8, Format::Quantised(&Quantised { name: "Q8_0", bytes: 34, numbers: 32, decode: q8_0 })),
    (12, Format::Quantised(&Quantised { name: "Q4_K", bytes: 144, numbers: 256, decode: q4_k })),
    (13, Format::Quantised(&Quantised { name: "Q5_K", bytes: 176, numbers: 256, decode: q5_k })),
    (14, Format::Quantised(&Quantised { name: "Q6_K", bytes: 210, numbers: 256, decode: q6_k })),
];

impl Format {
    /// The format with this id.
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        FORMATS.iter().find(|(known, _)| *known == id).map(|(_, format)| *format)
    }

    /// The names of all formats, for messages.
    pub(crate) fn names() -> String {
        FORMATS.iter().map(|(_, format)| format.name()).collect::<Vec<_>>().join(", ")
    }

    /// ggml's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Quantised(blocks) => blocks.name,
        }
    }

    /// Elements in one block; a row must hold a whole number of blocks.
    pub(crate) fn block_numbers(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Quantised(blocks) => blocks.numbers,
        }
    }

    /// Bytes of one block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Quantised(blocks) => blocks.bytes,
        }
    }
}

impl Quantised {
    /// Decodes blocks, on all cores. `numbers` must have the exact length.
    pub(crate) fn decode(&self, bytes: &[u8], numbers: &mut [f32]) {
        // Enough blocks per task that handing it out costs nothing beside it.
        const TASK: usize = 1024;
        assert_eq!(bytes.len() / self.bytes * self.numbers, numbers.len());
        bytes.par_chunks(self.bytes * TASK).zip(numbers.par_chunks_mut(self.numbers * TASK)).for_each(
            |(bytes, numbers)| {
                let blocks = bytes.chunks_exact(self.bytes).zip(numbers.chunks_exact_mut(self.numbers));
                blocks.for_each(|(block, numbers)| (self.decode)(block, numbers));
            },
        );
    }
}

/// The f16 at `at`, as f32.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Layout: d, 16 bytes of nibbles. Low nibbles are the first half of the block, high nibbles the second.
fn q4_0(block: &[u8], numbers: &mut [f32]) {
    let d = half(block, 0);
    let (low, high) = numbers.split_at_mut(16);
    for ((byte, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = d * (f32::from(byte & 15) - 8.0);
        *high = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// Layout: d, m, 16 bytes of nibbles.
fn q4_1(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (low, high) = numbers.split_at_mut(16);
    for ((byte, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = d * f32::from(byte & 15) + m;
        *high = d * f32::from(byte >> 4) + m;
    }
}

/// Layout: d, 32 fifth bits, 16 bytes of nibbles.
fn q5_0(block: &[u8], numbers: &mut [f32]) {
    let d = half(block, 0);
    q5(&block[2..], numbers, |q| d * (q - 16.0));
}

/// Layout: d, m, 32 fifth bits, 16 bytes of nibbles.
fn q5_1(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    q5(&block[4..], numbers, |q| d * q + m);
}

fn q5(fifths_and_nibbles: &[u8], numbers: &mut [f32], value: impl Fn(f32) -> f32) {
    let (fifths, nibbles) = fifths_and_nibbles.split_at(4);
    let fifth = |index: usize| (fifths[index / 8] >> (index % 8) & 1) << 4;
    let (low, high) = numbers.split_at_mut(16);
    for (index, ((byte, low), high)) in nibbles.iter().zip(low).zip(high).enumerate() {
        *low = value(f32::from(byte & 15 | fifth(index)));
        *high = value(f32::from(byte >> 4 | fifth(index + 16)));
    }
}

/// Layout: d, 32 signed bytes.
fn q8_0(block: &[u8], numbers: &mut [f32]) {
    let d = half(block, 0);
    for (byte, number) in block[2..].iter().zip(numbers) {
        *number = d * f32::from(byte.cast_signed());
    }
}

/// Layout: d, m, 12 bytes of scales and offsets, 128 bytes of nibbles.
fn q4_k(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, nibbles) = block[4..].split_at(12);
    for (part, numbers) in numbers.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = k_scale(scales, part);
        let (scale, offset) = (d * scale, m * offset);
        // Two sub-blocks share 32 bytes: the even one has the low nibbles, the odd one the high nibbles.
        let (nibbles, shift) = (&nibbles[part / 2 * 32..][..32], part % 2 * 4);
        for (byte, number) in nibbles.iter().zip(numbers) {
            *number = scale * f32::from(byte >> shift & 15) - offset;
        }
    }
}

/// Layout: d, m, 12 bytes of scales and offsets, 32 bytes of fifth bits (bit i for sub-block i), 128 of nibbles.
fn q5_k(block: &[u8], numbers: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, rest) = block[4..].split_at(12);
    let (fifths, nibbles) = rest.split_at(32);
    for (part, numbers) in numbers.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = k_scale(scales, part);
        let (scale, offset) = (d * scale, m * offset);
        let (nibbles, shift) = (&nibbles[part / 2 * 32..][..32], part % 2 * 4);
        for ((byte, fifth), number) in nibbles.iter().zip(fifths).zip(numbers) {
            *number = scale * f32::from(byte >> shift & 15 | (fifth >> part & 1) << 4) - offset;
        }
    }
}

/// The scale and offset of a sub-block. The first four of each lie in the low six bits of bytes 0-3 and 4-7; of the
/// last four, bytes 8-11 hold the low nibbles and the top two bits of bytes 0-7 the rest.
fn k_scale(scales: &[u8], part: usize) -> (f32, f32) {
    let (scale, offset) = if part < 4 {
        (scales[part] & 63, scales[part + 4] & 63)
    } else {
        (scales[part + 4] & 15 | scales[part - 4] >> 6 << 4, scales[part + 4] >> 4 | scales[part] >> 6 << 4)
    };
    (f32::from(scale), f32::from(offset))
}

/// Layout: 128 bytes of nibbles, 64 bytes of upper bit pairs, 16 signed scales, d. Each half of the block takes 64
/// bytes of nibbles, 32 of pairs and 8 scales; its four quarters of 32 numbers take, of one byte of pairs, one pair
/// each.
fn q6_k(block: &[u8], numbers: &mut [f32]) {
    let d = half(block, 208);
    for (side, numbers) in numbers.chunks_exact_mut(128).enumerate() {
        let (nibbles, pairs) = (&block[side * 64..][..64], &block[128 + side * 32..][..32]);
        let scales = &block[192 + side * 8..][..8];
        for (quarter, numbers) in numbers.chunks_exact_mut(32).enumerate() {
            let (nibbles, shift) = (&nibbles[quarter % 2 * 32..][..32], quarter / 2 * 4);
            for (index, ((byte, pair), number)) in nibbles.iter().zip(pairs).zip(numbers).enumerate() {
                let q = byte >> shift & 15 | (pair >> (2 * quarter) & 3) << 4;
                let scale = f32::from(scales[quarter * 2 + index / 16].cast_signed());
                *number = d * scale * (f32::from(q) - 32.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(id: u32, block: &[u8]) -> Vec<f32> {
        let Some(Format::Quantised(blocks)) = Format::from_id(id) else { panic!("no blocks") };
        assert_eq!(block.len(), blocks.bytes);
        let mut numbers = vec![f32::NAN; blocks.numbers];
        blocks.decode(block, &mut numbers);
        numbers
    }

    /// 2.0 and 0.5 as f16.
    const TWO: [u8; 2] = [0x00, 0x40];
    const HALF: [u8; 2] = [0x00, 0x38];

    #[test]
    fn q4_0_centres_its_nibbles_on_eight() {
        let numbers = decode(2, &[&TWO[..], &[0x80; 16]].concat());
        assert_eq!(numbers[..16], [-16.0; 16]);
        assert_eq!(numbers[16..], [0.0; 16]);
    }

    #[test]
    fn q4_1_adds_its_offset() {
        let numbers = decode(3, &[&TWO[..], &HALF, &[0xf1; 16]].concat());
        assert_eq!(numbers[..16], [2.5; 16]);
        assert_eq!(numbers[16..], [30.5; 16]);
    }

    #[test]
    fn q5_takes_its_fifth_bits_in_order() {
        // Fifth bits of numbers 0 and 17 only.
        let numbers = decode(6, &[&TWO[..], &[1, 0, 2, 0], &[0; 16]].concat());
        assert_eq!((numbers[0], numbers[1], numbers[16], numbers[17]), (0.0, -32.0, -32.0, 0.0));
        let numbers = decode(7, &[&TWO[..], &HALF, &[1, 0, 2, 0], &[0; 16]].concat());
        assert_eq!((numbers[0], numbers[1], numbers[16], numbers[17]), (32.5, 0.5, 0.5, 32.5));
    }

    #[test]
    fn q8_0_is_signed() {
        let numbers = decode(8, &[&HALF[..], &[0xff; 32]].concat());
        assert_eq!(numbers, [-0.5; 32]);
    }

    #[test]
    fn k_scales_unpack_from_six_bits() {
        // Bytes 0-3 = scales 0-3 plus upper bits of 4-7; 4-7 the same for offsets; 8-11 the lower nibbles of 4-7.
        let scales = [0b11_000001, 2, 3, 4, 0b10_000101, 6, 7, 8, 0x21, 0, 0, 0];
        assert_eq!(k_scale(&scales, 0), (1.0, 5.0));
        assert_eq!(k_scale(&scales, 3), (4.0, 8.0));
        assert_eq!(k_scale(&scales, 4), (f32::from(0b11_0001_u8), f32::from(0b10_0010_u8)));
    }

    #[test]
    fn many_blocks_decode_in_order() {
        let Some(Format::Quantised(blocks)) = Format::from_id(8) else { panic!("no blocks") };
        let bytes: Vec<u8> = (0..3000).flat_map(|block| [&HALF[..], &[(block % 100) as u8; 32]].concat()).collect();
        let mut numbers = vec![f32::NAN; 3000 * 32];
        blocks.decode(&bytes, &mut numbers);
        assert!(numbers.iter().enumerate().all(|(index, number)| *number == (index / 32 % 100) as f32 / 2.0));
    }
}
