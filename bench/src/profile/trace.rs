//! Chrome traces: one complete event (`"ph": "X"`) per phase, in microseconds since the start, which `chrome://tracing`
//! and Perfetto show one under another.

use super::{PhaseLayer, PhaseSpan};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A trace file that is being written. A failed write is reported by [`finish`](Self::finish), so that it cannot disturb
/// the run.
pub struct ChromeTrace {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    out: BufWriter<File>,
    failed: Option<std::io::Error>,
}

impl State {
    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(text.as_bytes()).err();
        }
    }
}

impl ChromeTrace {
    /// Begins a trace. It is a list that is closed at the end; viewers also read one that a kill left open.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be created.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let mut state = State { out: BufWriter::new(File::create(path)?), failed: None };
        let process = json!({"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": "proxrl"}});
        state.write(&format!("[\n{process}"));
        Ok(Self { path: path.to_owned(), state: Arc::new(Mutex::new(state)) })
    }

    /// Returns the layer that fills the trace.
    pub fn layer(&self) -> PhaseLayer {
        let state = Arc::clone(&self.state);
        PhaseLayer::new(Arc::new(Mutex::new(move |phase: PhaseSpan| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.write(&format!(",\n{}", event(&phase)));
        })))
    }

    /// Closes the list.
    ///
    /// # Errors
    ///
    /// Fails if this or any earlier write failed.
    pub fn finish(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.write("\n]\n");
        let done = state.failed.take().map_or_else(|| state.out.flush(), Err);
        done.map_err(|error| anyhow::anyhow!("cannot write the profile {}: {error}", self.path.display()))
    }
}

fn event(phase: &PhaseSpan) -> Value {
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    let details: serde_json::Map<String, Value> =
        phase.details.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    json!({
        "ph": "X",
        "pid": 1,
        "tid": phase.thread,
        "name": phase.name,
        "ts": micros(phase.start),
        "dur": micros(phase.length),
        "args": details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_trace_is_in_microseconds() {
        let phase = PhaseSpan::at("decode", Duration::from_millis(2), Duration::from_nanos(1500), &[("rows", 32)]);
        let expected =
            json!({"ph": "X", "pid": 1, "tid": 1, "name": "decode", "ts": 2000.0, "dur": 1.5, "args": {"rows": 32}});
        assert_eq!(event(&phase), expected);
    }
}
