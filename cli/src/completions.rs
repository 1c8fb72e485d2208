//! `proxrl completions SHELL`: prints a script that teaches a shell the verbs and options, made from the parser itself.

use crate::{Cli, screen};
use clap::CommandFactory;
use std::io::{ErrorKind, Write};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell: `proxrl completions bash > ~/.local/share/bash-completion/completions/proxrl`
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) {
    // Into memory first: clap panics when a reader such as `head` goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "proxrl", &mut script);
    match std::io::stdout().write_all(&script) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            screen::error(&error.into());
            std::process::exit(1);
        }
        _ => {}
    }
}
