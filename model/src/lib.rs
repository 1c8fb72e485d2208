//! Networks, adapters, weights and tokenizers, shared by the sampler and the trainer.

pub mod adapter;
pub mod architecture;
pub mod attention;
pub mod backend;
pub mod cache;
pub mod chat_template;
mod config;
mod critic;
pub mod device;
pub mod dimensions;
mod error;
pub mod export;
pub mod family;
mod files;
mod gguf;
pub mod hub;
mod kernel;
mod logit_head;
pub mod logprob;
pub mod packed;
mod policy;
pub mod tokenizer;
mod trace;
pub mod weights;

pub use config::Config;
pub use critic::{Critic, Values};
pub use error::{Error, Result};
pub use logit_head::LogitHead;
pub use policy::{Divergence, Evaluation, Policy};
