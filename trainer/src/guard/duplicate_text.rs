//! Different prompts get the same completion: the share of samples whose tokens were also drawn for another prompt of
//! the step.
//!
//! A policy that answers everything alike has stopped reading. Short answers coincide by themselves (the sums 2+3 and
//! 1+4 have one), so the limit depends on the task. The share of a step is `completions/duplicate_share`; the samples
//! named are the duplicates, those of the most frequent text first.

use super::{Action, Finding, Guard, Place, largest_first, mean, places, share};
use crate::Result;
use crate::algorithm::Algorithm;
use schema::{Metrics, ScoredGroup, Token};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// `[guard.duplicate_text]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DuplicateText {
    /// The largest share of duplicates that is no alarm.
    pub limit: f64,
    /// Steps that are averaged.
    pub window: usize,
    /// What an alarm does.
    pub action: Action,
}

impl Default for DuplicateText {
    fn default() -> Self {
        Self { limit: 0.5, window: 5, action: Action::Warn }
    }
}

/// The samples whose tokens were also drawn for another prompt, each with how often they were drawn in all.
fn duplicates(samples: &[ScoredGroup]) -> Vec<(Place, f64)> {
    let prompt = |place: Place| &samples[place.group].group().prompt_ids;
    let mut drawn: HashMap<&[Token], Vec<Place>> = HashMap::new();
    for (place, sample) in places(samples) {
        drawn.entry(&sample.ids).or_default().push(place);
    }
    places(samples)
        .filter_map(|(place, sample)| {
            let same = &drawn[&sample.ids[..]];
            same.iter().any(|other| prompt(*other) != prompt(place)).then_some((place, same.len() as f64))
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

    fn measure(&self, samples: &[ScoredGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        let all = places(samples).count();
        let duplicated = duplicates(samples).len() as f64 / all as f64;
        if all > 0 {
            metrics.set("completions/duplicate_share", duplicated);
        }
        (all > 0).then(|| vec![duplicated])
    }

    fn judge(&self, window: &[&[f64]], samples: &[ScoredGroup]) -> Option<Finding> {
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
