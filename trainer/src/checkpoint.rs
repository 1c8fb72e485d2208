//! Checkpoints: everything that a run needs to continue as if it had never stopped.
//!
//! A checkpoint is a folder `step_N` with the adapter and the optimizer's state as safetensors, and the rest as JSON,
//! the SHA-256 of each other file among it. It is written under a temporary name, synced and renamed, and renamed again
//! before it is removed, so a folder named `step_N` is always complete. Randomness is derived from seeds and addresses ([`schema::Seed`]) and samples are in the store, so neither is saved here.

pub(crate) mod bucket;
pub(crate) mod restore;
pub(crate) mod tensors;

use crate::files::write_synced;
use crate::guard::Memory;
use crate::{Error, Result};
use schema::{Metrics, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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

/// `state.json`: the state, and the SHA-256 of each tensor file.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    #[serde(flatten)]
    state: State,
    /// Hexadecimal hashes by file name; checkpoints of older versions have none.
    #[serde(default)]
    sha256: BTreeMap<String, String>,
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
        self.tidy();
        Ok(whole)
    }

    fn write(&self, snapshot: &Snapshot, partial: &Path, whole: &Path) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        if partial.exists() {
            fs::remove_dir_all(partial)?;
        }
        fs::create_dir(partial)?;
        let mut sha256 = BTreeMap::new();
        for (name, part) in &snapshot.parts {
            let (file, bytes) = (format!("{name}.{EXTENSION}"), tensors::to_bytes(part)?);
            write_synced(&partial.join(&file), &bytes)?;
            sha256.insert(file, hex(&Sha256::digest(&bytes)));
        }
        let state = StateFile { state: snapshot.state.clone(), sha256 };
        write_synced(&partial.join(STATE), serde_json::to_string_pretty(&state)?.as_bytes())?;
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
    ///
    /// # Errors
    /// If it is damaged; the error names the newest one that is whole.
    pub(crate) fn newest(&self) -> Result<Option<Snapshot>> {
        let steps = self.steps();
        let Some((newest, older)) = steps.split_last() else { return Ok(None) };
        Snapshot::read(&self.path(*newest)).map(Some).map_err(|error| {
            let whole = older.iter().rev().find(|step| Snapshot::read(&self.path(**step)).is_ok());
            let way = whole.map_or_else(
                || "there is no older one that is whole".to_owned(),
                |step| format!("to go on from step {step} instead, remove the folder {}", self.path(*newest).display()),
            );
            if error.is_input() { Error::input(format!("{error}; {way}")) } else { error }
        })
    }

    /// Removes the oldest beyond the limit, and what a process left that was killed while it wrote or removed one.
    pub(crate) fn tidy(&self) {
        let steps = self.steps();
        let surplus = if self.keep == 0 { 0 } else { steps.len().saturating_sub(self.keep) };
        for step in &steps[..surplus] {
            let (whole, old) = (self.path(*step), self.folder.join(format!(".{}.old", name_of(*step))));
            if let Err(error) = fs::rename(&whole, &old) {
                tracing::warn!("cannot remove the old checkpoint {}: {error}", whole.display());
            }
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".step_") {
                let _ = fs::remove_dir_all(entry.path());
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
        let StateFile { state, sha256 } = serde_json::from_str(&text).map_err(|error| problem(&error))?;
        if folder.file_name().and_then(|name| step_of(name.to_str()?)).is_some_and(|step| step != state.step) {
            return Err(Error::input(format!("{} is damaged: it is of step {}", path.display(), state.step)));
        }
        let mut snapshot = Self::new(state);
        for (name, expected) in &sha256 {
            let file = folder.join(name);
            let bytes = fs::read(&file).map_err(|error| Error::input(format!("{}: {error}", file.display())))?;
            if hex(&Sha256::digest(&bytes)) != *expected {
                return Err(Error::input(format!(
                    "{} is damaged: its SHA-256 is not the one that {STATE} has",
                    file.display()
                )));
            }
        }
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
    fn a_half_written_or_half_removed_checkpoint_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(folder.path(), 2);
        snapshots.save(&snapshot(1)).unwrap();
        for left in [".step_2.partial", ".step_0.old"] {
            fs::create_dir(folder.path().join("checkpoints").join(left)).unwrap();
        }
        assert_eq!(snapshots.steps(), [1]);
        snapshots.tidy();
        let left = fs::read_dir(folder.path().join("checkpoints")).unwrap().flatten();
        assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["step_1"]);
    }

    #[test]
    fn a_damaged_file_is_named_and_so_is_the_newest_whole_checkpoint() {
        for file in ["adapter.safetensors", "optimizer.safetensors"] {
            let folder = tempfile::tempdir().unwrap();
            let snapshots = Snapshots::new(folder.path(), 0);
            for step in [1, 2, 3] {
                snapshots.save(&snapshot(step)).unwrap();
            }
            for step in [2, 3] {
                let path = snapshots.path(step).join(file);
                let mut bytes = fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&path, bytes).unwrap();
            }
            let error = snapshots.newest().unwrap_err();
            assert!(error.is_input(), "{error}");
            let said = error.to_string();
            assert!(said.contains(&format!("step_3/{file} is damaged")), "{said}");
            assert!(said.contains("to go on from step 1 instead, remove the folder"), "{said}");
        }
    }

    #[test]
    fn a_checkpoint_without_hashes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(folder.path(), 0);
        snapshots.save(&snapshot(1)).unwrap();
        let path = snapshots.path(1).join(STATE);
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(state.as_object_mut().unwrap().remove("sha256").unwrap().as_object().unwrap().len(), 2);
        fs::write(&path, state.to_string()).unwrap();
        assert_eq!(snapshots.newest().unwrap().unwrap().state, snapshot(1).state);
    }
}
