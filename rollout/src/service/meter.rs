//! What the daemon counts, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters and gauges, written by every thread.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Samples that have been accepted and are not complete: they run or wait.
    pub(super) samples: AtomicU64,
    /// Samples that are being drawn.
    pub(super) running: AtomicU64,
    /// Adapters that requests can name.
    pub(super) adapters: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// Requests that were given up by their clients.
    pub(super) cancelled: AtomicU64,
    pub(super) steps: AtomicU64,
    step_us: AtomicU64,
    /// Requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    waits: Durations,
    calls: Durations,
}

/// How often something took how long.
#[derive(Debug, Default)]
struct Durations {
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Durations {
    fn add(&self, duration: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    fn mean(&self) -> Option<Duration> {
        let count = self.count.load(Ordering::Relaxed);
        (count > 0).then(|| Duration::from_micros(self.sum_us.load(Ordering::Relaxed) / count))
    }
}

impl Meter {
    /// One answer to a request.
    pub(super) fn answered(&self, path: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *requests.entry((path, status)).or_default() += 1;
    }

    /// One pass of an engine.
    pub(super) fn stepped(&self, duration: Duration) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.step_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    /// The first token of a request came.
    pub(super) fn first_token(&self, after: Duration) {
        self.waits.add(after);
    }

    /// A request was answered whole.
    pub(super) fn completed(&self, after: Duration) {
        self.calls.add(after);
    }

    /// How long a request takes, as far as is known.
    pub(super) fn mean_call(&self) -> Duration {
        self.calls.mean().unwrap_or(Duration::from_secs(1))
    }

    /// Everything, in the text format of Prometheus.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = |counter: &AtomicU64| number(counter) as f64 / 1e6;
        let (samples, running) = (number(&self.samples), number(&self.running));
        for (name, help, value) in [
            ("running_samples", "Samples that are being drawn.", running),
            ("waiting_samples", "Samples that wait for a place in the batch.", samples.saturating_sub(running)),
            ("adapters", "Adapters that requests can name.", number(&self.adapters)),
        ] {
            let _ = writeln!(text, "# HELP proxrl_{name} {help}\n# TYPE proxrl_{name} gauge\nproxrl_{name} {value}");
        }
        for (name, help, value) in [
            ("prompt_tokens_total", "Tokens of prompts.", number(&self.prompt_tokens) as f64),
            ("generated_tokens_total", "Tokens drawn.", number(&self.generated_tokens) as f64),
            ("cancelled_requests_total", "Requests that their clients gave up.", number(&self.cancelled) as f64),
            ("engine_steps_total", "Passes of an engine.", number(&self.steps) as f64),
            ("engine_seconds_total", "Time in passes of an engine.", seconds(&self.step_us)),
        ] {
            let _ = writeln!(text, "# HELP proxrl_{name} {help}\n# TYPE proxrl_{name} counter\nproxrl_{name} {value}");
        }
        for (name, help, durations) in [
            ("first_token_seconds", "From a request's arrival to its first token.", &self.waits),
            ("request_seconds", "From a request's arrival to its last token.", &self.calls),
        ] {
            let (sum, count) = (seconds(&durations.sum_us), number(&durations.count));
            let _ = writeln!(text, "# HELP proxrl_{name} {help}\n# TYPE proxrl_{name} summary");
            let _ = writeln!(text, "proxrl_{name}_sum {sum}\nproxrl_{name}_count {count}");
        }
        let _ =
            writeln!(text, "# HELP proxrl_requests_total Answers to requests.\n# TYPE proxrl_requests_total counter");
        let requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for ((path, status), count) in &*requests {
            let _ = writeln!(text, "proxrl_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_written_once_with_its_type() {
        let meter = Meter::default();
        meter.samples.store(5, Ordering::Relaxed);
        meter.running.store(2, Ordering::Relaxed);
        meter.answered("/health", 200);
        meter.answered("/health", 200);
        meter.completed(Duration::from_millis(500));
        meter.completed(Duration::from_millis(1500));
        assert_eq!(meter.mean_call(), Duration::from_secs(1));
        let text = meter.text();
        for line in [
            "# TYPE proxrl_waiting_samples gauge",
            "proxrl_waiting_samples 3",
            "proxrl_request_seconds_sum 2",
            "proxrl_request_seconds_count 2",
            "proxrl_requests_total{path=\"/health\",status=\"200\"} 2",
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
    }
}
