//! `proxrl`: the front door. It parses, prints and wires; the rooms behind it do the work.
//!
//! Exit codes: 0 when done, 2 when something the user gave is at fault, 1 when something failed although it was right,
//! 130 when interrupted after saving.

mod completions;
mod doctor;
mod eval;
mod export;
mod generate;
mod plan;
mod plot;
mod replay;
mod rollout;
mod screen;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

/// Fine-tune language models by reinforcement learning, and keep every sample.
#[derive(Debug, Parser)]
#[command(name = "proxrl", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Train from a config, or go on with a run that stopped.
    Train(train::Args),
    /// Answer a run's held-out prompts with its newest checkpoint, or with the untouched model.
    Eval(eval::Args),
    /// Answer one prompt.
    Generate(generate::Args),
    /// Look into the store of samples.
    Replay(replay::Args),
    /// Draw samples in a process of its own, for trainers elsewhere.
    Rollout(rollout::Args),
    /// Write a run's adapter in a format that other programs read.
    Export(export::Args),
    /// Show what a config asks for before running it: samples, tokens, memory and every key.
    Plan(plan::Args),
    /// Draw a metric of one or several runs.
    Plot(plot::Args),
    /// Check this machine: libtorch, device, threads, cache and model.
    Doctor,
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(
            std::env::var("PROXRL_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::WARN),
        )
        .without_time()
        .with_target(false)
        .init();
    let done = match verb {
        Verb::Train(args) => train::run(&args),
        Verb::Eval(args) => eval::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Generate(args) => generate::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Replay(args) => replay::run(&args),
        Verb::Rollout(args) => rollout::run(&args),
        Verb::Export(args) => export::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Plan(args) => plan::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Plot(args) => plot::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Doctor => doctor::run().map(|()| ExitCode::SUCCESS),
        Verb::Completions(args) => {
            completions::run(&args);
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        screen::error(&error);
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        ExitCode::from(if is_input(&error) { 2 } else { 1 })
    })
}

/// Whether any link of the chain says that the user's input is at fault.
fn is_input(error: &anyhow::Error) -> bool {
    error.chain().any(|link| {
        link.downcast_ref::<model::Error>().is_some_and(model::Error::is_input)
            || link.downcast_ref::<::rollout::Error>().is_some_and(::rollout::Error::is_input)
            || link.downcast_ref::<reward::Error>().is_some_and(reward::Error::is_input)
            || link.downcast_ref::<store::Error>().is_some_and(store::Error::is_input)
            || link.downcast_ref::<trainer::Error>().is_some_and(trainer::Error::is_input)
            || link.is::<screen::Usage>()
    })
}

/// Whether the reader of our output went away (`proxrl replay … | head`), which is nobody's fault.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|link| {
        link.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
