//! `proxrl completions SHELL`: a script that completes verbs and options in a shell, made from the parser itself.

use crate::{Cli, terminal};
use clap::CommandFactory;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell: `proxrl completions bash > ~/.local/share/bash-completion/completions/proxrl`
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Into memory first: clap panics when a reader such as `head` goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "proxrl", &mut script);
    terminal::answer(&String::from_utf8_lossy(&script))?;
    Ok(())
}
