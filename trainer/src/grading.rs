//! Grades by trained reward models, and new grades for stored samples.

pub mod rescore;
mod reward_model;

pub(crate) use reward_model::RewardNetwork;
