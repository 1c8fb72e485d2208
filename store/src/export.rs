//! Writing samples to a file that other programs read: JSON lines, CSV or Parquet, by the file's name.
//!
//! One row per sample, with TRL's column names where TRL has one (`prompt`, `completion`, `prompt_ids`,
//! `completion_ids`, `logprobs`). Rows are written as they are read, so the store may be larger than the memory; all
//! come from one state of the store, whatever is appended meanwhile. The file gets its name when it is whole.

mod pairs;
mod parquet;
mod text;

pub use pairs::{Paired, Pairing};

use crate::ask::query::{bad_sql, question};
use crate::engine::{Access, Connection, sql};
use crate::error::Doing;
use crate::rows::read::{StoredGroup, groups};
use crate::rows::run::by_id;
use crate::rows::verdict::Part;
use crate::{Error, Result, RunId, SampleId, Scoring, Store};
use schema::{PromptInput, SamplerSettings, Token};
use serde::Serialize;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// Samples that are in memory at a time, and in a row group of Parquet.
const ROWS_AT_ONCE: i64 = 1024;

/// The samples to export: all, or those that satisfy every condition given.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Those of one run; of every run if absent.
    pub run: Option<RunId>,
    /// Those for which this SQL expression over the columns of `sample_view` is true, as in `reward > 0.5`.
    pub condition: Option<String>,
}

impl Selection {
    /// Further conditions of a WHERE over `sample_view`, each with its AND.
    fn clauses(&self) -> String {
        let run = self.run.map_or_else(String::new, |run| format!("AND run_id = {run}"));
        // The condition ends with a line break in case it ends with a comment.
        let condition = self.condition.as_ref().map_or_else(String::new, |text| format!("AND ({text}\n)"));
        format!("{run} {condition}")
    }
}

impl Store {
    /// Writes the selected samples to `path`, whose extension says the format (`.jsonl`, `.csv` or `.parquet`), and
    /// returns their number. A file of that name is replaced once the new one is whole.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`] if the extension is another one; [`Error::NotReading`] or [`Error::BadSql`] if the
    /// condition is no SQL expression; [`Error::Write`] if the file cannot be written; or if the store cannot be read.
    pub fn export(&self, path: &Path, selection: &Selection) -> Result<u64> {
        let format = Format::of(path)?;
        let select = select(selection)?;
        let failed = |error: io::Error| Error::Write { path: path.to_owned(), reason: error.to_string() };
        let partial = Partial::beside(path);
        let mut writer = format.writer(&partial.path).map_err(failed)?;
        let mut written = 0;
        self.with_once(async |connection| {
            const DOING: &str = "exporting samples";
            let mut snapshot = connection.begin(Access::Read).await.doing(DOING)?;
            let mut names = HashMap::new();
            let mut last = i64::MIN;
            loop {
                let found: Vec<(i64, i64)> = sql::query_as(select.clone())
                    .bind(last)
                    .bind(ROWS_AT_ONCE)
                    .fetch_all(&mut snapshot)
                    .await
                    .map_err(bad_sql)?;
                let Some((newest, _)) = found.last() else { return Ok(()) };
                last = *newest;
                writer.write(&rows(&mut snapshot, &found, &mut names, self.scoring).await?).map_err(failed)?;
                written += found.len() as u64;
            }
        })?;
        writer.finish().map_err(failed)?;
        partial.keep_as(path).map_err(failed)?;
        Ok(written)
    }
}

/// One exported sample. The fields are the columns, in this order.
#[derive(Debug, Serialize)]
struct Row {
    sample_id: i64,
    run: String,
    run_id: i64,
    step: u64,
    group_id: i64,
    place: u64,
    policy_version: u64,
    policy_hash: String,
    prompt: PromptInput,
    question: String,
    answer: Option<String>,
    metadata: serde_json::Map<String, serde_json::Value>,
    completion: String,
    finish: &'static str,
    reward: Option<f32>,
    parts: Vec<Part>,
    prompt_ids: Vec<Token>,
    completion_ids: Vec<Token>,
    logprobs: Vec<f32>,
    mask: Vec<bool>,
    settings: SamplerSettings,
}

/// A writer of rows to a file of one format.
trait Writer {
    fn write(&mut self, rows: &[Row]) -> io::Result<()>;

    /// Completes the file and waits until it is on the disk.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jsonl,
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(OsStr::to_ascii_lowercase);
        match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("jsonl") => Ok(Self::Jsonl),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Error::UnknownFormat { path: path.to_owned() }),
        }
    }

    fn writer(self, path: &Path) -> io::Result<Box<dyn Writer>> {
        let file = BufWriter::new(File::create(path)?);
        Ok(match self {
            Self::Jsonl => Box::new(text::Jsonl(file)),
            Self::Csv => Box::new(text::Csv::new(file)?),
            Self::Parquet => Box::new(parquet::Parquet::new(file)?),
        })
    }
}

/// A file under a temporary name, removed unless it is kept.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self { path: path.with_file_name(format!(".{name}.{}.partial", std::process::id())) }
    }

    fn keep_as(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after a failure the first error is the one to report.
        let _ = fs::remove_file(&self.path);
    }
}

/// The statement that finds the next samples after `$1`, at most `$2` of them.
fn select(selection: &Selection) -> Result<String> {
    let chosen = selection.clauses();
    let sql = format!(
        "SELECT sample_id, group_id FROM sample_view WHERE sample_id > $1 {chosen} ORDER BY sample_id LIMIT $2"
    );
    question(&sql).map(str::to_owned)
}

/// The rows of these samples, given as numbers of sample and group.
async fn rows(
    connection: &mut Connection,
    found: &[(i64, i64)],
    names: &mut HashMap<RunId, String>,
    scoring: Scoring,
) -> Result<Vec<Row>> {
    let mut group_ids: Vec<i64> = found.iter().map(|(_, group)| *group).collect();
    group_ids.sort_unstable();
    group_ids.dedup();
    let wanted: HashSet<SampleId> = found.iter().map(|(sample, _)| SampleId(*sample)).collect();
    let mut rows = Vec::with_capacity(found.len());
    for group in groups(connection, &group_ids, scoring).await? {
        let name = match names.entry(group.run) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(by_id(connection, group.run).await?.name),
        };
        let chosen = (0..group.sample_ids.len()).filter(|place| wanted.contains(&group.sample_ids[*place]));
        rows.extend(chosen.map(|place| row(&group, place, name)));
    }
    rows.sort_unstable_by_key(|row| row.sample_id);
    Ok(rows)
}

fn row(stored: &StoredGroup, place: usize, run: &str) -> Row {
    let (group, verdict) = (stored.scored.group(), &stored.scored.verdicts()[place]);
    let sample = &group.samples[place];
    Row {
        sample_id: stored.sample_ids[place].0,
        run: run.to_owned(),
        run_id: stored.run.0,
        step: stored.step,
        group_id: stored.id.0,
        place: place as u64,
        policy_version: group.policy.version,
        policy_hash: group.policy.hash.clone(),
        prompt: group.prompt.input.clone(),
        question: group.prompt.question().to_owned(),
        answer: group.prompt.answer.clone(),
        metadata: group.prompt.metadata.clone(),
        completion: sample.text.clone(),
        finish: sample.finish.as_str(),
        reward: verdict.total(),
        parts: Part::of(verdict),
        prompt_ids: group.prompt_ids.clone(),
        completion_ids: sample.ids.clone(),
        logprobs: sample.logprobs.clone(),
        mask: sample.mask.clone(),
        settings: group.settings.clone(),
    }
}
