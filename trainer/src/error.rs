//! What can go wrong in this crate.

use thiserror::Error;

/// An error of the trainer crate. Each message says what, where and what to try.
#[derive(Debug, Error)]
pub enum Error {
    /// Something the user gave is at fault: a path, a file, a number.
    #[error("{0}")]
    Input(String),
    /// Something failed although the input was right.
    #[error("{0}")]
    Runtime(String),
    /// The model could not do its part.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// Sampling failed.
    #[error(transparent)]
    Rollout(#[from] rollout::Error),
    /// Scoring failed.
    #[error(transparent)]
    Reward(#[from] reward::Error),
    /// The store of samples failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An error in what the user gave.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// A failure that the input did not cause.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self::Runtime(message.into())
    }

    /// Whether the user's input is at fault.
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

/// What the trainer does behind a trait of the sampler's crate goes wrong in that crate's words.
impl From<Error> for rollout::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        if error.is_input() { Self::input(message) } else { Self::runtime(message) }
    }
}

/// A result of the trainer crate.
pub type Result<T> = std::result::Result<T, Error>;
