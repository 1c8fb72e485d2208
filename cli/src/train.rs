//! `proxrl train`: trains from a config, or resumes a run.

use crate::eval::check_trust;
use crate::signals::{self, STOP};
use crate::terminal::{self, TrainingScreen, Usage, clock, table, thousands};
use bench::profile::ChromeTrace;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use trainer::config::{Config, Override};
use trainer::{Bucket, Outcome, Summary, Target};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config file, such as configs/quickstart.toml.
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Change one key of the config, such as `rollout.group_size=4`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Override>,
    /// The run folder; by default `runs/` and the name of the config, or of the run that is copied from a URL.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Resume the run in this folder from its newest checkpoint, or a run that is shared at a URL, in a new folder.
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Start the programs and reach the addresses that the config of a run at a URL names.
    #[arg(long, requires = "resume")]
    trust: bool,
    /// Write the start and the duration of each phase to this file, as a Chrome trace: open it in
    /// <https://ui.perfetto.dev> or `chrome://tracing`.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl Args {
    /// Creates the trace file of `--profile`; `None` without that option.
    ///
    /// # Errors
    ///
    /// Fails if the file of `--profile` cannot be created.
    pub(crate) fn trace(&self) -> anyhow::Result<Option<ChromeTrace>> {
        let Some(path) = &self.profile else { return Ok(None) };
        let trace = ChromeTrace::create(path).map_err(|error| {
            Usage(format!("cannot write the profile {}: {error}; --profile names a file to write", path.display()))
        })?;
        Ok(Some(trace))
    }
}

/// Trains a new or a resumed run. Its phases go into `trace`, which is closed even if the run fails.
///
/// # Errors
///
/// Returns the error of the run; if it succeeds, that of the trace.
pub(crate) fn run(args: &Args, trace: Option<&ChromeTrace>) -> anyhow::Result<ExitCode> {
    let done = train(args);
    let written = trace.map_or(Ok(()), ChromeTrace::finish);
    let code = done?;
    written?;
    Ok(code)
}

fn train(args: &Args) -> anyhow::Result<ExitCode> {
    let (config, target) = match (&args.config, &args.resume) {
        (_, Some(place)) => {
            let folder = resumed_folder(place, args.out.as_deref())?;
            let config = trainer::resumed_config(&folder, &args.set)?;
            // A copy that stayed would be taken for a run of this machine.
            check_trust(place, &config, args.trust).inspect_err(|_| trainer::forget_run(&folder))?;
            (config, Target::Resume(folder))
        }
        (Some(path), None) => {
            let config = Config::load(path, &args.set)?;
            let target = args.out.clone().map_or_else(|| Target::New(free_folder(path)), Target::New);
            (config, target)
        }
        (None, None) => return Err(Usage("give a config file or --resume DIR".into()).into()),
    };
    signals::listen(
        "interrupted: finishing this step and saving; press Ctrl-C again to leave at once",
        "interrupted again: leaving at once; the newest checkpoint stands",
    )?;
    let mut screen = TrainingScreen::new();
    let outcome = trainer::train(&config, &target, &mut screen, &STOP)?;
    match outcome {
        Outcome::Finished(summary) => {
            terminal::answer(&format!("{}\n", closing(&config, &summary)))?;
            Ok(ExitCode::SUCCESS)
        }
        // Rank 0 prints for all.
        Outcome::Followed => Ok(ExitCode::SUCCESS),
        Outcome::Interrupted { folder, step } => {
            terminal::note(&format!(
                "interrupted after step {step} of {}; everything is saved. Go on with\n  proxrl train --resume {}",
                config.steps,
                folder.display()
            ));
            Ok(ExitCode::from(130))
        }
    }
}

/// The folder of the run to resume. A run at a URL is first copied to a new folder.
fn resumed_folder(place: &Path, out: Option<&Path>) -> anyhow::Result<PathBuf> {
    let url = place.to_str().filter(|place| Bucket::is_url(place));
    match (url, out) {
        (None, None) => Ok(place.to_owned()),
        (None, Some(_)) => {
            Err(Usage("--out is for new runs and for --resume URL; a run goes on in its own folder".into()).into())
        }
        (Some(url), out) => {
            let name = url.trim_end_matches('/').rsplit('/').next().unwrap_or("run");
            let folder = out.map_or_else(|| Path::new("runs").join(name), Path::to_path_buf);
            trainer::fetch_run(place, &folder)?;
            terminal::note(&format!("copied {url} to {}", folder.display()));
            Ok(folder)
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

fn closing(config: &Config, summary: &Summary) -> String {
    let (store, run, folder) = (store::without_password(&config.store.url), summary.run, summary.folder.display());
    let drawn = summary.generated_tokens > 0;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let before_after = |before: Option<f64>, after: Option<f64>, show: &dyn Fn(f64) -> String| {
        let show = |value: Option<f64>| value.map_or("–".to_owned(), show);
        (before.or(after).is_some() || drawn).then(|| format!("{} before, {} after", show(before), show(after)))
    };
    let course = |first: Option<f64>, last: Option<f64>| {
        Some(format!("{:.3} in the first 10 steps, {:.3} in the last 10", first?, last?))
    };
    let held_out = if drawn {
        format!("({} prompts, greedy)", summary.held_out)
    } else {
        format!("({} examples)", summary.held_out)
    };
    let accuracy = before_after(summary.accuracy_before, summary.accuracy_after, &percent);
    let loss = before_after(summary.loss_before, summary.loss_after, &|loss| format!("{loss:.4}")).filter(|_| !drawn);
    let rows: [(&str, Option<String>); 10] = [
        ("held-out accuracy", accuracy.map(|text| format!("{text} {held_out}"))),
        ("held-out loss", loss.map(|text| format!("{text} {held_out}"))),
        ("mean reward", course(summary.reward_first10, summary.reward_last10)),
        ("mean loss", course(summary.loss_first10, summary.loss_last10)),
        (
            if drawn { "generated" } else { "learned from" },
            Some(if drawn {
                format!("{} tokens in {} samples", thousands(summary.generated_tokens), thousands(summary.samples))
            } else {
                format!("{} completions of the data set", thousands(summary.samples))
            }),
        ),
        ("time", Some(format!("{}, peak memory {:.0} MB", time_split(summary, drawn), summary.peak_rss_mb))),
        ("adapter", Some(format!("active rank {:.1}{}", summary.active_rank, started_at(config)))),
        ("samples are in", drawn.then(|| format!("{store}, run {run}"))),
        (
            "run folder",
            Some(format!("{folder} ({}.svg, metrics.jsonl, checkpoints)", if drawn { "reward" } else { "loss" })),
        ),
        (
            "try next",
            Some(if drawn {
                format!("proxrl replay stats --store {store} --run {run}")
            } else {
                format!("proxrl eval {folder}")
            }),
        ),
    ];
    let rows: Vec<(&str, String)> = rows.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
    format!("\n{}", table::pairs(&rows))
}

/// Training time, and with `drawn` its split into sampling, rewards and learning.
fn time_split(summary: &Summary, drawn: bool) -> String {
    let time = |seconds: f64| clock(Duration::from_secs_f64(seconds.max(0.0)));
    let whole = format!("{} training", time(summary.train_seconds));
    if !drawn {
        return whole;
    }
    let sampling = time(summary.rollout_seconds - summary.reward_seconds);
    let learning = time(summary.train_seconds - summary.rollout_seconds);
    format!("{whole} ({sampling} sampling, {} reward, {learning} learning)", time(summary.reward_seconds))
}

fn started_at(config: &Config) -> String {
    config.model.adapter.rank().map_or_else(String::new, |rank| format!(" of {rank}"))
}
