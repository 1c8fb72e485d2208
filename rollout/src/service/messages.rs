//! Messages between the threads that speak HTTP and the thread that owns the model.
//!
//! They hold no tensor. A request travels to the model's thread as a [`Command`]; its samples travel back as
//! [`Update`]s through a channel of their own. A closed channel means that the client has disconnected.

use super::failure::Failure;
use super::request::CompletionRequest;
use crate::engine::{PromptLogprob, SampledToken};
use schema::{Sample, Seed};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A command to the model's thread.
pub(super) enum Command {
    Sample(QueuedRequest),
    Load { name: String, path: PathBuf, replace: bool, reply: oneshot::Sender<Result<ModelCard, Failure>> },
    Unload { name: String, reply: oneshot::Sender<Result<(), Failure>> },
    Pause { mode: PauseMode, reply: oneshot::Sender<()> },
    Resume { reply: oneshot::Sender<()> },
}

/// A model that requests can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelCard {
    pub(super) name: String,
    /// The folder of the adapter; `None` for the base.
    pub(super) path: Option<PathBuf>,
    /// Content hash of the policy.
    pub(super) policy: String,
    /// Time of loading, in seconds since 1970.
    pub(super) created: u64,
}

/// The effect of `/pause` on running requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseMode {
    /// Running requests keep their slots and continue after `/resume`.
    Keep,
    /// Running requests run to their end first.
    Wait,
    /// Running requests end with an error.
    Abort,
}

/// An admitted request.
pub(super) struct QueuedRequest {
    pub(super) request: Arc<CompletionRequest>,
    /// Name of the model that serves it.
    pub(super) model: String,
    pub(super) seed: Seed,
    pub(super) updates: mpsc::UnboundedSender<Update>,
    /// One permit for each sample that is not complete.
    pub(super) permits: RefCell<OwnedSemaphorePermit>,
}

impl QueuedRequest {
    /// Releases the permit of a completed sample. The other permits are released with the request.
    pub(super) fn release_one(&self) {
        drop(self.permits.borrow_mut().split(1));
    }
}

/// Progress of a request. A choice is a sample, numbered over all prompts of the request.
pub(super) enum Update {
    /// The policy with this content hash has taken up the request.
    Begun { policy: String },
    /// Log-probabilities of the tokens of a prompt but its first.
    PromptLogprobs { prompt: usize, logprobs: Vec<PromptLogprob> },
    /// A token was sampled.
    Token { choice: usize, token: SampledToken },
    /// A sample is complete.
    Finished { choice: usize, sample: Sample },
    /// The request has failed; this is its last update.
    Failed(Failure),
}
