//! Token ids, log-probabilities and masks as bytes, and back.
//!
//! A token is a little-endian `u32`, a log-probability a little-endian `f32` with every bit kept, a mask one bit a
//! token, lowest first. Most masks are all true, and those take no bytes at all.

use schema::{Token, hex};
use sha2::{Digest, Sha256};

/// Encodes token ids, four bytes each.
pub(crate) fn from_tokens(ids: &[Token]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// The reverse of [`from_tokens`]; `None` if the bytes are not whole tokens.
pub(crate) fn to_tokens(bytes: &[u8]) -> Option<Vec<Token>> {
    let (words, rest) = bytes.as_chunks();
    rest.is_empty().then(|| words.iter().map(|word| Token::from_le_bytes(*word)).collect())
}

/// Encodes log-probabilities, four bytes each.
pub(crate) fn from_logprobs(logprobs: &[f32]) -> Vec<u8> {
    logprobs.iter().flat_map(|logprob| logprob.to_le_bytes()).collect()
}

/// The reverse of [`from_logprobs`]; `None` if the bytes are not whole numbers.
pub(crate) fn to_logprobs(bytes: &[u8]) -> Option<Vec<f32>> {
    let (words, rest) = bytes.as_chunks();
    rest.is_empty().then(|| words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Encodes a mask, one bit a token; `None` if every bit is set.
pub(crate) fn from_mask(mask: &[bool]) -> Option<Vec<u8>> {
    if mask.iter().all(|trained| *trained) {
        return None;
    }
    Some(mask.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect())
}

/// The reverse of [`from_mask`] for `len` tokens; `None` if the bytes do not fit that length.
pub(crate) fn to_mask(bytes: Option<&[u8]>, len: usize) -> Option<Vec<bool>> {
    let Some(bytes) = bytes else { return Some(vec![true; len]) };
    (bytes.len() == len.div_ceil(8)).then(|| (0..len).map(|i| bytes[i / 8] >> (i % 8) & 1 == 1).collect())
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hash of a sample's content: the SHA-256, in hexadecimal, of its columns. Before each stands its length in eight
/// bytes, so that no two samples read alike; a missing mask has the greatest length.
pub(crate) fn sample_hash(finish: &str, text: &str, mask: Option<&[u8]>, token_ids: &[u8], logprobs: &[u8]) -> String {
    let mut digest = Sha256::new();
    for column in [Some(finish.as_bytes()), Some(text.as_bytes()), mask, Some(token_ids), Some(logprobs)] {
        digest.update(column.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        digest.update(column.unwrap_or_default());
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tells_columns_apart() {
        // python3: h = hashlib.sha256(); [h.update(struct.pack("<Q", n) + b) for n, b in
        //   [(3, b"eos"), (1, b"a"), (2**64 - 1, b""), (4, b"\7\0\0\0"), (4, b"\0\0\0\0")]]
        let hash = sample_hash("eos", "a", None, &[7, 0, 0, 0], &[0; 4]);
        assert_eq!(hash, "987d58c8915f6ca3065620e19dc81c7923cb14bb7e52e7763498cfaf130cd557");
        assert_ne!(hash, sample_hash("eos", "a", Some(&[]), &[7, 0, 0, 0], &[0; 4]));
        assert_ne!(hash, sample_hash("eosa", "", None, &[7, 0, 0, 0], &[0; 4]));
    }

    #[test]
    fn tokens_are_little_endian() {
        assert_eq!(from_tokens(&[1, 0x0102_0304]), [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(to_tokens(&[1, 0, 0, 0, 4, 3, 2, 1]), Some(vec![1, 0x0102_0304]));
        assert_eq!(to_tokens(&[1, 0, 0]), None);
    }

    #[test]
    fn logprobs_keep_every_bit() {
        let odd = [-0.0, -1e-45, f32::NEG_INFINITY, f32::from_bits(0x7fc0_0001)];
        let back = to_logprobs(&from_logprobs(&odd)).unwrap();
        assert_eq!(back.map_bits(), odd.to_vec().map_bits());
    }

    #[test]
    fn a_mask_takes_a_bit_a_token_and_nothing_if_all_true() {
        assert_eq!(from_mask(&[true; 9]), None);
        assert_eq!(from_mask(&[]), None);
        let mask = [true, false, true, true, false, false, false, false, true];
        assert_eq!(from_mask(&mask), Some(vec![0b0000_1101, 1]));
        assert_eq!(to_mask(Some(&[0b0000_1101, 1]), 9), Some(mask.to_vec()));
        assert_eq!(to_mask(None, 2), Some(vec![true, true]));
        assert_eq!(to_mask(Some(&[1]), 9), None);
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl MapBits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|number| number.to_bits()).collect()
        }
    }
}
