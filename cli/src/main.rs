//! `proxrl`: the command line. It parses arguments, prints, and connects the libraries, which do the work.
//!
//! Exit codes: 0 when done, 2 when the user's input is at fault, 1 when something else failed, 130 when interrupted after
//! saving.

mod bench;
mod doctor;
mod eval;
mod export;
mod generate;
mod panics;
mod plan;
mod plot;
mod replay;
mod rollout;
mod shell;
mod signals;
mod terminal;
mod train;

use ::bench::profile::{ChromeTrace, PhaseLayer, PhaseLog};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// Fine-tune language models by reinforcement learning, and keep every sample.
#[derive(Debug, Parser)]
#[command(name = "proxrl", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Train from a config, or resume a run that stopped.
    Train(train::Args),
    /// Evaluate a run's newest checkpoint, or the untouched model, on the held-out prompts.
    Eval(eval::Args),
    /// Generate an answer to one prompt.
    Generate(generate::Args),
    /// Run the sampler in its own process: as an OpenAI-compatible server, or as a worker for remote trainers.
    Rollout(rollout::Args),
    /// Query and maintain the sample store.
    Replay(replay::Args),
    /// Export a run's adapter to a format that other programs read.
    Export(export::Args),
    /// Show the samples, tokens, memory and keys of a config before it is run.
    Plan(plan::Args),
    /// Plot a metric of one or more runs.
    Plot(plot::Args),
    /// Measure this machine's sampling and training speed with a model, against its hardware limits.
    Bench(::bench::Args),
    /// Check this machine: libtorch, device, threads, cache and model.
    Doctor,
    /// Print a completion script for a shell.
    Completions(shell::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    if matches!(verb, Verb::Train(_) | Verb::Eval(_) | Verb::Generate(_) | Verb::Rollout(_) | Verb::Bench(_)) {
        complete_environment();
    }
    let done = panics::told(|| go(verb));
    done.unwrap_or_else(|error| {
        terminal::error(&error);
        ExitCode::from(if is_input(&error) { 2 } else { 1 })
    })
}

/// Shows warnings, or the level that `PROXRL_LOG` names, and installs a layer that receives the phases of a run.
fn subscribe(phases: Option<PhaseLayer>) {
    let level = std::env::var("PROXRL_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    // A line that cannot be written is no reason to panic, which is what telling of it on the same screen would do.
    let lines = lines.log_internal_errors(false);
    tracing_subscriber::registry().with(lines.with_filter(level)).with(phases.map(PhaseLayer::filtered)).init();
}

fn go(verb: Verb) -> anyhow::Result<ExitCode> {
    let phases = PhaseLog::default();
    let trace = if let Verb::Train(args) = &verb { args.trace()? } else { None };
    subscribe(match &verb {
        Verb::Bench(_) => Some(phases.layer()),
        _ => trace.as_ref().map(ChromeTrace::layer),
    });
    match verb {
        Verb::Train(args) => train::run(&args, trace.as_ref()),
        Verb::Bench(args) => bench::run(&args, &phases).map(|()| ExitCode::SUCCESS),
        Verb::Eval(args) => eval::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Generate(args) => generate::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Rollout(args) => rollout::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Export(args) => export::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Plan(args) => plan::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Plot(args) => plot::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Doctor => doctor::run().map(|()| ExitCode::SUCCESS),
        Verb::Completions(args) => shell::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// Variables that libraries read from the environment before `main`, or once, with the values they should find.
const ENVIRONMENT: [(&str, &str); 3] = [
    // The C library: memory in pages of 2 MB where the system allows it. Weights are then read a fifth faster.
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
    // OpenMP: threads otherwise spin for milliseconds after each operation, on the very cores that our own kernels use.
    ("OMP_WAIT_POLICY", "PASSIVE"),
    // libtorch with CUDA: cuDNN's attention in bf16 makes a plan, in 65 ms, for every new length.
    ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1"),
];

/// Starts the program again in the same process, with the variables of [`ENVIRONMENT`] that the user has not set.
fn complete_environment() {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let missing: Vec<_> = ENVIRONMENT.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        // It only returns if it fails, and then all that is lost is some speed.
        let _failure = std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).envs(missing).exec();
    }
}

/// Returns true if any error of the chain says that the user's input is at fault.
fn is_input(error: &anyhow::Error) -> bool {
    error.chain().any(|link| {
        link.downcast_ref::<model::Error>().is_some_and(model::Error::is_input)
            || link.downcast_ref::<::rollout::Error>().is_some_and(::rollout::Error::is_input)
            || link.downcast_ref::<reward::Error>().is_some_and(reward::Error::is_input)
            || link.downcast_ref::<store::Error>().is_some_and(store::Error::is_input)
            || link.downcast_ref::<trainer::Error>().is_some_and(trainer::Error::is_input)
            || link.is::<::bench::Usage>()
            || link.is::<terminal::Usage>()
    })
}
