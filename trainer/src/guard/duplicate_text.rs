//! Alarm when different prompts get the same completion: the share of samples whose tokens were also sampled for
//! another prompt of the step.
//!
//! A policy that gives every prompt the same answer ignores the prompt. Short answers coincide by chance (the sums 2+3
//! and 1+4 have one), so the limit depends on the task. The share of a step is `completions/duplicate_share`; the
//! reported samples are the duplicates, those of the most frequent text first.

use super::{Action, Finding, Guard, SampleIndex, indexed, largest_first, mean, share};
use crate::Result;
use crate::algorithm::Algorithm;
use schema::{GradedGroup, Metrics, Token};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// `[guard.duplicate_text]`: alarm on completions shared by different prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DuplicateText {
    /// Largest share of duplicates without an alarm, from 0 to 1.
    pub limit: f64,
    /// Training steps that are averaged; at least 1.
    pub window: usize,
    /// Action of an alarm: `warn`, `roll_back` or `stop`.
    pub action: Action,
}

impl Default for DuplicateText {
    fn default() -> Self {
        Self { limit: 0.5, window: 5, action: Action::Warn }
    }
}

/// Returns the samples whose tokens were also sampled for another prompt, each with the number of samples that have
/// these tokens.
fn duplicates(samples: &[GradedGroup]) -> Vec<(SampleIndex, f64)> {
    let prompt = |index: SampleIndex| &samples[index.group].group().prompt_ids;
    let mut drawn: HashMap<&[Token], Vec<SampleIndex>> = HashMap::new();
    for (index, sample) in indexed(samples) {
        drawn.entry(&sample.ids).or_default().push(index);
    }
    indexed(samples)
        .filter_map(|(index, sample)| {
            let same = &drawn[&sample.ids[..]];
            same.iter().any(|other| prompt(*other) != prompt(index)).then_some((index, same.len() as f64))
        })
        .collect()
}

impl Guard for DuplicateText {
    fn action(&self) -> Action {
        self.action
    }

    fn window(&self) -> usize {
        self.window
    }

    fn check(&self, _algorithm: &dyn Algorithm) -> Result<()> {
        share("limit", self.limit)
    }

    fn measure(&self, samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        let all = indexed(samples).count();
        let duplicated = duplicates(samples).len() as f64 / all as f64;
        if all > 0 {
            metrics.set("completions/duplicate_share", duplicated);
        }
        (all > 0).then(|| vec![duplicated])
    }

    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding> {
        let duplicated = mean(window, 0);
        (duplicated > self.limit).then(|| Finding {
            message: format!(
                "{:.0} % of the samples were also drawn for another prompt, where {:.0} % are allowed",
                100.0 * duplicated,
                100.0 * self.limit
            ),
            samples: largest_first(duplicates(samples)),
        })
    }
}
