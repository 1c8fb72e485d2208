//! Progress of a run, reported to an observer.

use rollout::collector::SamplingProgress;
use schema::Metrics;

/// Phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading weights, data and settings.
    Loading,
    /// Answering held-out prompts.
    Evaluating,
    /// Sampling completions.
    Sampling,
    /// Grading samples.
    Scoring,
    /// Updating the policy.
    Updating,
    /// Writing a checkpoint and plots.
    Saving,
}

impl Phase {
    /// Returns a word for the screen.
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

/// A receiver of a run's progress. The trainer never prints; the program shows what it receives here.
pub trait Observer {
    /// Receives a message of one line.
    fn note(&mut self, _line: &str) {}
    /// Receives the first and the last step before the first one begins.
    fn begin(&mut self, _first_step: u64, _steps: u64) {}
    /// Receives the new phase of the run.
    fn phase(&mut self, _phase: Phase) {}
    /// Receives the progress within the phase.
    fn progress(&mut self, _phase: Phase, _progress: SamplingProgress) {}
    /// Receives the metrics of a finished step.
    fn step(&mut self, _step: u64, _steps: u64, _metrics: &Metrics) {}
    /// Ends the observation; no other call follows.
    fn end(&mut self) {}
}

/// An observer that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}
