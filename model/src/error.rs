//! Errors of this crate.

use std::path::Path;
use thiserror::Error;

/// An error of the model crate. Each message says what, where and what to try.
#[derive(Debug, Error)]
pub enum Error {
    /// The user's input is at fault: a path, a file, a number.
    #[error("{0}")]
    Input(String),
    /// A failure despite correct input.
    #[error("{0}")]
    Runtime(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An error in the user's input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// A failure that the input did not cause.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime(message.into())
    }

    /// An error in reading a file that the user named.
    pub fn file(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Input(format!("{}: {problem}", path.display()))
    }

    /// True if the user's input is at fault.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Input(_))
    }
}

/// A result of the model crate.
pub type Result<T> = std::result::Result<T, Error>;
