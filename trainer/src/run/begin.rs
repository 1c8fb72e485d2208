//! The beginning of a run, and its going on: the folder, the store, and the run's row in it.
//!
//! `run.json` names the store by its absolute address, and the run by the moment when it began, to the microsecond, which
//! its row in the store has too: a number alone would name another run in another store. It is written before everything
//! else, so a process that is killed at any moment leaves a folder that either counts as empty, or that a resume takes up.

use super::folder::{RunFolder, Target};
use crate::checkpoint::CHECKPOINTS;
use crate::config::Config;
use crate::files::write_atomically;
use crate::{Error, Result};
use model::Policy;
use model::chat_template::Moment;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::{NewRun, Run, RunId, RunStatus, Store};

const CONFIG: &str = "config.toml";
const IDENTITY: &str = "run.json";
/// A file that is written to find out whether the folder takes files.
const PROBE: &str = ".probe";

/// The identity of a run and its place in a store: `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredRun {
    /// Its number in the store; absent until it has a row there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<i64>,
    /// The store's URL, absolute and without a password.
    store: String,
    /// The moment when it began, in microseconds since 1970; absent in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<u64>,
    /// The local date and time then, which chat templates write for the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    date: Option<String>,
    /// SHA-256 of the contents of the prompts' files; absent without files, and in folders of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl StoredRun {
    /// Reads the identity of the run in this folder; `None` if it has none.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(IDENTITY);
        if !path.exists() {
            return Ok(None);
        }
        let problem = |error: &dyn std::fmt::Display| {
            Error::input(format!("{}: {error}; without it the run's samples cannot be found", path.display()))
        };
        let text = fs::read_to_string(&path).map_err(|error| problem(&error))?;
        serde_json::from_str(&text).map(Some).map_err(|error| problem(&error))
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).map_err(|error| Error::runtime(error.to_string()))?;
        write_atomically(&folder.join(IDENTITY), json.as_bytes())
    }

    /// Finds the run's row. A row of the same number is another run's, unless it began at the same moment; for folders
    /// of older versions, unless it has the same config.
    fn find(&self, store: &Store, folder: &Path) -> Result<Option<RunId>> {
        let config = fs::read_to_string(folder.join(CONFIG)).unwrap_or_default();
        let is_it = |row: &Run| match self.started_at {
            Some(moment) => row.started_at == UNIX_EPOCH + Duration::from_micros(moment),
            None => Some(row.id.0) == self.run && row.config == config,
        };
        Ok(store.runs()?.iter().find(|row| is_it(row)).map(|row| row.id))
    }
}

/// Creates or reopens the run folder, the store and the run's row in it. A new folder that cannot be used is removed.
///
/// # Errors
/// If a new folder is not empty or not writable, another process trains in it, or the store does not hold a stopped run.
pub(super) fn open(config: &Config, target: &Target, identity: &str) -> Result<(RunFolder, Store, RunId)> {
    match target {
        Target::Resume(path) => {
            let folder = RunFolder::lock(path)?;
            remove_partials(path);
            match StoredRun::read(path)? {
                Some(stored) => reopen(config, folder, stored, identity),
                None if path.join(CHECKPOINTS).exists() => Err(Error::input(format!(
                    "{} has checkpoints but no {IDENTITY}, without which the run's samples cannot be found; put it back",
                    path.display()
                ))),
                // An older version was killed before it had sampled anything.
                None => begin(config, folder, identity),
            }
        }
        Target::New(path) => {
            if !is_free(path) {
                return Err(Error::input(format!(
                    "{} is not empty; go on with its run by --resume {0}, or choose another --out",
                    path.display()
                )));
            }
            let made = make_folders(path)?;
            remove_partials(path);
            let begun = RunFolder::lock(path).and_then(|folder| begin(config, folder, identity));
            if begun.is_err() {
                let _ = fs::remove_file(path.join(IDENTITY));
                // Only folders that this call made, and only if still empty.
                made.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
            }
            begun
        }
    }
}

/// Lets a chat template that writes the date write that of the run's beginning, so that a prompt stays the same through
/// midnight and a resume.
///
/// # Errors
/// If `run.json` cannot be read.
pub(super) fn pin_date(folder: &Path, policy: &Policy) -> Result<()> {
    if !policy.tokenizer().tells_the_date() {
        return Ok(());
    }
    if let Some(date) = StoredRun::read(folder)?.and_then(|run| run.date) {
        policy.tokenizer().pin_date(date.parse()?);
    } else {
        tracing::warn!("the chat template writes the date, so prompts change at midnight");
    }
    Ok(())
}

fn reopen(config: &Config, folder: RunFolder, stored: StoredRun, identity: &str) -> Result<(RunFolder, Store, RunId)> {
    let data = config.prompts.fingerprint()?;
    if stored.data.is_some() && stored.data != data {
        let names: Vec<String> = config.prompts.files().iter().map(|path| path.display().to_string()).collect();
        return Err(Error::input(format!(
            "{} changed since this run began, so the order of the rows would change, and what is held out; put back what it was, or begin a new run from this one with --set model.adapter_from={}",
            names.join(" or "),
            folder.path().display()
        )));
    }
    let url = absolute(&config.store.url);
    let asked = store::without_password(&url);
    let moved = asked != stored.store && asked != absolute(&stored.store);
    let store = match Store::open_existing(&url) {
        // Killed between its config and its row, in a store that had not been made.
        Err(store::Error::Missing { .. }) if stored.run.is_none() && !moved => Store::open(&url)?,
        opened => opened?,
    };
    let run = match stored.find(&store, folder.path())? {
        Some(run) => run,
        None if stored.run.is_none() && !moved => return begin_row(config, folder, store, stored, identity),
        None => {
            return Err(Error::input(format!(
                "{asked} does not hold the run in {}, whose samples are in {}; name the store that holds them with --set store.url=URL",
                folder.path().display(),
                stored.store
            )));
        }
    };
    let known = StoredRun { run: Some(run.0), store: asked, data, ..stored.clone() };
    if known != stored && stored.started_at.is_some() {
        known.write(folder.path())?;
    }
    store.finish_run(run, RunStatus::Running)?;
    Ok((folder, store, run))
}

fn begin(config: &Config, folder: RunFolder, identity: &str) -> Result<(RunFolder, Store, RunId)> {
    let mut config = config.clone();
    config.store.url = absolute(&config.store.url);
    let store = Store::open(&config.store.url)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_micros() as u64);
    let stored = StoredRun {
        run: None,
        store: store::without_password(&config.store.url),
        started_at: Some(now),
        date: Some(Moment::now().to_string()),
        data: config.prompts.fingerprint()?,
    };
    stored.write(folder.path())?;
    write_atomically(&folder.path().join(CONFIG), config.resolved()?.as_bytes())?;
    begin_row(&config, folder, store, stored, identity)
}

/// Adds the run's row, and its number to `run.json`.
fn begin_row(
    config: &Config,
    folder: RunFolder,
    store: Store,
    stored: StoredRun,
    identity: &str,
) -> Result<(RunFolder, Store, RunId)> {
    let path = folder.path();
    let name = path.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned());
    let run = store.begin_run(&NewRun {
        name,
        config: config.resolved()?,
        program_version: env!("CARGO_PKG_VERSION").into(),
        out_dir: path.to_owned(),
        model_hash: identity.into(),
        started_at: UNIX_EPOCH + Duration::from_micros(stored.started_at.unwrap_or_default()),
    })?;
    StoredRun { run: Some(run.0), ..stored }.write(path)?;
    Ok((folder, store, run))
}

/// The URL of a store with the absolute path of its file. Other URLs are left alone.
fn absolute(url: &str) -> String {
    let Some(path) = url.strip_prefix("sqlite://").filter(|path| !path.is_empty() && !path.starts_with('/')) else {
        return url.to_owned();
    };
    std::path::absolute(path).map_or_else(|_| url.to_owned(), |path| format!("sqlite://{}", path.display()))
}

/// Returns true for a folder that holds nothing, or only what a run leaves that was killed before it had a config.
fn is_free(path: &Path) -> bool {
    let names = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let leftover = |name: &std::ffi::OsStr| {
        name == PROBE || name == IDENTITY || Path::new(name).extension().is_some_and(|it| it == "partial")
    };
    names.into_iter().all(|name| leftover(&name))
}

/// Removes half-written files of a process that was killed.
fn remove_partials(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "partial") && path.is_file() || path.ends_with(PROBE) {
            let _ = fs::remove_file(path);
        }
    }
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
    let probe = path.join(PROBE);
    fs::write(&probe, []).and_then(|()| fs::remove_file(&probe)).map_err(|error| {
        Error::input(format!("cannot write into the run folder {}: {error}; choose another with --out", path.display()))
    })?;
    Ok(missing.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_beginning_leaves_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(is_free(path) && is_free(&path.join("not there")));
        for name in [".probe", "config.partial", "run.partial", "run.json"] {
            fs::write(path.join(name), []).unwrap();
        }
        assert!(is_free(path));
        fs::write(path.join("config.toml"), []).unwrap();
        assert!(!is_free(path));
        remove_partials(path);
        let mut left: Vec<_> = fs::read_dir(path).unwrap().flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["config.toml", "run.json"]);
    }

    #[test]
    fn a_folder_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunFolder::lock(folder.path()).unwrap();
        let second = RunFolder::lock(folder.path()).unwrap_err();
        assert!(second.is_input() && second.to_string().contains("another process is training the run"), "{second}");
        drop(first);
        RunFolder::lock(folder.path()).unwrap();
    }

    #[test]
    fn a_relative_store_is_made_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("sqlite://a.db"), format!("sqlite://{}/a.db", here.display()));
        for url in ["sqlite:///data/a.db", "postgres://user@host/db"] {
            assert_eq!(absolute(url), url);
        }
    }
}
