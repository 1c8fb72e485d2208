//! Figures: one measured quantity each, with all repetitions and the machine's limit on the same work.

use serde_json::{Value, json};

/// The direction of improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// Part and case, such as `decode/32`. Figures of two reports are matched by it.
    pub(crate) key: String,
    /// The name for a reader.
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// One value per repetition, in `unit`.
    pub(crate) values: Vec<f64>,
    /// The machine's limit on the same work, in `unit`.
    pub(crate) limit: Option<f64>,
    /// The size of the work, such as its tokens.
    pub(crate) work: Vec<(&'static str, f64)>,
}

impl Figure {
    /// Tokens per second, from the seconds that `amount` tokens took in each repetition, and would take at the machine's
    /// limit.
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

    /// Seconds; fewer are better.
    pub(crate) fn seconds(
        key: impl Into<String>,
        name: impl Into<String>,
        values: Vec<f64>,
        limit: Option<f64>,
    ) -> Self {
        Self { key: key.into(), name: name.into(), unit: "s", better: Better::Lower, values, limit, work: Vec::new() }
    }

    /// The peak memory of this process, in which one part was measured.
    pub(crate) fn peak_memory(part: &str) -> Self {
        let (key, name) = (format!("{part}/peak_memory"), format!("peak memory of {part}"));
        Self { unit: "MB", ..Self::seconds(key, name, vec![peak_memory_mb()], None) }
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

    /// Returns the share of the machine's limit that the median reaches; 1 is all of it.
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

/// Returns the median; of an even number of values, the mean of the two in the middle; NaN if there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Returns the peak resident memory of this process so far, in MB (10^6 bytes), as the kernel counts it.
fn peak_memory_mb() -> f64 {
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
        let memory = Figure::peak_memory("decode");
        assert_eq!((memory.key.as_str(), memory.unit, memory.share()), ("decode/peak_memory", "MB", None));
        assert!(memory.median() > 1.0);
    }
}
