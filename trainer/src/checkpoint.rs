//! Checkpoints: everything that a run needs to continue as if it had never stopped.
//!
//! A checkpoint is a folder `step_N` with the adapter and the optimizer's state as safetensors, and the rest as JSON.
//! It is written under a temporary name, synced and renamed, so a folder named `step_N` is always complete. Randomness
//! is derived from seeds and addresses ([`schema::Seed`]) and samples are in the store, so neither is saved here.

pub(crate) mod bucket;
pub(crate) mod restore;
pub(crate) mod tensors;

use crate::files::write_synced;
use crate::guard::Memory;
use crate::{Error, Result};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The state of a run that is not tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Last finished step; 0 before the first.
    pub step: u64,
    /// Content hash of the policy, checked after restoring.
    pub policy_hash: String,
    /// State of the algorithm.
    pub algorithm: serde_json::Value,
    /// State of the optimizer that is not tensors.
    pub optimizer: serde_json::Value,
    /// Tokens sampled so far.
    pub generated_tokens: u64,
    /// Tokens seen so far, prompts included (TRL's `num_tokens`).
    pub num_tokens: u64,
    /// Samples of the run so far.
    pub samples: u64,
    /// Seconds of training so far, summed over every resume.
    pub train_seconds: f64,
    /// Held-out metrics before the first step.
    pub before: Metrics,
    /// State of the guards.
    #[serde(default)]
    pub guard: Memory,
}

impl State {
    /// Returns the state before the first step.
    pub(crate) fn start(policy_hash: &str) -> Self {
        Self {
            step: 0,
            policy_hash: policy_hash.to_owned(),
            algorithm: serde_json::Value::Null,
            optimizer: serde_json::Value::Null,
            generated_tokens: 0,
            num_tokens: 0,
            samples: 0,
            train_seconds: 0.0,
            before: Metrics::new(),
            guard: Memory::default(),
        }
    }
}

/// A checkpoint in memory.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// State that is not tensors.
    pub state: State,
    /// Named tensors, by the name of their file: `adapter`, `optimizer`, `critic`, …
    parts: BTreeMap<String, Vec<(String, Tensor)>>,
}

/// File of a checkpoint for everything but tensors.
pub(crate) const STATE: &str = "state.json";
const EXTENSION: &str = "safetensors";
/// Folder of the checkpoints in a run folder.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// Returns the name of a step's checkpoint folder.
pub(crate) fn name_of(step: u64) -> String {
    format!("step_{step}")
}

/// Parses the step from the name of a checkpoint folder: the inverse of [`name_of`].
pub(crate) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step_")?.parse().ok()
}

/// Checkpoints of one run.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    keep: usize,
}

impl Snapshots {
    /// Returns the checkpoints of this run folder; the newest `keep` stay (0: all).
    pub(crate) fn new(run_folder: &Path, keep: usize) -> Self {
        Self { folder: run_folder.join(CHECKPOINTS), keep }
    }

    /// Writes a checkpoint, removes the oldest beyond the limit, and returns the new folder.
    pub(crate) fn save(&self, snapshot: &Snapshot) -> Result<PathBuf> {
        let name = name_of(snapshot.state.step);
        let (partial, whole) = (self.folder.join(format!(".{name}.partial")), self.folder.join(&name));
        let written = self.write(snapshot, &partial, &whole);
        if written.is_err() {
            // Best effort: the disk may be full, and the first error is the one to tell.
            let _ = fs::remove_dir_all(&partial);
        }
        written.map_err(|error| {
            Error::runtime(format!(
                "cannot save the checkpoint {}: {error}; the run's earlier checkpoints are untouched",
                whole.display()
            ))
        })?;
        self.drop_oldest();
        Ok(whole)
    }

    fn write(&self, snapshot: &Snapshot, partial: &Path, whole: &Path) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        if partial.exists() {
            fs::remove_dir_all(partial)?;
        }
        fs::create_dir(partial)?;
        for (name, part) in &snapshot.parts {
            write_synced(&partial.join(name).with_extension(EXTENSION), &tensors::to_bytes(part)?)?;
        }
        write_synced(&partial.join(STATE), serde_json::to_string_pretty(&snapshot.state)?.as_bytes())?;
        if whole.exists() {
            fs::remove_dir_all(whole)?;
        }
        fs::rename(partial, whole)?;
        fs::File::open(&self.folder)?.sync_all()
    }

    /// Returns the steps that have a checkpoint, in ascending order.
    pub(crate) fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut steps: Vec<u64> = entries.filter_map(|entry| step_of(entry.file_name().to_str()?)).collect();
        steps.sort_unstable();
        steps
    }

    /// Returns the folder of a step's checkpoint.
    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(name_of(step))
    }

    /// Reads the newest checkpoint; `None` if there is none.
    pub(crate) fn newest(&self) -> Result<Option<Snapshot>> {
        self.steps().last().map(|step| Snapshot::read(&self.path(*step))).transpose()
    }

    fn drop_oldest(&self) {
        let steps = self.steps();
        let surplus = if self.keep == 0 { 0 } else { steps.len().saturating_sub(self.keep) };
        for step in &steps[..surplus] {
            if let Err(error) = fs::remove_dir_all(self.path(*step)) {
                tracing::warn!("cannot remove the old checkpoint {}: {error}", self.path(*step).display());
            }
        }
    }
}

impl Snapshot {
    /// Returns a checkpoint without tensors.
    pub(crate) fn new(state: State) -> Self {
        Self { state, parts: BTreeMap::new() }
    }

    /// Adds named tensors under the name of their file.
    pub(crate) fn insert(&mut self, name: &str, tensors: Vec<(String, Tensor)>) {
        self.parts.insert(name.to_owned(), tensors);
    }

    /// Returns the tensors of one file.
    pub(crate) fn part(&self, name: &str) -> Result<&[(String, Tensor)]> {
        self.parts.get(name).map(|part| &part[..]).ok_or_else(|| missing(name))
    }

    /// Removes and returns the tensors of one file.
    pub(crate) fn take(&mut self, name: &str) -> Result<Vec<(String, Tensor)>> {
        self.parts.remove(name).ok_or_else(|| missing(name))
    }

    /// Returns the bytes of each of its tensor files, by name.
    pub(crate) fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let bytes = |(name, part): (&String, &Vec<(String, Tensor)>)| Ok((name.clone(), tensors::to_bytes(part)?));
        let files: std::io::Result<Vec<_>> = self.parts.iter().map(bytes).collect();
        files.map_err(|error| Error::runtime(format!("cannot pack a checkpoint: {error}")))
    }

    /// Rebuilds a checkpoint from its state and the bytes of its tensor files: the inverse of [`Snapshot::files`].
    pub(crate) fn of_files(state: State, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let mut snapshot = Self::new(state);
        for (name, bytes) in files {
            snapshot.insert(name, tensors::from_bytes(bytes, name)?);
        }
        Ok(snapshot)
    }

    /// Reads a checkpoint folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        let problem = |error: &dyn std::fmt::Display| {
            Error::input(format!("{}: {error}; is this a checkpoint folder of a run?", path.display()))
        };
        let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
        let mut snapshot = Self::new(serde_json::from_str(&text).map_err(|error| problem(&error))?);
        for entry in fs::read_dir(folder).map_err(|error| problem(&error))?.flatten() {
            let file = entry.path();
            let name = file.file_stem().and_then(|stem| stem.to_str());
            if let Some(name) = name.filter(|_| file.extension().is_some_and(|extension| extension == EXTENSION)) {
                snapshot.insert(name, tensors::read(&file)?);
            }
        }
        Ok(snapshot)
    }
}

fn missing(part: &str) -> Error {
    Error::input(format!("the checkpoint has no {part}.{EXTENSION}; was it made with another config?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(step: u64) -> Snapshot {
        let state = State {
            step,
            optimizer: serde_json::json!({"updates": 3}),
            train_seconds: 0.1 + 0.2,
            ..State::start("abc")
        };
        let tensor = Tensor::from_slice(&[1.5f32, -0.0, 1e-30]).reshape([1, 3]);
        let mut snapshot = Snapshot::new(state);
        snapshot.insert("optimizer", vec![("a.first".to_owned(), tensor.copy())]);
        snapshot.insert("adapter", vec![("a.lora_A".to_owned(), tensor)]);
        snapshot
    }

    #[test]
    fn what_is_saved_comes_back_bit_for_bit_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(folder.path(), 2);
        assert!(snapshots.newest().unwrap().is_none());
        for step in [1, 2, 10] {
            snapshots.save(&snapshot(step)).unwrap();
        }
        assert_eq!(snapshots.steps(), [2, 10]);
        let newest = snapshots.newest().unwrap().unwrap();
        assert_eq!(newest.state, snapshot(10).state);
        let [adapter, expected] =
            [&newest, &snapshot(10)].map(|snapshot| snapshot.part("adapter").unwrap()[0].1.copy());
        assert_eq!(newest.part("adapter").unwrap()[0].0, "a.lora_A");
        assert!(adapter.equal(&expected));
        assert!(newest.part("critic").unwrap_err().is_input());
    }

    #[test]
    fn a_half_written_checkpoint_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(folder.path(), 2);
        snapshots.save(&snapshot(1)).unwrap();
        fs::create_dir(folder.path().join("checkpoints/.step_2.partial")).unwrap();
        assert_eq!(snapshots.steps(), [1]);
    }
}
