//! One JSON object per step in a text file: `{"step":1,"entropy":…,…}`, `step` first, then alphabetically.
//!
//! Each line is on disk before the run continues. A number that is not finite is written as `null`. Leftovers of a
//! killed process — a torn last line, or steps after the last checkpoint — are cut off when the run resumes.

use super::{Tracker, unopenable, unwritable};
use crate::{Error, Result};
use schema::Metrics;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A tracker that appends one line per step to a file.
#[derive(Debug)]
pub struct JsonlTracker {
    file: File,
    path: PathBuf,
}

impl JsonlTracker {
    /// Opens or creates the file and cuts off everything after `last_step`: the step of the checkpoint from which the
    /// run continues, 0 for a new run.
    ///
    /// # Errors
    /// If the file cannot be opened, or holds anything but metrics before its last line.
    pub fn resume(path: &Path, last_step: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| unopenable(path, &error))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|error| unwritable(path, &error))?;
        let kept = kept_bytes(&content, last_step).map_err(|line| {
            Error::input(format!(
                "{}:{line}: this is not a line of metrics; move the file away to let the run write a new one",
                path.display()
            ))
        })?;
        file.set_len(kept)
            .and_then(|()| file.seek(SeekFrom::Start(kept)))
            .and_then(|_| file.sync_all())
            .map_err(|error| unwritable(path, &error))?;
        Ok(Self { file, path: path.to_owned() })
    }
}

impl JsonlTracker {
    /// Appends a line of another kind; `object` must have a `step`.
    pub(crate) fn append(&mut self, object: &Value) -> Result<()> {
        self.file
            .write_all(format!("{object}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|error| unwritable(&self.path, &error))
    }
}

impl Tracker for JsonlTracker {
    fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        self.append(&line(step, metrics))
    }
}

fn line(step: u64, metrics: &Metrics) -> Value {
    let mut object = Map::from_iter([("step".to_owned(), Value::from(step))]);
    object.extend(metrics.iter().map(|(name, value)| (name.to_owned(), Value::from(value))));
    Value::Object(object)
}

/// Returns the number of bytes that are lines up to and including `last_step`. An unreadable line is an error with its
/// number, counted from 1, unless it is the last one, which was torn.
fn kept_bytes(content: &[u8], last_step: u64) -> std::result::Result<u64, usize> {
    let mut kept = 0;
    let mut lines = content.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let step = serde_json::from_slice::<Value>(line).ok().and_then(|object| object.get("step")?.as_u64());
        match step {
            Some(step) if step <= last_step && line.ends_with(b"\n") => kept += line.len() as u64,
            Some(_) => break,
            None if lines.peek().is_none() => break,
            None => return Err(number + 1),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn metrics(reward: f64) -> Metrics {
        let mut metrics = Metrics::new();
        metrics.set("reward", reward);
        metrics.set("entropy", 0.5);
        metrics
    }

    fn written(steps: std::ops::RangeInclusive<u64>) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut tracker = JsonlTracker::resume(&path, 0).unwrap();
        for step in steps {
            tracker.log(step, &metrics(step as f64)).unwrap();
        }
        (folder, path)
    }

    fn append(path: &Path, text: &str) {
        let mut content = fs::read_to_string(path).unwrap();
        content.push_str(text);
        fs::write(path, content).unwrap();
    }

    #[test]
    fn step_first_then_alphabetically() {
        let (_folder, path) = written(1..=2);
        let expected = "{\"step\":1,\"entropy\":0.5,\"reward\":1.0}\n{\"step\":2,\"entropy\":0.5,\"reward\":2.0}\n";
        assert_eq!(fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn numbers_come_back_bit_for_bit_and_what_is_not_finite_is_null() {
        let (_folder, path) = written(1..=1);
        let mut tracker = JsonlTracker::resume(&path, 0).unwrap();
        tracker.log(1, &metrics(0.1 + 0.2)).unwrap();
        tracker.log(2, &metrics(f64::NAN)).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0]["reward"].as_f64().unwrap().to_bits(), (0.1_f64 + 0.2).to_bits());
        assert!(rows[1]["reward"].is_null());
    }

    #[test]
    fn a_resumed_file_is_that_of_an_uninterrupted_run() {
        let (_reference, expected) = written(1..=4);
        for (torn, last_step) in
            [("", 2), ("{\"step\":4,\"entr", 3), ("{\"step\":4,\"entropy\":0.5}", 3), ("\0\0\0", 1)]
        {
            let (_folder, path) = written(1..=3);
            append(&path, torn);
            let mut tracker = JsonlTracker::resume(&path, last_step).unwrap();
            for step in last_step + 1..=4 {
                tracker.log(step, &metrics(step as f64)).unwrap();
            }
            assert_eq!(fs::read(&path).unwrap(), fs::read(&expected).unwrap(), "torn: {torn:?}");
        }
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let (_folder, path) = written(1..=2);
        let before = format!("dear diary\n{}", fs::read_to_string(&path).unwrap());
        fs::write(&path, &before).unwrap();
        let error = JsonlTracker::resume(&path, 2).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("metrics.jsonl:1"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = JsonlTracker::resume(Path::new("/nowhere/metrics.jsonl"), 0).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("/nowhere/metrics.jsonl"), "{error}");
    }
}
