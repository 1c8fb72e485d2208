//! Trackers: destinations of each step's metrics.
//!
//! A tracker receives every step once, in order. One that writes files can continue after an interruption: it is told
//! the last valid step and removes everything it wrote after it, because those steps will be repeated.

mod console;
mod jsonl;
mod tensorboard;

pub use console::summary_line;
pub use jsonl::JsonlTracker;
pub use tensorboard::TensorboardTracker;

use crate::{Error, Result};
use schema::Metrics;
use std::fmt::Display;
use std::path::Path;

/// A destination of each step's metrics.
pub trait Tracker {
    /// Logs one step's metrics. They are durable when this returns.
    ///
    /// # Errors
    /// If they cannot be written.
    fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()>;

    /// Flushes the last metrics; called once, after the last step.
    ///
    /// # Errors
    /// If they cannot be written.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Returns the error for a file or folder that cannot be opened or created: an input error, as the user chose the path.
fn unopenable(path: &Path, error: &dyn Display) -> Error {
    Error::input(format!(
        "cannot write the metrics to {}: {error}; choose a folder that can be written to",
        path.display()
    ))
}

/// Returns the error for a file that could be opened, but not written.
fn unwritable(path: &Path, error: &dyn Display) -> Error {
    Error::runtime(format!("cannot write the metrics to {}: {error}; is the disk full or read-only?", path.display()))
}
