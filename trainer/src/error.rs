//! The errors of this crate.

use thiserror::Error;

/// An error of the trainer crate. Each message says what failed, where, and what to try.
#[derive(Debug, Error)]
pub enum Error {
    /// The user's input is wrong: a path, a file, a setting.
    #[error("{0}")]
    Input(String),
    /// A failure that the input did not cause.
    #[error("{0}")]
    Runtime(String),
    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// An error of sampling.
    #[error(transparent)]
    Rollout(#[from] rollout::Error),
    /// An error of a reward function or a judge.
    #[error(transparent)]
    Reward(#[from] reward::Error),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An error of libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// Returns an error in the user's input.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// Returns an error that the input did not cause.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime(message.into())
    }

    /// Returns true if the user's input is at fault.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Input(_) => true,
            Self::Model(error) => error.is_input(),
            Self::Rollout(error) => error.is_input(),
            Self::Reward(error) => error.is_input(),
            Self::Store(error) => error.is_input(),
            Self::Runtime(_) | Self::Torch(_) => false,
        }
    }
}

/// Errors of the trainer behind a trait of the rollout crate become errors of that crate, with the same message.
impl From<Error> for rollout::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        if error.is_input() { Self::input(message) } else { Self::runtime(message) }
    }
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
