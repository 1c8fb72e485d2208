//! Prompts in, samples out: prompt sources, the sampling engine, collectors, and the daemon.

pub mod collector;
mod config;
pub mod engine;
mod error;
pub mod prompts;
pub mod service;

pub use config::{Config, EngineConfig, check_sampler};
pub use error::{Error, Result};
