//! What a run tells whoever watches it.

use rollout::collector::Progress;
use schema::Metrics;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading weights, data and settings.
    Loading,
    /// Answering held-out prompts.
    Evaluating,
    /// Drawing samples.
    Sampling,
    /// Judging samples.
    Scoring,
    /// Learning from them.
    Updating,
    /// Writing a checkpoint and pictures.
    Saving,
}

impl Phase {
    /// A word for a person who waits.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Evaluating => "answering held-out prompts",
            Self::Sampling => "sampling",
            Self::Scoring => "scoring",
            Self::Updating => "updating",
            Self::Saving => "saving",
        }
    }
}

/// Watches a run. The trainer never prints; the front door shows what it hears here.
pub trait Observer {
    /// Something worth a line.
    fn note(&mut self, _line: &str) {}
    /// Steps begin: from this one to the last.
    fn begin(&mut self, _first_step: u64, _steps: u64) {}
    /// The run does something else now.
    fn phase(&mut self, _phase: Phase) {}
    /// How far the present phase has come.
    fn progress(&mut self, _phase: Phase, _progress: Progress) {}
    /// A step is done.
    fn step(&mut self, _step: u64, _steps: u64, _metrics: &Metrics) {}
    /// Nothing more will come.
    fn end(&mut self) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}
