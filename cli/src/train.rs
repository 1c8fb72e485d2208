//! `proxrl train`: runs a config, or goes on with a run.
#![expect(clippy::print_stdout, reason = "the closing table is the program's output")]

use crate::screen::{self, Screen, Usage, clock, thousands};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use trainer::config::{Config, Override};
use trainer::{Outcome, Summary, Target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config file, such as configs/quickstart.toml.
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Change one key of the config, such as `rollout.group_size=4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Override>,
    /// The run folder; by default `runs/` and the name of the config.
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder from its newest checkpoint.
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
}

/// Set by the first Ctrl-C: finish the step, save, leave.
static STOP: AtomicBool = AtomicBool::new(false);

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (config, target) = match (&args.config, &args.resume) {
        (_, Some(folder)) => (trainer::resumed_config(folder, &args.set)?, Target::Resume(folder.clone())),
        (Some(path), None) => {
            let config = Config::load(path, &args.set)?;
            let target = args.out.clone().map_or_else(|| Target::New(free_folder(path)), Target::New);
            (config, target)
        }
        (None, None) => return Err(Usage("give a config file or --resume DIR".into()).into()),
    };
    listen_for_interrupts()?;
    let mut screen = Screen::new();
    let outcome = trainer::train(&config, &target, &mut screen, &STOP)?;
    match outcome {
        Outcome::Finished(summary) => {
            println!("{}", closing(&config, &summary));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { folder, step } => {
            screen::note(&format!(
                "interrupted after step {step} of {}; everything is saved. Go on with\n  proxrl train --resume {}",
                config.steps,
                folder.display()
            ));
            Ok(ExitCode::from(130))
        }
    }
}

/// `runs/NAME`, or `runs/NAME-2` and so on where that is taken: an earlier run is never written over.
fn free_folder(config: &Path) -> PathBuf {
    let name = config.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned());
    let numbered = (2u32..).map(|number| PathBuf::from(format!("runs/{name}-{number}")));
    let first = std::iter::once(PathBuf::from(format!("runs/{name}")));
    first.chain(numbered).find(|folder| !folder.exists()).expect("some number is free")
}

fn listen_for_interrupts() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            screen::note("interrupted again: leaving at once; the newest checkpoint stands");
            std::process::exit(130);
        }
        screen::note("interrupted: finishing this step and saving; press Ctrl-C again to leave at once");
    })?;
    Ok(())
}

fn closing(config: &Config, summary: &Summary) -> String {
    let percent = |share: Option<f64>| share.map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let store = &config.store.url;
    let folder = summary.folder.display();
    let rows = [
        (
            "held-out accuracy",
            format!(
                "{} before, {} after ({} prompts, greedy)",
                percent(summary.accuracy_before),
                percent(summary.accuracy_after),
                summary.held_out
            ),
        ),
        (
            "mean reward",
            format!("{:.3} in the first 10 steps, {:.3} in the last 10", summary.reward_first10, summary.reward_last10),
        ),
        (
            "generated",
            format!("{} tokens in {} samples", thousands(summary.generated_tokens), thousands(summary.samples)),
        ),
        (
            "time",
            format!(
                "{} training, peak memory {:.0} MB",
                clock(Duration::from_secs_f64(summary.train_seconds)),
                summary.peak_rss_mb
            ),
        ),
        ("adapter", format!("active rank {:.1} of {}", summary.active_rank, config.model.adapter.rank())),
        ("samples are in", format!("{store}, run {}", summary.run)),
        ("run folder", format!("{folder} (reward.svg, metrics.jsonl, checkpoints)")),
        ("try next", format!("proxrl replay stats --store {store} --run {}", summary.run)),
    ];
    format!("\n{}", screen::table(&rows))
}
