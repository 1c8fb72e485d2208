//! Reward functions and judges: text becomes a number.
//!
//! A [`Reward`] grades samples; a sample that it cannot grade stays ungraded, with a reason, and never counts as zero. A
//! [`Judge`] compares two samples; its kinds live in [`judge`]. The rules live in [`rule`], one file each; [`build`]
//! turns the config's `[[reward]]` tables into a [`WeightedSum`], which keeps every part beside the total:
//!
//! ```toml
//! [[reward]]
//! weight = 1.0
//! rule.math_answer = {}
//!
//! [[reward]]
//! name = "brief"
//! weight = 0.1
//! rule.length = { target = 40 }
//! ```
//!
//! No network runs here and libtorch is not needed: a reward that runs a model implements [`Reward`] elsewhere.

mod config;
mod error;
pub mod judge;
mod reward;
pub mod rule;
mod weighted_sum;

#[cfg(test)]
mod tests;

pub use config::{Config, ModelConfig, OpenModel, build, build_with};
pub use error::{Error, Result};
pub use judge::{Contestant, Judge};
pub use reward::{Reward, fingerprint};
pub use weighted_sum::{Term, WeightedSum, metrics};
