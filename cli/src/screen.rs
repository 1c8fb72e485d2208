//! What the user sees: errors, progress and tables. Nothing else in the program prints.
#![expect(clippy::print_stderr, reason = "this is the screen")]

use indicatif::{ProgressBar, ProgressStyle};
use rollout::collector::Progress;
use schema::Metrics;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::time::{Duration, Instant};
use trainer::report::tracker::summary_line;
use trainer::{Observer, Phase};

/// A fault in the command line itself, found after parsing it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Prints an error and its causes, each once.
pub(crate) fn error(error: &anyhow::Error) {
    let mut said = String::new();
    for link in error.chain().map(ToString::to_string) {
        if !said.contains(&link) {
            let separator = if said.is_empty() { "" } else { ": " };
            let _ = write!(said, "{separator}{link}");
        }
    }
    eprintln!("error: {said}");
}

/// Writes an answer to standard output. A reader that has seen enough (`| head`) is no error.
pub(crate) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints a line about progress.
pub(crate) fn note(line: &str) {
    eprintln!("{line}");
}

/// Shows a training run: a line per step and, where there is a terminal, a bar below them.
pub(crate) struct Screen {
    bar: Option<ProgressBar>,
    started: Instant,
    first_step: Option<u64>,
    recent: Vec<f64>,
    last: String,
}

impl Screen {
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

impl Observer for Screen {
    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
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

    fn progress(&mut self, phase: Phase, progress: Progress) {
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `1:02:03`, or `2:03` below an hour.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Two columns, aligned.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "  {name:width$}  {value}");
        text
    })
}

/// Digits in groups of three: `12_345` as `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_and_thousands() {
        assert_eq!(clock(Duration::from_secs(125)), "2:05");
        assert_eq!(clock(Duration::from_secs(3725)), "1:02:05");
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
