//! What a run spends its time on: the phases that the loop marks as `tracing` spans, heard by a layer of our own.
//!
//! `proxrl train --profile FILE` writes them as a Chrome trace: one complete event (`"ph": "X"`) per phase, in
//! microseconds since the start, which `chrome://tracing` and Perfetto draw one under another. `proxrl bench` adds them up
//! instead. Without either, no layer is installed, and a span costs one comparison with the highest level that anybody
//! listens to.

use serde_json::{Value, json};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The target of the spans that are phases.
const TARGET: &str = "phase";

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    /// Since listening began.
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    /// What is known of it, such as the number of a step.
    pub(crate) details: Vec<(&'static str, u64)>,
    thread: u64,
}

impl Phase {
    /// A phase of the first thread.
    #[cfg(test)]
    pub(crate) fn at(name: &'static str, start: Duration, length: Duration, details: &[(&'static str, u64)]) -> Self {
        Self { name, start, length, details: details.to_vec(), thread: 1 }
    }
}

/// Where phases go.
type Sink = Arc<Mutex<dyn FnMut(Phase) + Send>>;

/// The layer that hears phases.
pub(crate) struct Listener {
    began: Instant,
    threads: Mutex<Vec<ThreadId>>,
    sink: Sink,
}

impl Listener {
    fn new(sink: Sink) -> Self {
        Self { began: Instant::now(), threads: Mutex::default(), sink }
    }

    /// A listener to install, which hears nothing but phases.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> impl Layer<S> {
        self.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Threads by the order in which they were heard first: 1, 2, …
    fn thread(&self) -> u64 {
        let id = std::thread::current().id();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let place = threads.iter().position(|known| *known == id).unwrap_or_else(|| {
            threads.push(id);
            threads.len() - 1
        });
        place as u64 + 1
    }
}

/// What a span carries from its beginning to its end.
struct Open {
    entered: Instant,
    thread: u64,
    details: Details,
}

#[derive(Default)]
struct Details(Vec<(&'static str, u64)>);

impl Visit for Details {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value));
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listener {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut details = Details::default();
        attributes.record(&mut details);
        span.extensions_mut().insert(Open { entered: Instant::now(), thread: self.thread(), details });
    }

    // A phase ends where its own thread leaves it. When the span is closed says little: a library may hold it for longer,
    // or enter it on a thread of its own, as the store's SQLite does.
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let ended = Instant::now();
        let Some(span) = context.span(id) else { return };
        let thread = self.thread();
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<Open>().is_none_or(|open| open.thread != thread) {
            return;
        }
        let Some(open) = extensions.remove::<Open>() else { return };
        let phase = Phase {
            name: span.name(),
            start: open.entered.duration_since(self.began),
            length: ended.duration_since(open.entered),
            details: open.details.0,
            thread,
        };
        drop(extensions);
        (self.sink.lock().unwrap_or_else(PoisonError::into_inner))(phase);
    }
}

/// Phases that are kept, to be added up.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<Phase>>>);

impl Kept {
    /// The listener that fills it.
    pub(crate) fn listener(&self) -> Listener {
        let kept = Arc::clone(&self.0);
        Listener::new(Arc::new(Mutex::new(move |phase| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(phase);
        })))
    }

    /// The phases since the last call, in the order of their ends.
    pub(crate) fn take(&self) -> Vec<Phase> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A trace that is being written. A failure is kept until the end, so that it cannot disturb the run.
pub(crate) struct Trace {
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

impl Trace {
    /// Begins a trace. It is a list that is closed at the end; the viewers also read one that a kill left open.
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        let mut state = State { out: BufWriter::new(File::create(path)?), failed: None };
        let process = json!({"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": "proxrl"}});
        state.write(&format!("[\n{process}"));
        Ok(Self { path: path.to_owned(), state: Arc::new(Mutex::new(state)) })
    }

    /// The listener that fills it.
    pub(crate) fn listener(&self) -> Listener {
        let state = Arc::clone(&self.state);
        Listener::new(Arc::new(Mutex::new(move |phase: Phase| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.write(&format!(",\n{}", event(&phase)));
        })))
    }

    /// Closes the list.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.write("\n]\n");
        let done = state.failed.take().map_or_else(|| state.out.flush(), Err);
        done.map_err(|error| anyhow::anyhow!("cannot write the profile {}: {error}", self.path.display()))
    }
}

fn event(phase: &Phase) -> Value {
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
    use tracing_subscriber::prelude::*;

    fn heard(work: impl FnOnce()) -> Vec<Phase> {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(kept.listener().layer());
        tracing::subscriber::with_default(subscriber, work);
        kept.take()
    }

    #[test]
    fn phases_are_heard_with_their_details_and_nothing_else_is() {
        let phases = heard(|| {
            let _outer = tracing::info_span!(target: "phase", "step", number = 7u64).entered();
            tracing::info_span!("elsewhere").in_scope(|| ());
            tracing::info_span!(target: "phase", "forward").in_scope(|| ());
        });
        // An inner phase ends before the outer one.
        let names: Vec<&str> = phases.iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["forward", "step"]);
        assert_eq!(phases[1].details, [("number", 7)]);
        assert!(phases[1].start <= phases[0].start);
        assert!(phases[0].start + phases[0].length <= phases[1].start + phases[1].length);
    }

    #[test]
    fn a_phase_ends_where_its_own_thread_leaves_it() {
        let phases = heard(|| {
            let append = tracing::info_span!(target: "phase", "append").entered();
            let held = tracing::Span::current();
            let worker = held.clone();
            std::thread::spawn(move || worker.in_scope(|| ())).join().unwrap();
            drop(append);
            tracing::info_span!(target: "phase", "forward").in_scope(|| ());
            drop(held);
        });
        let names: Vec<&str> = phases.iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["append", "forward"]);
        assert!(phases[0].start + phases[0].length <= phases[1].start);
    }

    #[test]
    fn an_event_is_in_microseconds() {
        let phase = Phase::at("decode", Duration::from_millis(2), Duration::from_nanos(1500), &[("rows", 32)]);
        let expected =
            json!({"ph": "X", "pid": 1, "tid": 1, "name": "decode", "ts": 2000.0, "dur": 1.5, "args": {"rows": 32}});
        assert_eq!(event(&phase), expected);
    }

    #[test]
    fn nobody_pays_where_nobody_listens() {
        let subscriber = tracing_subscriber::registry().with(LevelFilter::WARN);
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::info_span!(target: "phase", "decode").is_disabled());
        });
    }
}
