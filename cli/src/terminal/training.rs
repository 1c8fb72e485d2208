//! Terminal output of a training run: a line per step, a progress bar, and notes.

use super::bar::style;
use super::{clock, note};
use indicatif::ProgressBar;
use rollout::collector::SamplingProgress;
use schema::Metrics;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use trainer::report::tracker::summary_line;
use trainer::{Observer, Phase};

/// Shows a training run: a line per step and, on a terminal, a bar below them.
pub(crate) struct TrainingScreen {
    bar: Option<ProgressBar>,
    started: Instant,
    first_step: Option<u64>,
    recent: Vec<f64>,
    last: String,
}

impl TrainingScreen {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length().with_style(style("{spinner} {wide_msg}"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, started: Instant::now(), first_step: None, recent: Vec::new(), last: String::new() }
    }

    fn message(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(if self.last.is_empty() { text.to_owned() } else { format!("{} · {text}", self.last) });
        }
    }
}

impl Observer for TrainingScreen {
    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => note(line),
        }
    }

    fn begin(&mut self, first_step: u64, steps: u64) {
        self.started = Instant::now();
        self.first_step = Some(first_step);
        if let Some(bar) = &self.bar {
            bar.set_style(style("{bar:24} {pos}/{len} {wide_msg}"));
            bar.set_length(steps);
            bar.set_position(first_step - 1);
        }
    }

    fn phase(&mut self, phase: Phase) {
        self.message(phase.describe());
    }

    fn progress(&mut self, phase: Phase, progress: SamplingProgress) {
        self.message(&format!("{} {}/{}", phase.describe(), progress.finished, progress.samples));
    }

    fn step(&mut self, step: u64, steps: u64, metrics: &Metrics) {
        let name = if metrics.get("reward").is_some() { "reward" } else { "loss" };
        self.recent.push(metrics.get(name).unwrap_or(f64::NAN));
        let last10 = &self.recent[self.recent.len().saturating_sub(10)..];
        let mean10 = last10.iter().sum::<f64>() / last10.len() as f64;
        let done = step + 1 - self.first_step.unwrap_or(1);
        let left = self.started.elapsed().mul_f64((steps - step) as f64 / done.max(1) as f64);
        self.last = format!("{} left · last 10 steps: {name} {mean10:.3}", clock(left));
        self.note(&format!("step {step}/{steps} · {} · {}", summary_line(metrics), self.last));
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(self.last.clone());
        }
    }

    fn end(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
