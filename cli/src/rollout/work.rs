//! `proxrl rollout work`: a worker that samples for trainers, through the store.

use crate::signals::{self, STOP};
use crate::terminal::{Bar, note, thousands};
use std::path::PathBuf;
use std::process::ExitCode;
use trainer::config::{Config, Override};
use trainer::sampling::{Work, Worked, work};

/// The options of `work`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store that the jobs are in: `postgres://USER@HOST/DATABASE`, or `sqlite://FILE` on one machine.
    #[arg(long, value_name = "URL")]
    store: String,
    /// The config of the run: a worker has the same model and adapter, and `[collector.remote]` sets the length of its
    /// leases.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Change one key of the config, such as `rollout.engine.max_running=128`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Override>,
    /// Work for this run alone, by name or number; otherwise for every running one with the same base model.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// The name of this worker; by default the machine's name and the process's number.
    #[arg(long)]
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config, &args.set)?;
    let name = args.name.clone().unwrap_or_else(default_name);
    signals::listen(
        "stopped: finishing the job in hand; once more to leave at once",
        "stopped again: leaving at once; the job in hand is given to another when its lease ends",
    )?;
    let asked = Work { store: args.store.clone(), name: name.clone(), run: args.run.clone() };
    note(&format!("{name} draws for {}", store::without_password(&args.store)));
    let bar = Bar::new("waiting for jobs");
    let worked = work(&config, &asked, &STOP, &mut |worked| bar.say(in_words(worked)))?;
    drop(bar);
    note(&format!("{name} leaves: {}", in_words(&worked)));
    Ok(ExitCode::SUCCESS)
}

fn in_words(worked: &Worked) -> String {
    let Worked { jobs, samples, tokens, refused } = *worked;
    let late = if refused == 0 { String::new() } else { format!("; {refused} jobs were done by others first") };
    format!("{} jobs, {} samples, {} tokens{late}", thousands(jobs), thousands(samples), thousands(tokens))
}

fn default_name() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = if machine.trim().is_empty() { "worker" } else { machine.trim() };
    format!("{machine}-{}", std::process::id())
}
