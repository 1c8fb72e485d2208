//! Ages of the replayed rows, which a run logs before it computes anything with them.
//!
//! Effective sample size and mismatch need the present policy's log-probabilities of the rows; they are computed where
//! those are.

use super::ReplayedGroup;
use schema::Metrics;

/// The ages of some replayed groups, in steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ages {
    /// The mean over groups, in steps.
    pub mean: f64,
    /// The greatest age, in steps.
    pub max: u64,
}

impl Ages {
    /// Returns the ages of these groups; `None` if there is no group.
    pub fn of(groups: &[ReplayedGroup]) -> Option<Self> {
        let max = groups.iter().map(|group| group.age).max()?;
        let mean = groups.iter().map(|group| group.age as f64).sum::<f64>() / groups.len() as f64;
        Some(Self { mean, max })
    }
}

/// Returns the metrics `replay/groups` and `replay/samples`, and, if there is a group, `replay/age_mean` and
/// `replay/age_max`.
pub fn metrics(groups: &[ReplayedGroup]) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.set("replay/groups", groups.len() as f64);
    metrics.set("replay/samples", groups.iter().map(|group| group.stored.sample_ids.len()).sum::<usize>() as f64);
    if let Some(ages) = Ages::of(groups) {
        metrics.set("replay/age_mean", ages.mean);
        metrics.set("replay/age_max", ages.max as f64);
    }
    metrics
}
