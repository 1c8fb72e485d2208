//! Algorithms, optimizers and the training loop.

/// Marks the time until its value is dropped as a phase of the loop, for `--profile`: a `tracing` span that costs one
/// comparison when nobody listens.
macro_rules! phase_span {
    ($name:literal $(, $field:ident = $value:expr)?) => {
        tracing::info_span!(target: "phase", $name $(, $field = $value)?).entered()
    };
}

pub mod algorithm;
pub mod batch;
pub mod behavior;
pub mod config;
mod error;
pub mod evaluate;
pub mod guard;
pub mod import;
mod judging;
pub mod lab;
mod learner;
mod measure;
pub mod objective;
pub mod optimizer;
mod plan;
pub mod plot;
mod pool;
mod preference_judge;
pub mod prox;
pub mod remote;
pub mod rescore;
mod reward_model;
mod run;
mod share;
mod snapshot;
mod source;
mod team;
#[cfg(test)]
mod testing;
pub mod tracker;

pub use error::{Error, Result};
pub use plan::{Estimate, estimate};
pub use run::{
    Observer, Outcome, Phase, Silent, Summary, Target, adapted_policy, evaluate, resumed_config, train, trained_policy,
};
pub use share::{Share, fetch_run, run_folder};
pub use snapshot::{PeftForm, export_gguf, export_hub, export_peft};
