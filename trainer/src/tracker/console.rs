//! One line per step for a person who watches.
//!
//! Libraries do not print: the line goes to a function that the caller gives.

use super::Tracker;
use crate::Result;
use schema::Metrics;

/// What the line shows, in this order, where the step has it: the metric, its label, digits after the point.
const COLUMNS: [(&str, &str, usize); 8] = [
    ("reward", "reward", 3),
    ("reward_std", "±", 3),
    ("kl", "kl", 4),
    ("entropy", "entropy", 3),
    ("completions/mean_length", "length", 1),
    ("grad_norm", "grad", 3),
    ("adapter/active_rank", "rank", 1),
    ("perf/generated_tokens_per_second", "tok/s", 0),
];

/// Hands one line per step to a function.
pub struct ConsoleTracker<S: FnMut(&str)> {
    sink: S,
    steps: u64,
    seconds: f64,
    timed: u64,
}

impl<S: FnMut(&str)> ConsoleTracker<S> {
    /// A tracker for a run of `steps` steps.
    pub fn new(steps: u64, sink: S) -> Self {
        Self { sink, steps, seconds: 0.0, timed: 0 }
    }
}

impl<S: FnMut(&str)> Tracker for ConsoleTracker<S> {
    fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        let mut line = summary_line(step, self.steps, metrics);
        if let Some(seconds) = metrics.get("step_time") {
            self.seconds += seconds;
            self.timed += 1;
            let left = self.steps.saturating_sub(step) as f64 * self.seconds / self.timed as f64;
            line = format!("{line}  left {}", duration(left));
        }
        (self.sink)(&line);
        Ok(())
    }
}

/// The step, its number of steps and its main metrics, in one line.
pub fn summary_line(step: u64, steps: u64, metrics: &Metrics) -> String {
    let width = steps.to_string().len();
    let columns = COLUMNS.iter().filter_map(|(name, label, digits)| {
        let value = metrics.get(name)?;
        Some(format!("  {label} {value:.digits$}"))
    });
    std::iter::once(format!("step {step:>width$}/{steps}")).chain(columns).collect()
}

/// Seconds as a person says them.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_the_step_has_and_the_time_left() {
        let mut lines = Vec::new();
        let mut tracker = ConsoleTracker::new(100, |line: &str| lines.push(line.to_owned()));
        let mut metrics = Metrics::new();
        metrics.set("reward", 0.5);
        metrics.set("grad_norm", 1.0);
        metrics.set("unknown", 7.0);
        tracker.log(9, &metrics).unwrap();
        metrics.set("step_time", 2.0);
        tracker.log(10, &metrics).unwrap();
        assert_eq!(
            lines,
            ["step   9/100  reward 0.500  grad 1.000", "step  10/100  reward 0.500  grad 1.000  left 3m00s"]
        );
    }

    #[test]
    fn durations() {
        assert_eq!([0.4, 59.0, 61.0, 7260.0].map(duration), ["0s", "59s", "1m01s", "2h01m"]);
    }
}
