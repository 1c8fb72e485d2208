//! Event files for TensorBoard.
//!
//! A file is a sequence of records (`TFRecord`): the length as a little-endian u64, its checksum, the bytes, their
//! checksum. The checksum is CRC-32C, rotated and offset so that a checksum of data that contains checksums stays
//! strong. Each record is an `Event` in protocol-buffer encoding, of which the part needed for scalars is written by
//! hand:
//!
//! ```text
//! Event   { 1: wall_time f64, 2: step i64, 3: file_version string, 5: summary Summary, 7: session_log SessionLog }
//! Summary { 1: repeated Value { 1: tag string, 2: simple_value f32 } }      SessionLog { 1: status, START = 1 }
//! ```

use super::{Tracker, unopenable, unwritable};
use crate::{Error, Result};
use schema::Metrics;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A tracker that writes one event with all scalars per step.
#[derive(Debug)]
pub struct TensorboardTracker {
    file: File,
    path: PathBuf,
}

impl TensorboardTracker {
    /// Creates an event file in this folder, and the folder if it does not exist.
    ///
    /// # Errors
    /// If the folder or the file cannot be created.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| unopenable(folder, &error))?;
        let (file, path) = new_file(folder)?;
        let mut tracker = Self { file, path };
        tracker.write(&event(0, &string_field(3, "brain.Event:2")))?;
        Ok(tracker)
    }

    /// Creates an event file that supersedes older ones after `last_step`: TensorBoard then hides their later steps. 0
    /// for a new run.
    ///
    /// # Errors
    /// If the folder or the file cannot be created.
    pub fn resume(folder: &Path, last_step: u64) -> Result<Self> {
        let mut tracker = Self::create(folder)?;
        if last_step > 0 {
            let start = varint_field(1, 1);
            tracker.write(&event(last_step + 1, &bytes_field(7, &start)))?;
        }
        Ok(tracker)
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|error| unwritable(&self.path, &error))
    }
}

impl Tracker for TensorboardTracker {
    fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        let values: Vec<u8> = metrics
            .iter()
            .flat_map(|(name, value)| bytes_field(1, &[string_field(1, name), float_field(2, value as f32)].concat()))
            .collect();
        self.write(&event(step, &bytes_field(5, &values)))
    }

    fn finish(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|error| unwritable(&self.path, &error))
    }
}

/// Creates the file. TensorBoard reads files in the order of their names, so the name begins with the time; a number
/// separates files of the same second.
fn new_file(folder: &Path) -> Result<(File, PathBuf)> {
    let seconds = wall_time() as u64;
    for number in 0..1000 {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.{number:03}.proxrl"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unopenable(&path, &error)),
        }
    }
    Err(Error::runtime(format!("{} has too many event files of this second; try again", folder.display())))
}

/// Returns the seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn event(step: u64, content: &[u8]) -> Vec<u8> {
    let time = [&[field_key(1, 1)][..], &wall_time().to_le_bytes()].concat();
    [&time, &varint_field(2, step), content].concat()
}

/// Returns the key of a field: its number and the wire type of its value (0 varint, 1 eight bytes, 2 a length first, 5
/// four bytes). One byte is enough for field numbers below 16.
fn field_key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn varint_field(number: u8, value: u64) -> Vec<u8> {
    [vec![field_key(number, 0)], varint(value)].concat()
}

fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[field_key(number, 2)], &varint(content.len() as u64)[..], content].concat()
}

fn string_field(number: u8, text: &str) -> Vec<u8> {
    bytes_field(number, text.as_bytes())
}

fn float_field(number: u8, value: f32) -> Vec<u8> {
    [&[field_key(number, 5)][..], &value.to_le_bytes()].concat()
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let checksum = |bytes: &[u8]| masked_crc(bytes).to_le_bytes();
    [&length[..], &checksum(&length), content, &checksum(content)].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns the CRC-32 with Castagnoli's polynomial, reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut entry = index as u32;
            let mut bit = 0;
            while bit < 8 {
                entry = if entry & 1 == 1 { entry >> 1 ^ 0x82f6_3b78 } else { entry >> 1 };
                bit += 1;
            }
            table[index] = entry;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn numbers_are_encoded_as_protocol_buffers_do() {
        assert_eq!(varint(1), [1]);
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(bytes_field(2, b"testing"), [&[0x12, 0x07], &b"testing"[..]].concat());
        assert_eq!(float_field(2, 1.0), [0x15, 0, 0, 0x80, 0x3f]);
    }

    /// Returns the contents of every record, after checking framing and checksums.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(number(8), masked_crc(&rest[..8]));
            let content = &rest[12..12 + length];
            assert_eq!(number(12 + length), masked_crc(content));
            records.push(content.to_vec());
            rest = &rest[16 + length..];
        }
        records
    }

    #[test]
    fn a_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracker = TensorboardTracker::create(&folder.path().join("tensorboard")).unwrap();
        let mut metrics = Metrics::new();
        metrics.set("reward", 0.5);
        metrics.set("time/rollout_s", 300.0);
        tracker.log(300, &metrics).unwrap();
        tracker.finish().unwrap();

        let records = records(&tracker.path);
        assert_eq!(records.len(), 2);
        // Nine bytes of wall time, then the step, then the content.
        assert_eq!(records[0][9..], [&[0x10, 0, 0x1a, 13], &b"brain.Event:2"[..]].concat());
        let reward = [&[0x0a, 13, 0x0a, 6], &b"reward"[..], &[0x15, 0, 0, 0, 0x3f]].concat();
        let time = [&[0x0a, 21, 0x0a, 14], &b"time/rollout_s"[..], &[0x15, 0, 0, 0x96, 0x43]].concat();
        assert_eq!(records[1][9..], [&[0x10, 0xac, 0x02, 0x2a, 38], &reward[..], &time].concat());
    }

    #[test]
    fn a_resumed_run_opens_a_file_that_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let first = TensorboardTracker::resume(folder.path(), 0).unwrap();
        let second = TensorboardTracker::resume(folder.path(), 7).unwrap();
        assert!(second.path > first.path);
        assert_eq!(records(&first.path).len(), 1);
        assert_eq!(records(&second.path)[1][9..], [0x10, 8, 0x3a, 2, 0x08, 1]);
    }
}
