//! Errors of this crate.
//!
//! A sample that cannot be graded is not an error: its grade is [`Grade::Missing`](schema::Grade::Missing) with a reason,
//! and the others of its batch keep their values.

use thiserror::Error;

/// An error of the reward crate. Each message says what, where and what to try.
#[derive(Debug, Error)]
pub enum Error {
    /// An error in the user's input: a setting, a name, a program.
    #[error("{0}")]
    Input(String),
    /// A reward broke its contract.
    #[error("{0}")]
    Runtime(String),
    /// A group and its verdicts do not fit.
    #[error(transparent)]
    Group(#[from] schema::GroupError),
}

impl Error {
    /// Creates an error in the user's input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// Creates an error that the input did not cause.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime(message.into())
    }

    /// Returns true if the user's input is at fault.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Input(_))
    }
}

/// A result of the reward crate.
pub type Result<T> = std::result::Result<T, Error>;
