//! `proxrl rollout`: samples for others.

mod serve;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Answer requests over HTTP, in the shape of OpenAI's API, until SIGTERM or Ctrl-C.
    Serve(serve::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.verb {
        Verb::Serve(args) => serve::run(args),
    }
}
