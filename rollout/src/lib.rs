//! Sampling: sources of prompts, the engine with continuous batching, collectors for training, and the daemon.

pub mod collector;
mod config;
pub mod engine;
mod error;
pub mod prompts;
pub mod service;

pub use config::{Config, EngineConfig, check_sampler};
pub use error::{Error, Result};
