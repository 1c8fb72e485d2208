//! JSON lines and CSV. A column that holds a list or an object is JSON in both.

use super::{Row, Writer};
use crate::table::csv_line;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// One JSON object a line.
pub(super) struct Jsonl(pub(super) BufWriter<File>);

impl Writer for Jsonl {
    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            serde_json::to_writer(&mut self.0, row)?;
            self.0.write_all(b"\n")?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        sync(self.0)
    }
}

/// A header, and one line per sample as RFC 4180 has them.
pub(super) struct Csv(BufWriter<File>);

impl Csv {
    /// The columns, as in [`Row`].
    const HEADER: &str = "sample_id,run,run_id,step,group_id,place,policy_version,policy_hash,prompt,question,answer,\
        metadata,completion,finish,reward,parts,prompt_ids,completion_ids,logprobs,mask,settings\r\n";

    pub(super) fn new(mut file: BufWriter<File>) -> io::Result<Self> {
        file.write_all(Self::HEADER.as_bytes())?;
        Ok(Self(file))
    }
}

impl Writer for Csv {
    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let mut text = String::new();
        for row in rows {
            let fields: Map<String, Value> = serde_json::from_value(serde_json::to_value(row)?)?;
            let fields: Vec<String> = fields.into_iter().map(|(_, value)| field(value)).collect();
            csv_line(&mut text, fields.iter().map(String::as_str));
        }
        self.0.write_all(text.as_bytes())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        sync(self.0)
    }
}

fn field(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn sync(file: BufWriter<File>) -> io::Result<()> {
    file.into_inner()?.sync_all()
}
