//! The files of an open store: whether their paths still name them, and a copy of those that were lost.
//!
//! A file that is removed stays for the process that has it open, under no name, and is gone when the process ends;
//! `SQLite` writes on into it without a word. So the device and inode of the store's files are noted when it is opened,
//! and compared with what their paths name around every use. The write-ahead log and its index count as the file itself:
//! another process would begin new ones.

use super::Connection;
use super::sql;
use crate::Error;
use crate::error::message;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CONTENT: &str = "SELECT (SELECT COUNT(*) FROM groups), (SELECT COUNT(*) FROM samples)";
const COPY: &str = "VACUUM INTO $1";

/// A device and an inode on it.
type Identity = (u64, u64);

/// The files of an open store.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The path that the user named, without its last links.
    path: PathBuf,
    /// Each file's path and identity; the store itself comes first.
    files: Vec<(PathBuf, Identity)>,
    /// The copy that was made of a lost store, in words.
    rescue: Option<String>,
}

impl Watch {
    /// Notes the files of a store that is open; `None` if its path names no file any more.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let real = path.canonicalize().ok()?;
        let beside = ["-wal", "-shm"].map(|end| {
            let mut name = real.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        });
        let mut files = vec![(path.clone(), identity(&path)?)];
        files.extend(beside.into_iter().filter_map(|path| identity(&path).map(|identity| (path, identity))));
        Some(Self { path: real, files, rescue: None })
    }

    /// Returns true if a path names no file any more, or another one.
    pub(crate) fn is_lost(&self) -> bool {
        self.rescue.is_some() || self.files.iter().any(|(path, known)| identity(path) != Some(*known))
    }

    /// Returns true if the lost file takes what is written to it, to be copied with the rest: if no other file stands
    /// at its path, whose reader would take the log of this one for its own.
    pub(crate) fn is_writable(&self) -> bool {
        self.rescue.is_none() && identity(&self.files[0].0).is_none()
    }

    /// Copies a lost store to a new file beside it, once, and returns the error that says so.
    pub(crate) async fn rescue(&mut self, connection: &mut Connection) -> Error {
        let rescue = match self.rescue.take() {
            Some(rescue) => rescue,
            None => copy(connection, &self.path).await,
        };
        self.rescue = Some(rescue.clone());
        Error::Removed { place: self.files[0].0.display().to_string(), rescue }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Copies the store to a new file beside its path, and says what is in it.
async fn copy(connection: &mut Connection, path: &Path) -> String {
    let counts: Result<(i64, i64), sqlx::Error> = sql::query_as(CONTENT).fetch_one(connection).await;
    let content = match counts {
        Ok((groups, samples)) => format!("its {groups} groups with {samples} samples"),
        Err(error) => return format!("it cannot be read any more: {}", message(&error)),
    };
    let target = free_name(path);
    let copied = sql::query(COPY).bind(target.to_string_lossy().into_owned()).execute(connection).await;
    match copied {
        Ok(_) => format!(
            "{content} were copied to {}: stop what removed it, and move the copy to where it was to go on",
            target.display()
        ),
        Err(error) => format!("{content} could not be copied to {}: {}", target.display(), message(&error)),
    }
}

/// A name that no file has: `proxrl.rescued-1.db` for `proxrl.db`.
fn free_name(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let end = path.extension().map(|end| format!(".{}", end.to_string_lossy())).unwrap_or_default();
    let name = |number: u32| path.with_file_name(format!("{stem}.rescued-{number}{end}"));
    (1..u32::MAX).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(u32::MAX))
}
