//! The rules that draw whole groups: `sampler = "uniform"`, `{ recent = { … } }` or `{ stratified = { … } }`.

use super::{ReplaySource, ReplayedGroup, Stratified, uniform};
use crate::{Error, Result};
use schema::Seed;
use serde::{Deserialize, Serialize};

/// A rule that draws old groups, each equally likely among those that it admits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplaySampler {
    /// Every group of the source.
    #[default]
    Uniform,
    /// Groups of the last few steps.
    Recent(Recent),
    /// Groups whose rewards differ.
    Stratified(Stratified),
}

/// `sampler = { recent = { … } }`: the window of `ReMix` (Liang et al. 2025, arXiv 2507.06892).
///
/// Its groups are old enough to be worth re-using, and young enough for their importance ratios to stay near one. Its
/// authors use two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recent {
    /// The number of steps that the window reaches back, the current step not counted; 1 is the preceding step.
    pub steps: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self { steps: 2 }
    }
}

impl ReplaySampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Setting`] if a window has no steps, or a difference of rewards is negative or not finite.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Recent(Recent { steps: 0 }) => {
                Err(Error::Setting("replay.sampler.recent.steps must be at least 1, but is 0".into()))
            }
            Self::Uniform | Self::Recent(_) => Ok(()),
            Self::Stratified(rule) => rule.check(),
        }
    }

    /// Draws up to `count` different groups from `source`; fewer if the rule admits fewer. The draw depends on the seed
    /// and on the store's content alone: callers pass the branch of their run's seeds that belongs to this step. A
    /// larger `count` only adds groups.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn draw(&self, source: &ReplaySource<'_>, count: usize, seed: &Seed) -> Result<Vec<ReplayedGroup>> {
        match self {
            Self::Uniform => uniform::draw(source, count, seed),
            Self::Recent(Recent { steps }) => uniform::draw(&source.within(*steps), count, seed),
            Self::Stratified(rule) => rule.draw(source, count, seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::FillRule;
    use super::*;

    #[test]
    fn each_rule_has_a_key_and_unknown_keys_are_refused() {
        let parse = |json: &str| serde_json::from_str::<ReplaySampler>(json);
        assert_eq!(parse(r#"{"recent": {"steps": 3}}"#).unwrap(), ReplaySampler::Recent(Recent { steps: 3 }));
        assert_eq!(parse(r#"{"recent": {}}"#).unwrap(), ReplaySampler::Recent(Recent { steps: 2 }));
        assert_eq!(parse(r#""uniform""#).unwrap(), ReplaySampler::default());
        let stratified = parse(r#"{"stratified": {"min_difference": 0.5}}"#).unwrap();
        assert_eq!(stratified, ReplaySampler::Stratified(Stratified { min_difference: 0.5 }));
        for wrong in [r#"{"recent": {"step": 3}}"#, r#"{"stratified": {"steps": 1}}"#, r#"{"newest": {}}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let fill = |json: &str| serde_json::from_str::<FillRule>(json);
        assert_eq!(fill(r#"{"rows": 3}"#).unwrap(), FillRule { rows: 3, min_difference: 0.0 });
        assert!(fill(r#"{"row": 3}"#).is_err());
    }

    #[test]
    fn settings_that_admit_nothing_are_refused() {
        let refused = [
            ReplaySampler::Recent(Recent { steps: 0 }).check(),
            ReplaySampler::Stratified(Stratified { min_difference: -1.0 }).check(),
            ReplaySampler::Stratified(Stratified { min_difference: f64::NAN }).check(),
            FillRule { rows: 0, ..FillRule::default() }.check(),
            FillRule { min_difference: -1.0, ..FillRule::default() }.check(),
        ];
        for (index, checked) in refused.into_iter().enumerate() {
            assert!(checked.err().is_some_and(|error| error.is_input()), "{index}");
        }
        assert!(ReplaySampler::default().check().is_ok() && FillRule::default().check().is_ok());
    }
}
