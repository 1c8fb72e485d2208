//! Grades by trained reward models, and new grades for stored samples.

pub mod rescore;
mod reward_model;
mod ungraded;

pub(crate) use reward_model::RewardNetwork;
pub(crate) use ungraded::{Finding, Ungraded};
