//! The record of a step: its times and counts, in the run's state and as metrics.

use super::Training;
use crate::report::metrics;
use crate::sampling::StepSamples;
use schema::Metrics;
use std::time::{Duration, Instant};

/// Wall-clock times of one step.
pub(super) struct StepClock {
    start: Instant,
    /// Rewards and judges, of all rounds.
    grading: Duration,
    /// Until all samples to train on were there.
    rollout: Duration,
    /// From there until the new policy was published.
    update: Duration,
}

impl StepClock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), grading: Duration::ZERO, rollout: Duration::ZERO, update: Duration::ZERO }
    }

    /// Adds the time since `start` to that of grading.
    pub(super) fn graded(&mut self, start: Instant) {
        self.grading += start.elapsed();
    }

    /// All samples to train on are there.
    pub(super) fn sampled(&mut self) {
        self.rollout = self.start.elapsed();
    }

    /// The new policy is published.
    pub(super) fn updated(&mut self) {
        self.update = self.start.elapsed().saturating_sub(self.rollout);
    }
}

impl Training<'_> {
    /// Counts a finished step in the run's state, and returns all metrics of it but those of an evaluation.
    ///
    /// | metric | meaning |
    /// |---|---|
    /// | `time/rollout_s` | seconds until all samples to train on were there |
    /// | `time/reward_s` | of these, seconds of rewards and judges |
    /// | `time/update_s` | seconds of learning and publishing |
    /// | `step_time`, `time/train_s` | seconds of the step; of all steps so far |
    /// | `num_tokens`, `num_samples`, `num_generated_tokens` | tokens, samples and sampled tokens so far |
    /// | `perf/generated_tokens_per_second` | sampled tokens per second of the step |
    /// | `perf/peak_rss_mb` | largest resident memory of this process so far |
    pub(super) fn count(&mut self, step: u64, samples: &StepSamples, learned: Metrics, clock: &StepClock) -> Metrics {
        let seconds = clock.start.elapsed().as_secs_f64();
        let (seen, generated) = (samples.seen(), samples.generated_tokens());
        self.state.step = step;
        self.state.policy_hash.clone_from(&self.policy.version().hash);
        self.state.generated_tokens += generated;
        // Each prompt counts once per completion, as in TRL's `num_tokens`.
        self.state.num_tokens += seen.iter().map(|(prompt, completion)| (prompt + completion) as u64).sum::<u64>();
        self.state.samples += seen.len() as u64;
        self.state.train_seconds += seconds;

        let mut metrics = samples.metrics.clone();
        metrics.set("time/rollout_s", clock.rollout.as_secs_f64());
        metrics.merge(learned);
        metrics.set("time/update_s", clock.update.as_secs_f64());
        metrics.set("num_tokens", self.state.num_tokens as f64);
        metrics.set("num_samples", self.state.samples as f64);
        metrics.set("num_generated_tokens", self.state.generated_tokens as f64);
        metrics.set("time/train_s", self.state.train_seconds);
        metrics.merge(metrics::ranks(self.policy.adapter()));
        metrics.set("step_time", seconds);
        if !samples.fresh.is_empty() {
            metrics.set("time/reward_s", clock.grading.as_secs_f64());
            metrics.set("perf/generated_tokens_per_second", generated as f64 / seconds);
        }
        metrics.set("perf/peak_rss_mb", metrics::peak_rss_mb());
        metrics
    }
}
