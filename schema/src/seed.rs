//! Randomness with an address.
//!
//! A [`Seed`] is a key, not a generator: `seed.child("rollout").at(step).at(sample).uniform(token)` is the same
//! number whenever and in whatever order it is asked for. So completion order, batch layout and the number of
//! threads cannot change a run, and nothing about randomness needs to be saved to resume one.
//!
//! Keys are derived by SHA-256 and expanded by `ChaCha8` (Bernstein 2008), whose counter gives random access.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A key in the tree of a run's random numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// The root of a run's tree: the config's `seed`.
    pub fn new(number: u64) -> Self {
        Self(Sha256::digest(number.to_le_bytes()).into())
    }

    /// The key as 64 hexadecimal digits, for another process to derive the same numbers from.
    pub fn to_hex(&self) -> String {
        crate::hex(&self.0)
    }

    /// The key with these digits, the reverse of [`Seed::to_hex`]; `None` unless there are 64, all hexadecimal.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut key = [0; 32];
        for (place, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
        }
        Some(Self(key))
    }

    /// The branch with this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        self.derive(b"name", name.as_bytes())
    }

    /// The branch with this number.
    #[must_use]
    pub fn at(&self, number: u64) -> Self {
        self.derive(b"number", &number.to_le_bytes())
    }

    /// The `index`-th uniform number of this key, in [0, 1), with 53 random bits.
    pub fn uniform(&self, index: u64) -> f64 {
        let mut stream = self.stream();
        stream.set_word_pos(u128::from(index) * 2);
        unit(stream.next_u64())
    }

    /// The `index`-th integer of this key, uniform in `0..bound`. `bound` must not be zero.
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        // The bias of a multiply-shift is at most bound / 2^53, which no test here could see.
        (self.uniform(index) * bound as f64) as u64
    }

    /// The numbers `0..len` in a random order (Fisher-Yates).
    pub fn permutation(&self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.below(last as u64, last as u64 + 1) as usize);
        }
        order
    }

    /// `len` numbers, uniform in [low, high): for initial weights.
    pub fn uniforms(&self, len: usize, low: f64, high: f64) -> Vec<f32> {
        let mut stream = self.stream();
        (0..len).map(|_| (low + (high - low) * unit(stream.next_u64())) as f32).collect()
    }

    /// `len` numbers from the standard normal distribution (Box-Muller): for initial weights.
    pub fn normals(&self, len: usize) -> Vec<f32> {
        let mut stream = self.stream();
        let mut numbers = Vec::with_capacity(len + 1);
        while numbers.len() < len {
            let radius = (-2.0 * (1.0 - unit(stream.next_u64())).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * unit(stream.next_u64())).sin_cos();
            numbers.push((radius * cos) as f32);
            numbers.push((radius * sin) as f32);
        }
        numbers.truncate(len);
        numbers
    }

    fn stream(&self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }

    fn derive(&self, kind: &[u8], bytes: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(kind).chain_update(bytes).finalize().into())
    }
}

/// The top 53 bits as a number in [0, 1).
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_travels_as_text() {
        let seed = Seed::new(7).child("rollout");
        assert_eq!(Seed::from_hex(&seed.to_hex()), Some(seed));
        for wrong in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(Seed::from_hex(wrong), None);
        }
    }

    #[test]
    fn a_draw_depends_on_its_address_alone() {
        let seed = Seed::new(7).child("rollout").at(3);
        let forwards: Vec<f64> = (0..10).map(|index| seed.uniform(index)).collect();
        let backwards: Vec<f64> = (0..10).rev().map(|index| seed.uniform(index)).collect();
        assert_eq!(forwards, backwards.into_iter().rev().collect::<Vec<_>>());
        assert_ne!(seed.uniform(0), Seed::new(8).child("rollout").at(3).uniform(0));
        assert_ne!(seed.uniform(0), Seed::new(7).child("rollout").at(4).uniform(0));
        assert_ne!(Seed::new(7).child("a").child("b"), Seed::new(7).child("ab"));
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let seed = Seed::new(1);
        let mean = (0..10_000).map(|index| seed.uniform(index)).sum::<f64>() / 10_000.0;
        // The standard error of the mean of 10,000 uniforms is 0.0029.
        assert!((mean - 0.5).abs() < 0.015, "mean {mean}");
        assert!((0..10_000).all(|index| (0.0..1.0).contains(&seed.uniform(index))));
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let numbers = Seed::new(2).normals(10_001);
        assert_eq!(numbers.len(), 10_001);
        let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / 10_001.0;
        let variance = numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 10_001.0;
        assert!(mean.abs() < 0.05, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.07, "variance {variance}");
    }

    #[test]
    fn a_permutation_holds_each_number_once() {
        let mut order = Seed::new(3).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
