//! `proxrl eval`: answers the held-out prompts of a run.

use crate::terminal::{TrainingScreen, Usage, answer, table};
use std::path::{Path, PathBuf};
use trainer::config::{Config, Override};
use trainer::{Bucket, Observer};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A run folder or the URL of one (its newest checkpoint answers), or a config file (the untouched model answers).
    target: PathBuf,
    /// Change one key of the config, such as `evaluate.samples=8`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<Override>,
    /// Also compare the answers with those of another policy: `base`, the untouched model; `checkpoints`, every one of
    /// this run; or the folder of a run or a checkpoint. May be given several times.
    #[arg(long, value_name = "POLICY")]
    against: Vec<String>,
    /// Start the programs and reach the addresses that the config of a run at a URL names.
    #[arg(long)]
    trust: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Refuses a config from a URL that starts programs or sends samples away, unless it is trusted.
///
/// # Errors
///
/// Names what the config would reach.
pub(crate) fn check_trust(place: &Path, config: &Config, trust: bool) -> anyhow::Result<()> {
    let found = config.reaches_out();
    if trust || found.is_empty() || !place.to_str().is_some_and(Bucket::is_url) {
        return Ok(());
    }
    Err(Usage(format!(
        "the config at {} names what this machine would start or send samples to: {}; say --trust if you trust whoever can write there",
        place.display(),
        found.join("; ")
    ))
    .into())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let target = trainer::run_folder(&args.target)?;
    let (mut config, checkpoint) = if target.is_dir() {
        (trainer::resumed_config(&target, &args.set)?, Some(target.as_path()))
    } else {
        (Config::load(&target, &args.set)?, None)
    };
    check_trust(&args.target, &config, args.trust)?;
    if !args.against.is_empty() {
        config.evaluate.against.clone_from(&args.against);
    }
    let mut screen = TrainingScreen::new();
    let metrics = trainer::evaluate(&config, checkpoint, &mut screen)?;
    screen.end();
    if metrics.iter().next().is_none() {
        return Err(Usage("this config has no held-out prompts; its [prompts] table must set some aside".into()).into());
    }
    if args.json {
        answer(&format!("{}\n", serde_json::to_string(&metrics)?))?;
    } else {
        let rows: Vec<(&str, String)> = metrics.iter().map(|(name, value)| (name, format!("{value:.4}"))).collect();
        answer(&table::pairs(&rows))?;
    }
    Ok(())
}
