//! The soft penalty of DAPO for coming near the token limit (arXiv:2503.14476, section 3.4, equation 13).
//!
//! ```text
//!          0                              n ≤ L - c
//! value =  ((L - c) - n) / c      L - c < n ≤ L
//!          -1                         L < n
//! ```
//!
//! `n` is the number of sampled tokens, `L` the limit, `c` the buffer. A sharp cut would punish a sound answer for its
//! length alone; the ramp tells the model beforehand. DAPO trains with L = 20480 and c = 4096, a fifth of it.

use crate::reward::each;
use crate::{Error, Result, Reward, fingerprint};
use schema::{Grade, Group};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The limit and the ramp below it. Both follow the rollout unless set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The limit `L`, in tokens; 0 stands for the rollout's `max_new_tokens`.
    pub max_tokens: u32,
    /// The buffer `c` below the limit, in tokens; 0 stands for a fifth of the limit.
    pub buffer_tokens: u32,
}

impl Config {
    /// Makes the rule.
    ///
    /// # Errors
    ///
    /// Fails if the buffer does not fit under the limit.
    pub fn build(&self) -> Result<Overlong> {
        let Self { max_tokens, buffer_tokens } = *self;
        if max_tokens > 0 && buffer_tokens > max_tokens {
            let problem = format!("`buffer_tokens` ({buffer_tokens}) is more than `max_tokens` ({max_tokens})");
            return Err(Error::input(problem));
        }
        Ok(Overlong { config: self.clone() })
    }
}

/// The penalty, in [-1, 0].
pub struct Overlong {
    config: Config,
}

impl Overlong {
    fn value(&self, length: usize, max_new_tokens: u32) -> f32 {
        let limit = if self.config.max_tokens == 0 { max_new_tokens } else { self.config.max_tokens };
        let fifth = (limit / 5).max(1);
        let buffer = if self.config.buffer_tokens == 0 { fifth } else { self.config.buffer_tokens };
        let free = f64::from(limit) - f64::from(buffer);
        ((free - length as f64) / f64::from(buffer)).clamp(-1.0, 0.0) as f32
    }
}

impl Reward for Overlong {
    fn name(&self) -> &'static str {
        "overlong"
    }

    fn version(&self) -> String {
        fingerprint(1, &self.config)
    }

    fn range(&self) -> Option<RangeInclusive<f32>> {
        Some(-1.0..=0.0)
    }

    fn grade(&mut self, groups: &[Group]) -> Vec<Vec<Grade>> {
        each(groups, |group, sample| Grade::of(self.value(sample.len(), group.settings.max_new_tokens)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_numbers() {
        let config = Config { max_tokens: 20_480, buffer_tokens: 4_096 };
        let overlong = config.build().unwrap();
        for (length, expected) in
            [(0, 0.0), (16_384, 0.0), (16_385, -1.0 / 4_096.0), (18_432, -0.5), (20_480, -1.0), (25_000, -1.0)]
        {
            assert_eq!(overlong.value(length, 1), expected, "length {length}");
        }
    }

    #[test]
    fn unset_numbers_follow_the_rollout() {
        let overlong = Config::default().build().unwrap();
        // L = 100, c = 20: the ramp runs from 80 to 100.
        for (length, expected) in [(80, 0.0), (90, -0.5), (100, -1.0)] {
            assert_eq!(overlong.value(length, 100), expected, "length {length}");
        }
        assert_eq!(overlong.value(3, 3), -1.0);
    }

    #[test]
    fn the_buffer_fits_under_the_limit() {
        let config = Config { max_tokens: 10, buffer_tokens: 11 };
        assert!(config.build().err().expect("a bad buffer").is_input());
    }
}
