//! The result of comparing one sample with another one.

use crate::Grade;
use serde::{Deserialize, Serialize};

/// The other sample of a comparison, by its index among the samples of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rival {
    /// A sample of the same group.
    Own(usize),
    /// A sample of the group that the opponent's policy sampled for the same prompt.
    Opponent(usize),
}

/// A judge's comparison of a sample with a rival.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The judge's name, such as `endpoint`.
    pub judge: String,
    /// The judge's version (its code and its settings).
    pub version: String,
    /// The other sample.
    pub rival: Rival,
    /// The probability, in [0, 1], that the sample beats the rival; 0.5 is a tie.
    pub win: Grade,
}
