//! `proxrl rollout`: sampling in processes of its own.

mod serve;
mod work;

use clap::Subcommand;
use std::process::ExitCode;

/// The options of `proxrl rollout`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    daemon: Daemon,
}

#[derive(Debug, Subcommand)]
enum Daemon {
    /// Serve an OpenAI-compatible API over HTTP until SIGTERM or Ctrl-C.
    Serve(serve::Args),
    /// Sample for the runs of a store, as one of many workers.
    Work(work::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.daemon {
        Daemon::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Daemon::Work(args) => work::run(args),
    }
}
