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
    /// Answer requests over HTTP, in the shape of OpenAI's API, until SIGTERM or Ctrl-C.
    Serve(serve::Args),
    /// Draw samples for the runs of a store, as one worker of many.
    Work(work::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.daemon {
        Daemon::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Daemon::Work(args) => work::run(args),
    }
}
