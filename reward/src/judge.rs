//! The door for comparisons: which of two samples is better?
//!
//! Preference methods need no number per sample, only how likely one beats the other. People, models and rules can all
//! say that; [`ByReward`] makes a rule do it. A judge that runs a network implements the trait where networks run.

mod by_reward;

pub use by_reward::ByReward;

use schema::Group;

/// One side of a comparison: a sample in its group.
#[derive(Debug, Clone, Copy)]
pub struct Contestant<'a> {
    /// The group that holds the sample, and the prompt that it answers.
    pub group: &'a Group,
    /// The sample's place in the group.
    pub place: usize,
}

/// Compares samples that answer one prompt, drawn by one policy or by two.
pub trait Judge {
    /// What kind of judge this is.
    fn name(&self) -> &'static str;

    /// Changes whenever the code or a setting changes who wins.
    fn version(&self) -> String;

    /// For each pair the probability, in [0, 1], that the first beats the second, 0.5 being a draw; `None` where the
    /// judge cannot say. One entry per pair, in order.
    fn compare(&mut self, pairs: &[(Contestant<'_>, Contestant<'_>)]) -> Vec<Option<f64>>;
}
