//! The run folder: its files, its creation, and the run's row in the store that it points to.

use crate::checkpoint::State;
use crate::config::Config;
use crate::files::write_atomically;
use crate::report::metrics;
use crate::report::plot::{self, Curve, HeatMap};
use crate::{Error, Result};
use model::adapter::Adapter;
use schema::Metrics;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use store::{NewRun, RunId, RunStatus, Store};

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

/// The run's row in the store: `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredRun {
    run: i64,
    store: String,
}

/// Metrics to plot: the first of these that a run has.
const CURVES: [&str; 2] = ["reward", "loss"];

/// Mean of the numbers; `None` if there are none.
fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| metrics::mean(numbers))
}

/// An existing run folder.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
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
    /// If the metrics cannot be read, or a plot cannot be written.
    pub(super) fn plot_curve(&self) -> Result<()> {
        let rows = self.logged()?;
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

    /// The rows of `metrics.jsonl`.
    fn logged(&self) -> Result<Vec<serde_json::Value>> {
        let path = self.metrics();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line =
            |line| serde_json::from_str(line).map_err(|error| Error::runtime(format!("{}: {error}", path.display())));
        text.lines().map(line).collect()
    }

    /// Writes `summary.json` and returns its content.
    ///
    /// # Errors
    /// If the metrics cannot be read, or the file cannot be written.
    pub(super) fn summarise(
        &self,
        config: &Config,
        held_out: usize,
        state: &State,
        after: &Metrics,
        run: RunId,
        adapter: &Adapter,
    ) -> Result<Summary> {
        let rows = self.logged()?;
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

/// Creates or reopens the run folder, the store and the run's row in it. A new folder that cannot be used is removed.
///
/// # Errors
/// If a new folder is not empty or not writable, or the config names another store than a stopped run's.
pub(super) fn open(config: &Config, target: &Target, identity: &str) -> Result<(RunFolder, Store, RunId)> {
    match target {
        Target::Resume(path) => {
            let folder = RunFolder { path: path.clone() };
            let stored = fs::read_to_string(path.join("run.json"))
                .ok()
                .and_then(|text| serde_json::from_str::<StoredRun>(&text).ok());
            match stored {
                Some(stored) if stored.store == store::without_password(&config.store.url) => {
                    let (store, run) = (Store::open(&config.store.url)?, RunId(stored.run));
                    store.run(run)?;
                    store.finish_run(run, RunStatus::Running)?;
                    Ok((folder, store, run))
                }
                Some(stored) => Err(Error::input(format!(
                    "the run's samples are in {}, but the config now says {}; a run cannot change its store",
                    stored.store,
                    store::without_password(&config.store.url)
                ))),
                // It was killed before it had sampled anything.
                None => begin(config, folder, identity),
            }
        }
        Target::New(path) => {
            let taken = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
            if taken {
                return Err(Error::input(format!(
                    "{} is not empty; go on with its run by --resume {0}, or choose another --out",
                    path.display()
                )));
            }
            let made = make_folders(path)?;
            let begun = begin(config, RunFolder { path: path.clone() }, identity);
            if begun.is_err() {
                // Only folders that this call made, and only if still empty.
                made.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
            }
            begun
        }
    }
}

fn begin(config: &Config, folder: RunFolder, identity: &str) -> Result<(RunFolder, Store, RunId)> {
    let resolved = config.resolved()?;
    let store = Store::open(&config.store.url)?;
    let name = folder.path.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    write_atomically(&folder.path.join("config.toml"), resolved.as_bytes())?;
    let run = store.begin_run(&NewRun {
        name,
        config: resolved,
        program_version: env!("CARGO_PKG_VERSION").into(),
        out_dir: folder.path.clone(),
        model_hash: identity.into(),
        started_at: SystemTime::now(),
    })?;
    let stored = StoredRun { run: run.0, store: store::without_password(&config.store.url) };
    let json = serde_json::to_string_pretty(&stored).map_err(|error| Error::runtime(error.to_string()))?;
    write_atomically(&folder.path.join("run.json"), json.as_bytes())?;
    Ok((folder, store, run))
}

/// Creates a folder and its missing parents. Returns those that it created, outermost first.
fn make_folders(path: &Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .map(Path::to_path_buf)
        .collect();
    fs::create_dir_all(path).map_err(|error| {
        Error::input(format!("cannot make the run folder {}: {error}; choose another with --out", path.display()))
    })?;
    // An existing folder may still refuse files.
    let probe = path.join(".probe");
    fs::write(&probe, []).and_then(|()| fs::remove_file(&probe)).map_err(|error| {
        Error::input(format!("cannot write into the run folder {}: {error}; choose another with --out", path.display()))
    })?;
    Ok(missing.into_iter().rev().collect())
}
