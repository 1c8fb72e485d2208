//! Metrics of the daemon for Prometheus: under vLLM's names with its label `model_name`, and under names of our own.

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The content type of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Upper ends of vLLM's buckets for the time to the first token, in seconds.
const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// Upper ends of vLLM's buckets for the latency of requests, in seconds.
const REQUEST_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

/// Counters, gauges and histograms, written by every thread.
pub(super) struct Metrics {
    names: Names,
    pub(super) running_samples: Gauge,
    waiting_samples: Gauge,
    pub(super) adapters: Gauge,
    pub(super) prompt_tokens: Counter,
    pub(super) generated_tokens: Counter,
    pub(super) cancelled_requests: Counter,
    engine_steps: Counter,
    engine_seconds: Counter<f64, AtomicU64>,
    answers: Family<[(&'static str, String); 2], Counter>,
    finished_samples: Family<[(&'static str, &'static str); 1], Counter>,
    first_token: Histogram,
    request: Histogram,
    /// Number and total duration of completed requests.
    completed: Mutex<(u32, Duration)>,
}

/// The registered metrics. Most are in both registries.
struct Names {
    own: Registry,
    vllm: Registry,
}

impl Names {
    /// Registers a metric under its names, of which either may be empty. Counters get the suffix `_total`.
    fn add<M: Metric + Clone>(&mut self, own: &str, vllm: &str, help: &str, metric: M) -> M {
        for (registry, name) in [(&mut self.own, own), (&mut self.vllm, vllm)] {
            if !name.is_empty() {
                registry.register(name, help, metric.clone());
            }
        }
        metric
    }
}

impl Metrics {
    /// Creates the metrics of a daemon that serves this base model.
    pub(super) fn new(model: &str) -> Self {
        let labels = [("model_name".into(), model.to_owned().into())];
        let mut names = Names { own: Registry::default(), vllm: Registry::with_labels(labels.into_iter()) };
        let gauge = Gauge::default;
        let counter = Counter::default;
        let [first_token, request] = [Histogram::new(FIRST_TOKEN_BUCKETS), Histogram::new(REQUEST_BUCKETS)];
        let n = &mut names;
        Self {
            running_samples: n.add(
                "proxrl_running_samples",
                "vllm:num_requests_running",
                "Samples in the batch",
                gauge(),
            ),
            waiting_samples: n.add(
                "proxrl_waiting_samples",
                "vllm:num_requests_waiting",
                "Samples in the queue",
                gauge(),
            ),
            adapters: n.add("proxrl_adapters", "", "Adapters that requests can name", gauge()),
            prompt_tokens: n.add("proxrl_prompt_tokens", "vllm:prompt_tokens", "Tokens of prompts", counter()),
            generated_tokens: n.add("proxrl_generated_tokens", "vllm:generation_tokens", "Tokens sampled", counter()),
            cancelled_requests: n.add("proxrl_cancelled_requests", "", "Requests given up by their clients", counter()),
            engine_steps: n.add("proxrl_engine_steps", "", "Passes of an engine", counter()),
            engine_seconds: n.add("proxrl_engine_seconds", "", "Time in passes of an engine", Counter::default()),
            answers: n.add("proxrl_requests", "", "Answers to requests", Family::default()),
            finished_samples: n.add("", "vllm:request_success", "Samples completed, by reason", Family::default()),
            first_token: n.add(
                "proxrl_first_token_seconds",
                "vllm:time_to_first_token_seconds",
                "From the arrival of a request to its first token",
                first_token,
            ),
            request: n.add(
                "proxrl_request_seconds",
                "vllm:e2e_request_latency_seconds",
                "From the arrival of a request to its last token",
                request,
            ),
            completed: Mutex::default(),
            names,
        }
    }

    /// Counts an answer to a request.
    pub(super) fn answered(&self, path: &'static str, status: u16) {
        let labels = [("path", path.to_owned()), ("status", status.to_string())];
        self.answers.get_or_create(&labels).inc();
    }

    /// Counts samples that ended for this reason: `stop`, `length` or `abort`.
    pub(super) fn finished(&self, reason: &'static str, samples: usize) {
        self.finished_samples.get_or_create(&[("finished_reason", reason)]).inc_by(samples as u64);
    }

    /// Counts a pass of an engine.
    pub(super) fn stepped(&self, duration: Duration) {
        self.engine_steps.inc();
        self.engine_seconds.inc_by(duration.as_secs_f64());
    }

    /// Records the time from the arrival of a request to its first token.
    pub(super) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Records the time from the arrival of a request to its last token.
    pub(super) fn completed(&self, after: Duration) {
        self.request.observe(after.as_secs_f64());
        let mut completed = self.completed.lock().unwrap_or_else(PoisonError::into_inner);
        *completed = (completed.0 + 1, completed.1 + after);
    }

    /// Mean duration of the completed requests; one second before there are any.
    pub(super) fn mean_request(&self) -> Duration {
        let (count, total) = *self.completed.lock().unwrap_or_else(PoisonError::into_inner);
        total.checked_div(count).unwrap_or(Duration::from_secs(1))
    }

    /// All metrics in the text format of Prometheus; `unfinished` samples are in the batch or in the queue.
    pub(super) fn text(&self, unfinished: usize) -> String {
        self.waiting_samples.set((unfinished as i64 - self.running_samples.get()).max(0));
        let mut text = String::new();
        for registry in [&self.names.vllm, &self.names.own] {
            prometheus_text::encode(&mut text, registry).expect("writing to a string does not fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_appears_once_under_each_name_with_its_type() {
        let metrics = Metrics::new("a \"b\"");
        metrics.running_samples.set(2);
        metrics.generated_tokens.inc_by(7);
        metrics.answered("/health", 200);
        metrics.answered("/health", 200);
        metrics.finished("stop", 3);
        metrics.first_token(Duration::from_millis(30));
        metrics.completed(Duration::from_millis(500));
        metrics.completed(Duration::from_millis(1500));
        assert_eq!(metrics.mean_request(), Duration::from_secs(1));
        let text = metrics.text(5);
        for line in [
            "# TYPE proxrl_waiting_samples gauge",
            "proxrl_waiting_samples 3",
            "# TYPE vllm:num_requests_waiting gauge",
            "vllm:num_requests_running{model_name=\"a \\\"b\\\"\"} 2",
            "vllm:num_requests_waiting{model_name=\"a \\\"b\\\"\"} 3",
            "# TYPE vllm:generation_tokens_total counter",
            "vllm:generation_tokens_total{model_name=\"a \\\"b\\\"\"} 7",
            "proxrl_generated_tokens_total 7",
            "vllm:request_success_total{model_name=\"a \\\"b\\\"\",finished_reason=\"stop\"} 3",
            "# TYPE vllm:time_to_first_token_seconds histogram",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a \\\"b\\\"\",le=\"0.02\"} 0",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a \\\"b\\\"\",le=\"0.04\"} 1",
            "vllm:e2e_request_latency_seconds_count{model_name=\"a \\\"b\\\"\"} 2",
            "proxrl_request_seconds_sum 2.0",
            "proxrl_request_seconds_count 2",
            "proxrl_requests_total{path=\"/health\",status=\"200\"} 2",
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
    }
}
