//! The terminal: errors, notes, answers, bars and tables. Nothing else in the program prints.
mod bar;
pub(crate) mod table;
mod training;

pub(crate) use bar::Bar;
pub(crate) use training::TrainingScreen;

use indicatif::HumanCount;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::time::Duration;

/// A fault in the command line that its parser cannot see.
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
    note(&format!("error: {said}"));
}

/// Writes an answer to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
///
/// Returns the error of the write, but for a closed pipe.
pub(crate) fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Prints a line about progress. A screen that is gone or full ends no work.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// `1:02:03`, or `2:03` below an hour.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Digits in groups of three: `12_345` as `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    HumanCount(number).to_string()
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
