//! Prompts in, samples out: prompt sources, the sampling engine, and collectors.

pub mod collector;
mod config;
pub mod engine;
mod error;
pub mod prompts;

pub use config::{Config, EngineConfig, check_sampler};
pub use error::{Error, Result};
