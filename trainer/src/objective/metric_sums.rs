//! Means of metrics over all micro-batches of a step, without synchronising with the device in between.
//!
//! A metric is a sum over tokens and a count. Sums stay tensors until the step is over, and are then read once each.
//! Names are those of TRL.

use super::{Rows, TokenLosses};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Running sums, minima and maxima of named metrics.
#[derive(Debug, Default)]
pub struct MetricSums {
    sums: BTreeMap<String, (Tensor, f64)>,
    lowest: BTreeMap<String, Tensor>,
    highest: BTreeMap<String, Tensor>,
}

/// Contents of a [`MetricSums`] as numbers, to be sent to other processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    sums: BTreeMap<String, (Number, f64)>,
    lowest: BTreeMap<String, Number>,
    highest: BTreeMap<String, Number>,
}

/// A number as its bits, because JSON has no form for infinities and NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Number(u64);

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self(number.to_bits())
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        Self::from_bits(number.0)
    }
}

impl MetricSums {
    /// Returns empty sums.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `sum`, a scalar over `count` items, to the mean `name`.
    pub fn add(&mut self, name: &str, sum: &Tensor, count: f64) {
        let sum = sum.detach().to_kind(Kind::Double);
        match self.sums.get_mut(name) {
            Some((total, counted)) => {
                // Not `+=`, which writes in place: the first sum may still be the caller's own tensor.
                *total = &*total + sum;
                *counted += count;
            }
            None => drop(self.sums.insert(name.to_owned(), (sum, count))),
        }
    }

    /// Adds the values of the trained tokens, `[token]` of any kind, to the mean `name`.
    pub fn add_tokens(&mut self, name: &str, values: &Tensor, rows: &Rows) {
        let values = values.detach().to_kind(Kind::Double);
        self.add(name, &rows.sum(&values), rows.trained_tokens() as f64);
    }

    /// Adds `value`, a scalar, to the minimum `name`.
    pub fn lowest(&mut self, name: &str, value: &Tensor) {
        extreme(&mut self.lowest, name, &value.detach().to_kind(Kind::Double), Tensor::minimum);
    }

    /// Adds `value`, a scalar, to the maximum `name`.
    pub fn highest(&mut self, name: &str, value: &Tensor) {
        extreme(&mut self.highest, name, &value.detach().to_kind(Kind::Double), Tensor::maximum);
    }

    /// Adds the shares of clipped tokens, `clip_ratio/{low_mean,low_min,high_mean,high_max,region_mean}`, with the
    /// extremes over micro-batches, and the mean ratio as `ratio/mean`.
    pub fn add_clips(&mut self, losses: &TokenLosses, rows: &Rows) {
        if rows.trained_tokens() == 0 {
            return;
        }
        let region = losses.clipped_low.logical_or(&losses.clipped_high);
        self.add_tokens("clip_ratio/low_mean", &losses.clipped_low, rows);
        self.add_tokens("clip_ratio/high_mean", &losses.clipped_high, rows);
        self.add_tokens("clip_ratio/region_mean", &region, rows);
        self.add_tokens("ratio/mean", &losses.ratio, rows);

        let low = rows.mean(&losses.clipped_low.to_kind(Kind::Double));
        let high = rows.mean(&losses.clipped_high.to_kind(Kind::Double));
        self.lowest("clip_ratio/low_min", &low);
        self.highest("clip_ratio/high_max", &high);
    }

    /// Adds the sums, minima and maxima of another.
    pub fn merge(&mut self, other: Self) {
        for (name, (sum, count)) in other.sums {
            self.add(&name, &sum, count);
        }
        for (name, value) in other.lowest {
            extreme(&mut self.lowest, &name, &value, Tensor::minimum);
        }
        for (name, value) in other.highest {
            extreme(&mut self.highest, &name, &value, Tensor::maximum);
        }
    }

    /// Returns the contents as numbers.
    pub(crate) fn counts(&self) -> Counts {
        let read = |table: &BTreeMap<String, Tensor>| {
            table.iter().map(|(name, value)| (name.clone(), value.double_value(&[]).into())).collect()
        };
        Counts {
            sums: self
                .sums
                .iter()
                .map(|(name, (sum, count))| (name.clone(), (sum.double_value(&[]).into(), *count)))
                .collect(),
            lowest: read(&self.lowest),
            highest: read(&self.highest),
        }
    }

    /// Rebuilds sums from numbers: the inverse of [`MetricSums::counts`].
    pub(crate) fn of(counts: Counts) -> Self {
        let scalar = |number: Number| Tensor::from(f64::from(number));
        let table = |numbers: BTreeMap<String, Number>| {
            numbers.into_iter().map(|(name, value)| (name, scalar(value))).collect()
        };
        Self {
            sums: counts.sums.into_iter().map(|(name, (sum, count))| (name, (scalar(sum), count))).collect(),
            lowest: table(counts.lowest),
            highest: table(counts.highest),
        }
    }

    /// Returns one mean; `None` if nothing was counted under this name.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let (sum, count) = self.sums.get(name)?;
        (*count > 0.0).then(|| sum.double_value(&[]) / count)
    }

    /// Returns every mean and extreme as metrics. Means with a count of 0 are left out.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::new();
        for (name, (sum, count)) in self.sums.iter().filter(|(_, (_, count))| *count > 0.0) {
            metrics.set(name, sum.double_value(&[]) / count);
        }
        for (name, value) in self.lowest.iter().chain(&self.highest) {
            metrics.set(name, value.double_value(&[]));
        }
        metrics
    }
}

fn extreme(known: &mut BTreeMap<String, Tensor>, name: &str, value: &Tensor, pick: fn(&Tensor, &Tensor) -> Tensor) {
    let value = known.get(name).map_or_else(|| value.shallow_clone(), |known| pick(known, value));
    known.insert(name.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{f64s, full_rows};
    use super::super::{LogProbs, Surrogate};
    use super::*;

    #[test]
    fn counts_travel_as_they_are_whatever_they_are() {
        let mut sums = MetricSums::new();
        sums.add("mean", &Tensor::from(0.1 + 0.2), 3.0);
        sums.add("broken", &Tensor::from(f64::NAN), 1.0);
        sums.highest("most", &Tensor::from(f64::INFINITY));
        sums.lowest("least", &Tensor::from(-0.5));
        let sent = serde_json::to_string(&sums.counts()).unwrap();
        let other = MetricSums::of(serde_json::from_str(&sent).unwrap());
        assert_eq!(other.counts(), sums.counts());
        assert_eq!(other.mean("mean"), sums.mean("mean"));
        assert!(other.mean("broken").unwrap().is_nan());
        assert_eq!(other.metrics().get("most"), Some(f64::INFINITY));
    }

    #[test]
    fn means_are_over_tokens_not_over_micro_batches() {
        let mut sums = MetricSums::new();
        sums.add_tokens("entropy", &f64s(&[1.0, 2.0, 3.0]), &full_rows(&[3]));
        sums.add_tokens("entropy", &f64s(&[10.0]), &full_rows(&[1]));
        sums.add("nothing", &f64s(&[0.0]).sum(None), 0.0);
        let metrics = sums.metrics();
        assert_eq!(metrics.get("entropy"), Some(4.0));
        assert_eq!(metrics.get("nothing"), None);
    }

    #[test]
    fn clip_ratios_have_the_names_of_trl() {
        let mut sums = MetricSums::new();
        let zero = f64s(&[0.0; 4]);
        let ratios = f64s(&[1.5, 0.5, 1.0, 1.0]).log();
        let logprobs = LogProbs { policy: &ratios, proximal: &zero, behaviour: &zero };
        for (advantages, sequences) in [([1.0, -1.0, 1.0, 1.0], [4]), ([1.0, 1.0, 1.0, 1.0], [4])] {
            let rows = full_rows(&sequences);
            sums.add_clips(&Surrogate::default().token_losses(logprobs, &f64s(&advantages), &rows), &rows);
        }
        let metrics = sums.metrics();
        let expected = [
            ("clip_ratio/high_max", 0.25),
            ("clip_ratio/high_mean", 0.25),
            ("clip_ratio/low_mean", 0.125),
            ("clip_ratio/low_min", 0.0),
            ("clip_ratio/region_mean", 0.375),
            ("ratio/mean", 1.0),
        ];
        assert_eq!(metrics.iter().collect::<Vec<_>>(), expected);
    }
}
