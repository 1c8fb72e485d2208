//! JSON lines and CSV. A column that holds a list or an object is JSON in both.

use super::{Row, Writer};
use schema::PromptInput;
use serde::Serialize;
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
pub(super) struct Csv(csv::Writer<BufWriter<File>>);

impl Csv {
    /// The columns, as in [`Row`].
    const HEADER: &str = "sample_id,run,run_id,step,group_id,place,policy_version,policy_hash,prompt,question,answer,\
        metadata,completion,finish,reward,parts,prompt_ids,completion_ids,logprobs,mask,settings";

    pub(super) fn new(file: BufWriter<File>) -> io::Result<Self> {
        let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(file);
        writer.write_record(Self::HEADER.split(','))?;
        Ok(Self(writer))
    }
}

impl Writer for Csv {
    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            self.0.write_record(fields(row)?)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        sync(self.0.into_inner().map_err(csv::IntoInnerError::into_error)?)
    }
}

/// The fields of a line, in the header's order.
fn fields(row: &Row) -> io::Result<[String; 21]> {
    let prompt = match &row.prompt {
        PromptInput::Text(text) => text.clone(),
        PromptInput::Messages(turns) => json(turns)?,
    };
    Ok([
        row.sample_id.to_string(),
        row.run.clone(),
        row.run_id.to_string(),
        row.step.to_string(),
        row.group_id.to_string(),
        row.place.to_string(),
        row.policy_version.to_string(),
        row.policy_hash.clone(),
        prompt,
        row.question.clone(),
        row.answer.clone().unwrap_or_default(),
        json(&row.metadata)?,
        row.completion.clone(),
        row.finish.to_owned(),
        row.reward.map_or_else(String::new, |reward| reward.to_string()),
        json(&row.parts)?,
        json(&row.prompt_ids)?,
        json(&row.completion_ids)?,
        json(&row.logprobs)?,
        json(&row.mask)?,
        json(&row.settings)?,
    ])
}

fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)?)
}

fn sync(file: BufWriter<File>) -> io::Result<()> {
    file.into_inner()?.sync_all()
}
