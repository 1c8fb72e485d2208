//! One JSON object per step in a text file: `{"step":1,"entropy":…,…}`, `step` first, then alphabetically.
//!
//! Each line is on disk before the run continues. A number that is not finite is written as `null`. Leftovers of a
//! killed process — a torn last line, or steps after the last checkpoint — are cut off when the run resumes, and lines
//! that cannot be read are dropped with a warning: the store has every step's metrics too.

use super::{Tracker, unopenable, unwritable};
use crate::Result;
use crate::files::write_atomically;
use schema::Metrics;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
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
    /// If the file cannot be opened or cut.
    pub fn resume(path: &Path, last_step: u64) -> Result<Self> {
        // Appended to, so that a file that another program has cut has no hole.
        let open = || OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = open().map_err(|error| unopenable(path, &error))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|error| unwritable(path, &error))?;
        let (kept, unreadable) = kept_lines(&content, last_step);
        if let Some(line) = unreadable {
            tracing::warn!("{}:{line}: this is no line of metrics; such lines are dropped", path.display());
            write_atomically(path, &kept)?;
            file = open().map_err(|error| unopenable(path, &error))?;
        }
        file.set_len(kept.len() as u64).and_then(|()| file.sync_all()).map_err(|error| unwritable(path, &error))?;
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

/// Returns the lines up to and including `last_step`, and the number of the first line before them that cannot be read,
/// counted from 1. A last line without an end is torn, and no such line.
fn kept_lines(content: &[u8], last_step: u64) -> (Vec<u8>, Option<usize>) {
    let (mut kept, mut unreadable) = (Vec::new(), None);
    let mut lines = content.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let step = serde_json::from_slice::<Value>(line).ok().and_then(|object| object.get("step")?.as_u64());
        match step {
            Some(step) if step <= last_step && line.ends_with(b"\n") => kept.extend_from_slice(line),
            Some(_) => break,
            None if lines.peek().is_none() => break,
            None => unreadable = unreadable.or(Some(number + 1)),
        }
    }
    (kept, unreadable)
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
    fn lines_that_cannot_be_read_are_dropped() {
        let (_folder, path) = written(1..=3);
        let whole = fs::read_to_string(&path).unwrap();
        let (first, rest) = whole.split_once('\n').unwrap();
        for damage in ["dear diary", "\0\0\0\0", "{\"reward\": 1}"] {
            fs::write(&path, format!("{first}\n{damage}\n{rest}")).unwrap();
            let mut tracker = JsonlTracker::resume(&path, 2).unwrap();
            tracker.log(3, &metrics(3.0)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), whole, "{damage:?}");
        }
    }

    #[test]
    fn a_file_that_is_cut_under_a_run_has_no_hole() {
        let (_folder, path) = written(1..=1);
        let mut tracker = JsonlTracker::resume(&path, 1).unwrap();
        fs::write(&path, []).unwrap();
        tracker.log(2, &metrics(2.0)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":2,\"entropy\":0.5,\"reward\":2.0}\n");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = JsonlTracker::resume(Path::new("/nowhere/metrics.jsonl"), 0).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("/nowhere/metrics.jsonl"), "{error}");
    }
}
