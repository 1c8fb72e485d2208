//! Algorithms, optimizers, and the training loop that connects sampling, rewards and the store.

/// Marks the time until its value is dropped as a phase of the loop, for `--profile`: a `tracing` span that costs one
/// comparison without a listener.
macro_rules! phase_span {
    ($name:literal $(, $field:ident = $value:expr)?) => {
        tracing::info_span!(target: "phase", $name $(, $field = $value)?).entered()
    };
}

pub mod algorithm;
pub mod batch;
pub mod behavior;
mod bucket;
mod checkpoint;
pub mod collected;
pub mod companion;
pub mod config;
mod distributed;
mod error;
pub mod evaluate;
mod export;
mod files;
pub mod grading;
pub mod guard;
pub mod import;
mod judge;
pub mod lab;
mod learner;
pub mod objective;
mod observer;
pub mod optimizer;
pub mod prox;
pub mod report;
mod run;
pub mod sampling;
#[cfg(test)]
mod testing;

pub use bucket::Bucket;
pub use checkpoint::bucket::{fetch_run, forget_run, run_folder};
pub use checkpoint::restore::{adapted_policy, resumed_config, trained_policy};
pub use error::{Error, Result};
pub use export::{PeftForm, export_gguf, export_hub, export_peft};
pub use observer::{Observer, Phase, Silent};
pub use run::{Estimate, Outcome, Summary, Target, estimate, evaluate, train};
