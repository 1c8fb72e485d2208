//! Parquet: typed columns, and lists of tokens and log-probabilities as lists.
//!
//! Prompts of several turns, metadata, reward parts and settings are JSON in text columns. Lists are written as the
//! format lays them out: a repetition level of 0 starts a row's list and 1 continues it; a definition level of 0 is an
//! empty list and 1 an element (Melnik et al. 2010, *Dremel*).

use super::{Row, Writer};
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use schema::PromptInput;
use serde_json::json;
use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::Arc;

/// The columns, as in [`Row`].
const SCHEMA: &str = "message sample {
    REQUIRED INT64 sample_id;
    REQUIRED BYTE_ARRAY run (STRING);
    REQUIRED INT64 run_id;
    REQUIRED INT64 step;
    REQUIRED INT64 group_id;
    REQUIRED INT64 place;
    REQUIRED INT64 policy_version;
    REQUIRED BYTE_ARRAY policy_hash (STRING);
    REQUIRED BYTE_ARRAY prompt (STRING);
    REQUIRED BYTE_ARRAY question (STRING);
    OPTIONAL BYTE_ARRAY answer (STRING);
    REQUIRED BYTE_ARRAY metadata (STRING);
    REQUIRED BYTE_ARRAY completion (STRING);
    REQUIRED BYTE_ARRAY finish (STRING);
    OPTIONAL FLOAT reward;
    REQUIRED BYTE_ARRAY parts (STRING);
    REQUIRED GROUP prompt_ids (LIST) { REPEATED GROUP list { REQUIRED INT64 element; } }
    REQUIRED GROUP completion_ids (LIST) { REPEATED GROUP list { REQUIRED INT64 element; } }
    REQUIRED GROUP logprobs (LIST) { REPEATED GROUP list { REQUIRED FLOAT element; } }
    REQUIRED GROUP mask (LIST) { REPEATED GROUP list { REQUIRED BOOLEAN element; } }
    REQUIRED BYTE_ARRAY settings (STRING);
}";

/// A Parquet file under construction.
pub(super) struct Parquet(SerializedFileWriter<BufWriter<File>>);

impl Parquet {
    pub(super) fn new(file: BufWriter<File>) -> io::Result<Self> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        Ok(Self(SerializedFileWriter::new(file, schema, Arc::new(properties))?))
    }
}

impl Writer for Parquet {
    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let mut columns = Columns { rows, group: self.0.next_row_group()? };
        columns.integers(|row| row.sample_id)?;
        columns.texts(|row| row.run.clone())?;
        columns.integers(|row| row.run_id)?;
        columns.integers(|row| row.step as i64)?;
        columns.integers(|row| row.group_id)?;
        columns.integers(|row| row.place as i64)?;
        columns.integers(|row| row.policy_version as i64)?;
        columns.texts(|row| row.policy_hash.clone())?;
        columns.texts(|row| prompt(&row.prompt))?;
        columns.texts(|row| row.question.clone())?;
        columns.optional::<ByteArrayType>(|row| row.answer.as_deref().map(ByteArray::from))?;
        columns.texts(|row| json!(row.metadata).to_string())?;
        columns.texts(|row| row.completion.clone())?;
        columns.texts(|row| row.finish.to_owned())?;
        columns.optional::<FloatType>(|row| row.reward)?;
        columns.texts(|row| json!(row.parts).to_string())?;
        columns.lists::<Int64Type>(|row| row.prompt_ids.iter().map(|id| i64::from(*id)).collect())?;
        columns.lists::<Int64Type>(|row| row.completion_ids.iter().map(|id| i64::from(*id)).collect())?;
        columns.lists::<FloatType>(|row| row.logprobs.clone())?;
        columns.lists::<BoolType>(|row| row.mask.clone())?;
        columns.texts(|row| json!(row.settings).to_string())?;
        columns.group.close()?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.into_inner()?.into_inner()?.sync_all()
    }
}

/// Raw text as it stands; turns as JSON.
fn prompt(input: &PromptInput) -> String {
    match input {
        PromptInput::Text(text) => text.clone(),
        PromptInput::Messages(turns) => json!(turns).to_string(),
    }
}

/// One row group, filled column by column in the schema's order.
struct Columns<'a> {
    rows: &'a [Row],
    group: SerializedRowGroupWriter<'a, BufWriter<File>>,
}

impl Columns<'_> {
    fn integers(&mut self, value: impl Fn(&Row) -> i64) -> Result<(), ParquetError> {
        let values: Vec<i64> = self.rows.iter().map(value).collect();
        self.column::<Int64Type>(&values, None, None)
    }

    fn texts(&mut self, value: impl Fn(&Row) -> String) -> Result<(), ParquetError> {
        let values: Vec<ByteArray> = self.rows.iter().map(|row| ByteArray::from(value(row).into_bytes())).collect();
        self.column::<ByteArrayType>(&values, None, None)
    }

    fn optional<T: DataType>(&mut self, value: impl Fn(&Row) -> Option<T::T>) -> Result<(), ParquetError> {
        let values: Vec<Option<T::T>> = self.rows.iter().map(value).collect();
        let definition: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = values.into_iter().flatten().collect();
        self.column::<T>(&values, Some(&definition), None)
    }

    fn lists<T: DataType>(&mut self, list: impl Fn(&Row) -> Vec<T::T>) -> Result<(), ParquetError> {
        let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
        for elements in self.rows.iter().map(list) {
            let entries = elements.len().max(1);
            definition.extend(vec![i16::from(!elements.is_empty()); entries]);
            repetition.extend((0..entries).map(|entry| i16::from(entry > 0)));
            values.extend(elements);
        }
        self.column::<T>(&values, Some(&definition), Some(&repetition))
    }

    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        definition: Option<&[i16]>,
        repetition: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let mut column = self
            .group
            .next_column()?
            .ok_or_else(|| ParquetError::General("more columns than the schema has".into()))?;
        column.typed::<T>().write_batch(values, definition, repetition)?;
        column.close()
    }
}
