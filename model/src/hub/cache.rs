//! Files of the hub's cache, written: `blobs/HASH` holds a content, `snapshots/COMMIT/NAME` is a link to it, and
//! `refs/REVISION` names a commit.
//!
//! The names come from a server, so they have types of their own here: hash and commit are hexadecimal words ([`Hex`]),
//! and a file's name is one plain word ([`is_plain`]). Whatever a server answers, nothing is written outside the
//! model's folder. A content whose hash is a SHA-256, as that of every large file is, is checked against it before it
//! gets its name.

use super::Snapshot;
use super::client::Reason;
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A hash in hexadecimal, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hex(String);

impl Hex {
    /// Reads a word of 1 to 64 hexadecimal digits; `None` for anything else.
    pub(super) fn parse(word: &str) -> Option<Self> {
        let word = word.trim();
        let plain = (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| Self(word.to_ascii_lowercase()))
    }

    fn is_sha256(&self) -> bool {
        self.0.len() == 64
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// True if a name is one component of a path, and neither `.` nor `..`.
pub(super) fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|plain| plain == name) && !name.contains(['\\', '\0'])
}

impl Snapshot {
    /// One file of a commit, if it is there.
    pub(super) fn file_of(&self, commit: &Hex, name: &str) -> Option<PathBuf> {
        Some(self.folder_of(commit).join(name)).filter(|path| path.exists())
    }

    fn folder_of(&self, commit: &Hex) -> PathBuf {
        self.repository.join("snapshots").join(commit.to_string())
    }

    /// Adds one file to the cache; `fill` appends the rest of its content to what is there of it. A content that is
    /// there already is not fetched again.
    ///
    /// # Errors
    /// If `fill` fails, a file cannot be written, or the content is not what its hash says.
    pub(super) fn add(
        &self,
        commit: &Hex,
        name: &str,
        hash: &Hex,
        fill: impl FnOnce(&mut File) -> Result<(), Reason>,
    ) -> Result<PathBuf, Reason> {
        let write = |error| self.unwritable(&error);
        let blobs = self.repository.join("blobs");
        let folder = self.folder_of(commit);
        fs::create_dir_all(&blobs).map_err(write)?;
        fs::create_dir_all(&folder).map_err(write)?;
        let _lock = lock(&blobs.join(format!("{hash}.lock")), name).map_err(write)?;
        let blob = blobs.join(hash.to_string());
        if !blob.exists() {
            let part = blobs.join(format!("{hash}.part"));
            let mut file = OpenOptions::new().create(true).append(true).open(&part).map_err(write)?;
            fill(&mut file)?;
            drop(file);
            if hash.is_sha256() {
                let found = sha256(&part).map_err(write)?;
                if found != *hash {
                    // Its beginning may be what is wrong: the next attempt must not go on with it.
                    fs::remove_file(&part).map_err(write)?;
                    return Err(format!("its SHA-256 is {found}, but the hub names {hash}; try again"));
                }
            }
            fs::rename(&part, &blob).map_err(write)?;
        }
        let file = folder.join(name);
        if !file.exists() {
            // A link without its content is in the way.
            fs::remove_file(&file).or_else(found_none).map_err(write)?;
            symlink(Path::new("../../blobs").join(hash.to_string()), &file).map_err(write)?;
        }
        Ok(file)
    }

    /// Lets the revision name this commit, once its files are there.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn point_at(&self, commit: &Hex) -> Result<(), Reason> {
        if self.revision == commit.to_string() {
            return Ok(());
        }
        let refs = self.repository.join("refs");
        let written = fs::create_dir_all(&refs);
        written.and_then(|()| fs::write(refs.join(&self.revision), commit.to_string())).map_err(|e| self.unwritable(&e))
    }

    fn unwritable(&self, error: &io::Error) -> Reason {
        format!("cannot be written to {}: {error}", self.repository.display())
    }
}

fn found_none(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Waits until no other process fetches the same content; the lock ends with the file.
fn lock(path: &Path, name: &str) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            tracing::info!("waiting for another process that fetches {name}");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(file)
}

fn sha256(path: &Path) -> io::Result<Hex> {
    let (mut file, mut digest, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Hex(schema::hex(&digest.finalize()))),
            count => digest.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_hexadecimal_and_nothing_else() {
        assert_eq!(Hex::parse(" 0aF9\n"), Some(Hex("0af9".into())));
        assert!(Hex::parse(&"a".repeat(64)).unwrap().is_sha256());
        let long = "a".repeat(65);
        for word in ["", "xyz", "/etc/passwd", "../a", "a/b", "a.b", "a\0", "a b", "é", "W/a", "\"a\"", &long] {
            assert_eq!(Hex::parse(word), None, "{word:?}");
        }
    }

    #[test]
    fn a_name_is_one_word_of_a_path() {
        assert!(is_plain("model.safetensors") && is_plain("..a"));
        for name in ["", ".", "..", "/", "/a", "a/", "a/b", "../a", "a/../b", "a\\b", "a\0"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
