//! The record of a run: metrics of a step, trackers that keep them, and plots of them.

pub(crate) mod metrics;
pub mod plot;
pub mod tracker;
