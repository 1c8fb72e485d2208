//! Where the metrics of each step go.
//!
//! A tracker gets every step once, in order. One that writes files can go on after an interruption: it is told the last
//! step that counts, and what it wrote after that is taken back, because those steps will come again.

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

/// Receives the metrics of each step.
pub trait Tracker {
    /// Takes the metrics of one step. Whoever returns has them safe.
    ///
    /// # Errors
    /// If they cannot be written.
    fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()>;

    /// Nothing more will come.
    ///
    /// # Errors
    /// If the last metrics cannot be written.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A file or folder that cannot be opened or made: the user's choice of place.
fn unopenable(path: &Path, error: &dyn Display) -> Error {
    Error::input(format!(
        "cannot write the metrics to {}: {error}; choose a folder that can be written to",
        path.display()
    ))
}

/// A file that could be opened, but not written.
fn unwritable(path: &Path, error: &dyn Display) -> Error {
    Error::runtime(format!("cannot write the metrics to {}: {error}; is the disk full or read-only?", path.display()))
}
