//! Algorithms, optimizers and the training loop.

pub mod algorithm;
pub mod batch;
pub mod behavior;
pub mod config;
mod error;
pub mod evaluate;
pub mod guard;
pub mod import;
pub mod lab;
mod learner;
mod measure;
pub mod objective;
pub mod optimizer;
mod plan;
pub mod plot;
pub mod prox;
pub mod remote;
pub mod rescore;
mod reward_model;
mod run;
mod snapshot;
mod source;
#[cfg(test)]
mod testing;
pub mod tracker;

pub use error::{Error, Result};
pub use plan::{Estimate, estimate};
pub use run::{Observer, Outcome, Phase, Silent, Summary, Target, evaluate, resumed_config, train, trained_policy};
pub use snapshot::{PeftForm, export_gguf, export_hub, export_peft};
