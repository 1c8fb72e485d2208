//! The error type of this crate.

use thiserror::Error;

/// An error of the rollout crate. Each message says what, where and what to try.
#[derive(Debug, Error)]
pub enum Error {
    /// An error in the input: a path, a file, a number.
    #[error("{0}")]
    Input(String),
    /// A failure with valid input.
    #[error("{0}")]
    Runtime(String),
    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// An error of a libtorch operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Creates an input error.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// Creates an error that the input did not cause.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime(message.into())
    }

    /// True if the user's input is at fault.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Input(_) => true,
            Self::Model(error) => error.is_input(),
            Self::Runtime(_) | Self::Torch(_) => false,
        }
    }
}

/// A result of the rollout crate.
pub type Result<T> = std::result::Result<T, Error>;
