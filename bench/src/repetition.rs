//! Repetition of a measurement, bounded by a number and by seconds.

use anyhow::Result;
use std::time::Instant;

/// The bounds on the repetitions of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repetition {
    /// Repetitions if time allows; there is always one.
    pub(crate) count: usize,
    /// No further repetition begins after so many seconds.
    pub(crate) seconds: f64,
}

impl Repetition {
    /// Returns the result of each repetition; at least one.
    ///
    /// # Errors
    ///
    /// Returns the error of the first repetition that fails.
    pub(crate) fn repeat<T>(self, mut work: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        let began = Instant::now();
        let mut done = vec![work()?];
        while done.len() < self.count && began.elapsed().as_secs_f64() < self.seconds {
            done.push(work()?);
        }
        Ok(done)
    }

    /// Returns the seconds that each repetition takes.
    ///
    /// # Errors
    ///
    /// Returns the error of the first repetition that fails.
    pub(crate) fn time(self, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        self.repeat(|| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_ends_with_the_patience_but_not_before_the_first() {
        let often = Repetition { count: 3, seconds: 60.0 };
        assert_eq!(often.repeat(|| Ok(1)).unwrap(), [1, 1, 1]);
        let hurried = Repetition { count: 3, seconds: 0.0 };
        assert_eq!(hurried.repeat(|| Ok(1)).unwrap(), [1]);
    }
}
