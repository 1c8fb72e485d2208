//! `proxrl plot`: a metric of one or more runs as SVG or PNG.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use trainer::report::plot;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run folders, each with an optional name: `grpo=runs/grpo-0`. Runs of one name are averaged.
    #[arg(required = true, value_name = "[NAME=]RUN")]
    runs: Vec<Run>,
    /// The horizontal axis.
    #[arg(long, value_enum, default_value_t = Axis::Step)]
    x: Axis,
    /// The metric to plot, by its name in metrics.jsonl.
    #[arg(long, value_name = "METRIC", default_value = "reward")]
    y: String,
    /// The file to write: .svg or .png.
    #[arg(long, value_name = "FILE", default_value = "plot.svg")]
    out: PathBuf,
}

/// A run folder and its name in the legend.
#[derive(Debug, Clone)]
struct Run {
    name: String,
    folder: PathBuf,
}

impl FromStr for Run {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, folder) = match text.split_once('=') {
            Some((name, folder)) if !Path::new(text).exists() => (name.to_owned(), PathBuf::from(folder)),
            _ => {
                let folder = PathBuf::from(text);
                (folder.file_name().map_or_else(|| text.into(), |name| name.to_string_lossy().into_owned()), folder)
            }
        };
        Ok(Self { name, folder })
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Axis {
    /// Training steps.
    Step,
    /// Samples so far.
    Samples,
    /// Tokens seen, prompts included.
    Tokens,
    /// Seconds of training.
    Seconds,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runs: Vec<(String, PathBuf)> = args.runs.iter().map(|run| (run.name.clone(), run.folder.clone())).collect();
    let axis = match args.x {
        Axis::Step => plot::Axis::Step,
        Axis::Samples => plot::Axis::Samples,
        Axis::Tokens => plot::Axis::Tokens,
        Axis::Seconds => plot::Axis::Seconds,
    };
    plot::write(&plot::curve_of_runs(&runs, axis, &args.y)?, &args.out)?;
    crate::terminal::answer(&format!("{}\n", args.out.display()))?;
    Ok(())
}
