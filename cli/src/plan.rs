//! `proxrl plan`: samples, tokens and memory of a config, computed before a run.

use crate::terminal::{answer, table, thousands};
use std::path::PathBuf;
use trainer::config::{Config, Override};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config file.
    config: PathBuf,
    /// Change one key of the config; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Override>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config, &args.set)?;
    let estimate = trainer::estimate(&config)?;
    let megabytes = |bytes: u64| format!("{} MB", thousands(bytes.div_ceil(1_000_000)));
    let rollout = &config.rollout;
    let rows = [
        (
            "one step",
            match estimate.samples_per_prompt {
                0 => format!("{} rows of the data set", rollout.prompts_per_step),
                samples => format!(
                    "{} prompts x {samples} samples = {} samples",
                    rollout.prompts_per_step, estimate.samples_per_step
                ),
            },
        ),
        (
            "updates in a step",
            format!(
                "{} (micro-batches of at most {} tokens)",
                estimate.updates_per_step,
                thousands(config.micro_batch_tokens as u64)
            ),
        ),
        (
            "whole run",
            format!(
                "{} steps, {} samples, at most {} drawn tokens",
                config.steps,
                thousands(estimate.samples),
                thousands(estimate.max_generated_tokens)
            ),
        ),
        ("held-out prompts", thousands(estimate.held_out as u64)),
        (
            "parameters",
            format!("{} frozen, {} trained", thousands(estimate.parameters), thousands(estimate.trained_parameters)),
        ),
        ("memory: weights", megabytes(estimate.weight_bytes)),
        ("memory: adapter, gradients, optimizer", megabytes(estimate.adapter_bytes)),
        ("memory: keys and values", megabytes(estimate.cache_bytes)),
        ("memory: one micro-batch", megabytes(estimate.activation_bytes)),
        ("memory: peak, about", megabytes(estimate.peak_bytes())),
    ];
    answer(&format!("{}\nEvery key, defaults included:\n\n{}\n", table::pairs(&rows), config.resolved()?))?;
    Ok(())
}
