//! A run's adapters and checkpoints at a URL, so that other machines can read them: `[share]`.
//!
//! ```text
//! URL/RUN/config.toml                             the resolved config
//! URL/RUN/run.json                                the run's number and store
//! URL/RUN/metrics.jsonl                           as of the newest checkpoint
//! URL/RUN/checkpoints/step_N/*.safetensors
//! URL/RUN/checkpoints/step_N/state.json           written last, removed first: with it a checkpoint is whole
//! URL/RUN/published/version_N.safetensors         for workers
//! ```
//!
//! On the trainer's machine a run still resumes from its run folder. `URL/RUN` is accepted in place of any run folder:
//! [`run_folder`] makes a local copy of the newest checkpoint.

use super::{CHECKPOINTS, STATE, name_of, step_of};
use crate::bucket::Bucket;
use crate::config::Share;
use crate::files::write_atomically;
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of a run folder that describe the run, without its checkpoints.
const ABOUT: [&str; 3] = [CONFIG, METRICS, OWNER];
const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
/// Identity of the run that a folder belongs to: its store, its number there, and the moment when it began.
const OWNER: &str = "run.json";

/// The folder of one run at a URL.
#[derive(Debug)]
pub(crate) struct Shared {
    files: Bucket,
}

impl Shared {
    /// Opens the shared folder of the run in this folder; `None` if it is not shared. The folder at the URL must be
    /// new, or this run's own.
    pub(crate) fn open(share: &Share, run_folder: &Path) -> Result<Option<Self>> {
        if share.url.is_empty() {
            return Ok(None);
        }
        let whole = run_folder.canonicalize().unwrap_or_else(|_| run_folder.to_owned());
        let name = whole.file_name().map_or("run".into(), |name| name.to_string_lossy());
        let url = format!("{}/{name}", share.url.trim_end_matches('/'));
        let shared = Self { files: Bucket::open(&url)? };
        let own = read(&run_folder.join(OWNER))?;
        match shared.files.read(OWNER)? {
            Some(there) if !same_run(&there, &own) => {
                return Err(Error::input(format!(
                    "share.url: {url} holds another run of the same name; choose another --out, or another share.url"
                )));
            }
            Some(there) if there == own => {}
            _ => shared.files.write(OWNER, own)?,
        }
        shared.files.write(CONFIG, read(&run_folder.join(CONFIG))?)?;
        Ok(Some(shared))
    }

    /// Writes a file and returns its URL.
    pub(crate) fn write(&self, name: &str, bytes: Vec<u8>) -> Result<String> {
        self.files.write(name, bytes)?;
        Ok(self.files.url_of(name))
    }

    /// Removes a file.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.files.remove(name)
    }

    /// Writes a checkpoint of the run and removes those that its folder no longer has.
    pub(crate) fn checkpoint(&self, run_folder: &Path, step: u64, kept: &[u64]) -> Result<()> {
        let name = name_of(step);
        let folder = run_folder.join(CHECKPOINTS).join(&name);
        let mut files = names(&folder)?;
        // Last, because with it the checkpoint counts as whole.
        files.sort_by_key(|file| file == STATE);
        let state = format!("{CHECKPOINTS}/{name}/{STATE}");
        if self.files.read(&state)?.is_some_and(|there| read(&folder.join(STATE)).is_ok_and(|own| own == there)) {
            files.clear();
        }
        for file in files {
            self.files.write(&format!("{CHECKPOINTS}/{name}/{file}"), read(&folder.join(&file))?)?;
        }
        let metrics = run_folder.join(METRICS);
        if metrics.exists() {
            self.files.write(METRICS, read(&metrics)?)?;
        }
        for old in self.files.list(CHECKPOINTS)? {
            if step_of(&old).is_some_and(|step| !kept.contains(&step)) {
                let folder = format!("{CHECKPOINTS}/{old}");
                let mut files = self.files.list(&folder)?;
                files.sort_by_key(|file| file != STATE);
                files.iter().try_for_each(|file| self.files.remove(&format!("{folder}/{file}")))?;
            }
        }
        Ok(())
    }
}

/// Returns a local run folder: the path itself or, for a URL, a cached copy of the run there with its newest
/// checkpoint. Files that are already cached are not fetched again.
///
/// # Errors
/// If the URL cannot be read or holds no run with a checkpoint, or the cache cannot be written.
pub fn run_folder(place: &Path) -> Result<PathBuf> {
    let Some(url) = place.to_str().filter(|place| Bucket::is_url(place)) else { return Ok(place.to_owned()) };
    let url = url.trim_end_matches('/');
    let spelled: String =
        url.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect();
    let folder = model::hub::cache_folder().join("runs").join(spelled);
    fetch(url, &folder)?;
    Ok(folder)
}

/// Copies a run from a URL to a new folder, in which it can continue.
///
/// # Errors
/// If the folder exists, the URL cannot be read or holds no run with a checkpoint, or the folder cannot be written.
pub fn fetch_run(place: &Path, folder: &Path) -> Result<()> {
    let url = place.to_string_lossy();
    if folder.exists() {
        return Err(Error::input(format!(
            "{} is there already: go on with what it holds by --resume {0}, or give the run from {url} another folder with --out",
            folder.display()
        )));
    }
    let fetched = fetch(url.trim_end_matches('/'), folder);
    if fetched.is_err() {
        // A part of a run is none.
        let _ = fs::remove_dir_all(folder);
    }
    fetched
}

/// Removes the folder of a run that has just been copied from a URL.
pub fn forget_run(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}

fn fetch(url: &str, folder: &Path) -> Result<()> {
    let files = Bucket::open(url)?;
    let missing = |what: &str| {
        Error::input(format!("there is no {what} at {url}; is it the folder of a run that had `share.url`?"))
    };
    let mut steps: Vec<u64> = files.list(CHECKPOINTS)?.iter().filter_map(|name| step_of(name)).collect();
    // The newest whole one.
    let (name, state) = loop {
        let step = steps.iter().copied().max().ok_or_else(|| missing("checkpoint"))?;
        if let Some(state) = files.read(&format!("{CHECKPOINTS}/{}/{STATE}", name_of(step)))? {
            break (name_of(step), state);
        }
        steps.retain(|other| *other != step);
    };
    let checkpoints = folder.join(CHECKPOINTS);
    let (whole, partial) = (checkpoints.join(&name), checkpoints.join(format!(".{name}.partial")));
    if read(&whole.join(STATE)).is_ok_and(|there| there == state) {
        return Ok(());
    }
    // Whatever else is there is of another time.
    let _ = fs::remove_dir_all(&checkpoints);
    fs::create_dir_all(&partial)
        .map_err(|error| Error::runtime(format!("cannot make {} for what is at {url}: {error}", partial.display())))?;
    for about in ABOUT {
        match files.read(about)? {
            Some(bytes) => write_atomically(&folder.join(about), &bytes)?,
            None if about == METRICS => {}
            None => return Err(missing(about)),
        }
    }
    let place = format!("{CHECKPOINTS}/{name}");
    for file in files.list(&place)? {
        let bytes = files.read(&format!("{place}/{file}"))?.ok_or_else(|| missing(&file))?;
        write_atomically(&partial.join(&file), &bytes)?;
    }
    fs::rename(&partial, &whole).map_err(|error| Error::runtime(format!("cannot make {}: {error}", whole.display())))
}

/// Returns true if two files `run.json` are of one run: they name the same beginning, or, of older versions, are equal.
fn same_run(a: &[u8], b: &[u8]) -> bool {
    let began = |file| serde_json::from_slice::<Value>(file).ok().and_then(|run| run.get("started_at")?.as_u64());
    a == b || began(a).is_some() && began(a) == began(b)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::runtime(format!("cannot read {}: {error}", path.display())))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).map_err(|error| Error::runtime(format!("cannot read {}: {error}", folder.display())))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
