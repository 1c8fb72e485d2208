//! Alarm when too many completions repeat themselves: the share of samples in which most n-grams occurred before.
//!
//! ```text
//! repetition = 1 − distinct n-grams / all n-grams          over a sample's token ids
//! ```
//!
//! Loops are the usual first failure when length is rewarded or language degrades. The share of a step is
//! `completions/repeated_share`; the reported samples are the repetitive ones, the worst first.

use super::{Action, Finding, Guard, SampleIndex, indexed, largest_first, mean, share};
use crate::algorithm::Algorithm;
use crate::{Error, Result};
use schema::{GradedGroup, Metrics, Sample};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// `[guard.repeated_text]`: alarm on completions that repeat themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepeatedText {
    /// Largest share of repetitive samples without an alarm, from 0 to 1.
    pub limit: f64,
    /// Length of the n-grams, in tokens; at least 1.
    pub ngram: usize,
    /// Share of repeated n-grams, from 0 to 1, above which a sample counts as repetitive.
    pub repetition: f64,
    /// Training steps that are averaged; at least 1.
    pub window: usize,
    /// Action of an alarm: `warn`, `roll_back` or `stop`.
    pub action: Action,
}

impl Default for RepeatedText {
    fn default() -> Self {
        Self { limit: 0.25, ngram: 4, repetition: 0.5, window: 5, action: Action::Warn }
    }
}

impl RepeatedText {
    /// Returns the share of a sample's n-grams that occurred in it before; 0 if it is too short for any.
    fn repetition_of(&self, sample: &Sample) -> f64 {
        let all = (sample.len() + 1).saturating_sub(self.ngram);
        if all == 0 {
            return 0.0;
        }
        1.0 - sample.ids.windows(self.ngram).collect::<HashSet<_>>().len() as f64 / all as f64
    }

    fn repetitive(&self, samples: &[GradedGroup]) -> Vec<(SampleIndex, f64)> {
        indexed(samples)
            .map(|(index, sample)| (index, self.repetition_of(sample)))
            .filter(|(_, repetition)| *repetition > self.repetition)
            .collect()
    }
}

impl Guard for RepeatedText {
    fn action(&self) -> Action {
        self.action
    }

    fn window(&self) -> usize {
        self.window
    }

    fn check(&self, _algorithm: &dyn Algorithm) -> Result<()> {
        if self.ngram == 0 {
            return Err(Error::input(".ngram must be at least 1, but is 0"));
        }
        share("limit", self.limit)?;
        share("repetition", self.repetition)
    }

    fn measure(&self, samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        let all = indexed(samples).count();
        let repeated = self.repetitive(samples).len() as f64 / all as f64;
        if all > 0 {
            metrics.set("completions/repeated_share", repeated);
        }
        (all > 0).then(|| vec![repeated])
    }

    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding> {
        let repeated = mean(window, 0);
        (repeated > self.limit).then(|| Finding {
            message: format!(
                "{:.0} % of the samples repeat more than {:.0} % of their {}-grams, where {:.0} % are allowed",
                100.0 * repeated,
                100.0 * self.repetition,
                self.ngram,
                100.0 * self.limit
            ),
            samples: largest_first(self.repetitive(samples)),
        })
    }
}
