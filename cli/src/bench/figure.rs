//! What was measured: one figure per thing, each repetition kept.

use serde_json::{Value, json};
use std::time::Instant;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One measured thing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// Part and case, such as `decode/32`: what figures of two runs are matched by.
    pub(crate) key: String,
    /// For a reader.
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// One per repetition.
    pub(crate) values: Vec<f64>,
    /// The best that this machine could do on the same work, in the same unit.
    pub(crate) limit: Option<f64>,
    /// What else belongs to it, such as the tokens of the work.
    pub(crate) work: Vec<(&'static str, f64)>,
}

impl Figure {
    /// Work done per second, from the seconds that an amount of it took, and that it would take at the machine's limit.
    pub(crate) fn rate(key: String, name: String, amount: f64, seconds: &[f64], limit_s: f64) -> Self {
        Self {
            key,
            name,
            unit: "tokens/s",
            better: Better::Higher,
            values: seconds.iter().map(|seconds| amount / seconds).collect(),
            limit: Some(amount / limit_s),
            work: vec![("tokens", amount)],
        }
    }

    /// Seconds, of which fewer are better.
    pub(crate) fn seconds(
        key: impl Into<String>,
        name: impl Into<String>,
        values: Vec<f64>,
        limit: Option<f64>,
    ) -> Self {
        Self { key: key.into(), name: name.into(), unit: "s", better: Better::Lower, values, limit, work: Vec::new() }
    }

    /// Something else of which less is better.
    pub(crate) fn amount(key: impl Into<String>, name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { unit, ..Self::seconds(key, name, vec![value], None) }
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }

    pub(crate) fn low(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn high(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// The share of the machine's limit that is reached: 1 is all of it.
    pub(crate) fn share(&self) -> Option<f64> {
        let limit = self.limit?;
        Some(match self.better {
            Better::Higher => self.median() / limit,
            Better::Lower => limit / self.median(),
        })
    }

    pub(crate) fn json(&self) -> Value {
        let work: serde_json::Map<String, Value> =
            self.work.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "better": match self.better { Better::Higher => "higher", Better::Lower => "lower" },
            "median": self.median(),
            "low": self.low(),
            "high": self.high(),
            "values": self.values,
            "limit": self.limit,
            "share_of_limit": self.share(),
            "work": work,
        })
    }
}

/// The middle one, or the mean of the two in the middle; nothing of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// How often something is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) repetitions: usize,
    /// No further repetition begins after so long.
    pub(crate) seconds: f64,
}

impl Patience {
    /// What each repetition gives; at least one.
    pub(crate) fn repeat<T>(self, mut work: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        let began = Instant::now();
        let mut done = vec![work()?];
        while done.len() < self.repetitions && began.elapsed().as_secs_f64() < self.seconds {
            done.push(work()?);
        }
        Ok(done)
    }

    /// The seconds that each repetition takes.
    pub(crate) fn time(self, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
        self.repeat(|| {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed().as_secs_f64())
        })
    }
}

/// The largest resident memory of this process so far, in MB (10^6 bytes), as the kernel counts it.
pub(crate) fn peak_memory_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn rates_and_times_are_shares_of_their_limit() {
        // 100 tokens in 2 s and in 4 s: 50 and 25 a second, 37.5 in the middle; 1 s would be 100 a second.
        let rate = Figure::rate("a/1".into(), "a".into(), 100.0, &[2.0, 4.0], 1.0);
        assert_eq!((rate.median(), rate.low(), rate.high(), rate.share()), (37.5, 25.0, 50.0, Some(0.375)));
        let seconds = Figure::seconds("b", "b", vec![4.0], Some(1.0));
        assert_eq!(seconds.share(), Some(0.25));
        assert_eq!(seconds.json()["better"], "lower");
        assert_eq!(Figure::amount("c", "c", "MB", 7.0).share(), None);
    }

    #[test]
    fn patience_ends_but_not_before_the_first() {
        let often = Patience { repetitions: 3, seconds: 60.0 };
        assert_eq!(often.repeat(|| Ok(1)).unwrap(), [1, 1, 1]);
        let hurried = Patience { repetitions: 3, seconds: 0.0 };
        assert_eq!(hurried.repeat(|| Ok(1)).unwrap(), [1]);
        assert!(peak_memory_mb() > 1.0);
    }
}
