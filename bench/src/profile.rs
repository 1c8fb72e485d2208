//! Phases of a run: the `tracing` spans with which the loop marks them, received by a layer of our own.
//!
//! `proxrl train --profile FILE` writes them to a [`ChromeTrace`]; `proxrl bench` adds them up from a [`PhaseLog`]. Without
//! either, no layer is installed, and a span costs one comparison with the highest level that is enabled.

mod trace;

pub use trace::ChromeTrace;

use std::fmt;
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

/// A phase that has ended, with its start and its length.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PhaseSpan {
    /// The name of the span.
    pub(crate) name: &'static str,
    /// Time since the layer was made.
    pub(crate) start: Duration,
    pub(crate) length: Duration,
    /// Numbers that the span carries, such as that of a step.
    pub(crate) details: Vec<(&'static str, u64)>,
    /// The thread, numbered from 1 in the order of first spans.
    thread: u64,
}

impl PhaseSpan {
    /// A phase of the first thread.
    #[cfg(test)]
    pub(crate) fn at(name: &'static str, start: Duration, length: Duration, details: &[(&'static str, u64)]) -> Self {
        Self { name, start, length, details: details.to_vec(), thread: 1 }
    }
}

/// The receiver of phases.
type Sink = Arc<Mutex<dyn FnMut(PhaseSpan) + Send>>;

/// A layer that receives phases and no other spans.
pub struct PhaseLayer {
    began: Instant,
    threads: Mutex<Vec<ThreadId>>,
    sink: Sink,
}

impl PhaseLayer {
    fn new(sink: Sink) -> Self {
        Self { began: Instant::now(), threads: Mutex::default(), sink }
    }

    /// Returns the layer to install.
    pub fn filtered<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> impl Layer<S> {
        self.with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Returns the number of the current thread, in the order of first spans: 1, 2, …
    fn thread(&self) -> u64 {
        let id = std::thread::current().id();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let index = threads.iter().position(|known| *known == id).unwrap_or_else(|| {
            threads.push(id);
            threads.len() - 1
        });
        index as u64 + 1
    }
}

/// The state of a span until its end.
struct OpenSpan {
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

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for PhaseLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut details = Details::default();
        attributes.record(&mut details);
        span.extensions_mut().insert(OpenSpan { entered: Instant::now(), thread: self.thread(), details });
    }

    // A phase ends where its own thread leaves it. The closing of the span says little: a library may hold it for longer,
    // or enter it on a thread of its own, as the store's SQLite does.
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let ended = Instant::now();
        let Some(span) = context.span(id) else { return };
        let thread = self.thread();
        let mut extensions = span.extensions_mut();
        if extensions.get_mut::<OpenSpan>().is_none_or(|open| open.thread != thread) {
            return;
        }
        let Some(open) = extensions.remove::<OpenSpan>() else { return };
        let phase = PhaseSpan {
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

/// Phases in memory, to be added up.
#[derive(Clone, Default)]
pub struct PhaseLog(Arc<Mutex<Vec<PhaseSpan>>>);

impl PhaseLog {
    /// Returns the layer that fills the log.
    pub fn layer(&self) -> PhaseLayer {
        let log = Arc::clone(&self.0);
        PhaseLayer::new(Arc::new(Mutex::new(move |phase| {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(phase);
        })))
    }

    /// Returns the phases since the last call, in the order of their ends.
    pub(crate) fn take(&self) -> Vec<PhaseSpan> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    fn phases_of(work: impl FnOnce()) -> Vec<PhaseSpan> {
        let log = PhaseLog::default();
        let subscriber = tracing_subscriber::registry().with(log.layer().filtered());
        tracing::subscriber::with_default(subscriber, work);
        log.take()
    }

    #[test]
    fn phases_are_received_with_their_details_and_other_spans_are_not() {
        let phases = phases_of(|| {
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
        let phases = phases_of(|| {
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
    fn phases_are_disabled_without_a_layer() {
        let subscriber = tracing_subscriber::registry().with(LevelFilter::WARN);
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::info_span!(target: "phase", "decode").is_disabled());
        });
    }
}
