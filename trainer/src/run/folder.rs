//! The run folder: its files.

use crate::checkpoint::State;
use crate::config::Config;
use crate::files::write_atomically;
use crate::report::metrics;
use crate::report::plot::{self, Curve, HeatMap};
use crate::{Error, Result};
use model::adapter::Adapter;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use schema::Metrics;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use store::RunId;

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A folder that must be new or empty.
    New(PathBuf),
    /// The folder of a run that stopped.
    Resume(PathBuf),
}

/// Result of a finished run: `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run's number in the store.
    pub run: i64,
    /// The run folder.
    pub folder: PathBuf,
    /// Greedy held-out accuracy before the first step; absent without held-out prompts.
    pub accuracy_before: Option<f64>,
    /// Greedy held-out accuracy after the last step.
    pub accuracy_after: Option<f64>,
    /// Number of held-out prompts.
    pub held_out: usize,
    /// Loss on held-out examples before the first step; absent unless the algorithm learns from a data set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss_before: Option<f64>,
    /// Loss on held-out examples after the last step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss_after: Option<f64>,
    /// Mean reward over the first ten steps; absent without rewards.
    pub reward_first10: Option<f64>,
    /// Mean reward over the last ten steps.
    pub reward_last10: Option<f64>,
    /// Mean loss over the first ten steps; absent with rewards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss_first10: Option<f64>,
    /// Mean loss over the last ten steps; absent with rewards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss_last10: Option<f64>,
    /// Number of steps.
    pub steps: u64,
    /// Tokens sampled in training.
    pub generated_tokens: u64,
    /// Samples generated in training, or examples read.
    pub samples: u64,
    /// Seconds of training: sampling, grading, storing and updating, without held-out evaluation.
    pub train_seconds: f64,
    /// Of these, seconds of sampling, storing and rewards.
    pub rollout_seconds: f64,
    /// Of those, seconds of rewards and judges.
    pub reward_seconds: f64,
    /// Largest resident memory of the process, in MB (10^6 bytes).
    pub peak_rss_mb: f64,
    /// Mean active ranks per adapted layer.
    pub active_rank: f64,
}

/// Metrics to plot: the first of these that a run has.
const CURVES: [&str; 2] = ["reward", "loss"];

/// Mean of the numbers; `None` if there are none.
fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| metrics::mean(numbers))
}

/// An existing run folder, which this process alone writes to.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    /// The folder itself, locked for as long as the process lives.
    _lock: fs::File,
}

impl RunFolder {
    /// Locks a folder for this process.
    ///
    /// # Errors
    /// If another process has it, or it cannot be read.
    pub(super) fn lock(path: &Path) -> Result<Self> {
        let problem = |error: &dyn std::fmt::Display| {
            Error::input(format!("cannot open the run folder {}: {error}", path.display()))
        };
        let folder = fs::File::open(path).map_err(|error| problem(&error))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            // A file system without locks cannot say that another process is there.
            Ok(()) | Err(Errno::NOTSUP | Errno::NOLCK | Errno::BADF) => {
                Ok(Self { path: path.to_owned(), _lock: folder })
            }
            Err(Errno::WOULDBLOCK) => Err(Error::input(format!(
                "another process is training the run in {}; wait until it ends, or stop it with Ctrl-C there",
                path.display()
            ))),
            Err(error) => Err(problem(&error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub(super) fn alarms(&self) -> PathBuf {
        self.path.join("alarms.jsonl")
    }

    pub(super) fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Plots the reward of every logged step, or the loss of a run without rewards, as SVG and PNG.
    ///
    /// # Errors
    /// If a plot cannot be drawn or written.
    pub(super) fn plot_curve(&self) -> Result<()> {
        let rows = self.logged();
        let Some(name) = CURVES.into_iter().find(|name| rows.iter().any(|row| row.get(*name).is_some())) else {
            return Ok(());
        };
        let point = |row: &serde_json::Value| Some((row.get("step")?.as_f64()?, row.get(name)?.as_f64()?));
        let drawn = plot::draw(&Curve {
            title: format!("Mean {name}"),
            x_label: "step".into(),
            y_label: name.into(),
            series: vec![(name.into(), rows.iter().filter_map(point).collect())],
        })?;
        write_atomically(&self.path.join(name).with_extension("svg"), drawn.svg.as_bytes())?;
        write_atomically(&self.path.join(name).with_extension("png"), &drawn.png)
    }

    /// Plots the open ranks of every gated layer, as SVG and PNG; nothing without gates.
    ///
    /// # Errors
    /// If a plot cannot be written.
    pub(super) fn plot_ranks(&self, adapter: &Adapter) -> Result<()> {
        let cells: Vec<(&str, i64)> = adapter
            .layers()
            .filter(|layer| layer.gate.is_some())
            .map(|layer| (layer.name.as_str(), layer.active_rank()))
            .collect();
        if cells.is_empty() {
            return Ok(());
        }
        let drawn = plot::draw_heat_map(&HeatMap::of_layers("Open ranks", &cells))?;
        write_atomically(&self.path.join("ranks.svg"), drawn.svg.as_bytes())?;
        write_atomically(&self.path.join("ranks.png"), &drawn.png)
    }

    /// The rows of `metrics.jsonl` that can be read. A line that was damaged costs a point of a curve, and no run.
    fn logged(&self) -> Vec<serde_json::Value> {
        let text = fs::read(self.metrics()).unwrap_or_default();
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// Writes `summary.json` and returns its content.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn summarise(
        &self,
        config: &Config,
        held_out: usize,
        state: &State,
        after: &Metrics,
        run: RunId,
        adapter: &Adapter,
    ) -> Result<Summary> {
        let rows = self.logged();
        let logged = |name: &str| -> Vec<f64> {
            rows.iter().filter_map(|row| row.get(name).and_then(serde_json::Value::as_f64)).collect()
        };
        let (rewards, mut losses) = (logged("reward"), logged("loss"));
        if !rewards.is_empty() {
            losses.clear();
        }
        let summary = Summary {
            run: run.0,
            folder: self.path.clone(),
            accuracy_before: state.before.get("eval_accuracy"),
            accuracy_after: after.get("eval_accuracy"),
            held_out,
            loss_before: state.before.get("eval_loss"),
            loss_after: after.get("eval_loss"),
            reward_first10: mean(&rewards[..rewards.len().min(10)]),
            reward_last10: mean(&rewards[rewards.len().saturating_sub(10)..]),
            loss_first10: mean(&losses[..losses.len().min(10)]),
            loss_last10: mean(&losses[losses.len().saturating_sub(10)..]),
            steps: config.steps,
            generated_tokens: state.generated_tokens,
            samples: state.samples,
            train_seconds: state.train_seconds,
            rollout_seconds: logged("time/rollout_s").iter().sum(),
            reward_seconds: logged("time/reward_s").iter().sum(),
            peak_rss_mb: metrics::peak_rss_mb(),
            active_rank: adapter.active_rank(),
        };
        let json = serde_json::to_string_pretty(&summary).map_err(|error| Error::runtime(error.to_string()))?;
        write_atomically(&self.path.join("summary.json"), json.as_bytes())?;
        Ok(summary)
    }
}
