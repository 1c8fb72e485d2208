//! Reader of GGUF headers: a magic word, counts, key-value metadata, a table of tensors, and their bytes.
//!
//! Files come from anywhere, so every count and offset is checked against the file's length before it is believed:
//! a damaged file is an error that says where, never a panic, and memory use stays within a few times the file's size.
//! Layout: ggml's `docs/gguf.md`, versions 2 and 3, little-endian.

use super::blocks::Format;
use std::collections::BTreeMap;
use std::ops::Range;

/// The problem with a file, as a clause.
type Problem = String;

/// The header of a GGUF file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    /// The byte range of each key's type and value, in the file's order.
    pub(crate) values: Vec<(String, Range<usize>)>,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

/// One tensor of the table.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) format: Format,
    /// Outermost axis first, as the hub writes shapes (the file has them reversed).
    pub(crate) shape: Vec<usize>,
    /// The offset of its bytes in the file.
    pub(crate) start: usize,
    /// The number of its bytes.
    pub(crate) len: usize,
}

/// The key-value part of a GGUF file.
#[derive(Debug, Default)]
pub(crate) struct Metadata(BTreeMap<String, Value>);

/// A metadata value. The widths of the file's integers and floats are not kept.
#[derive(Debug, PartialEq)]
enum Value {
    Integer(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
    /// An array of a type that no model needs.
    Other,
}

impl Metadata {
    /// The integer of a key.
    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        match self.0.get(key)? {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The token id of a key.
    pub(crate) fn token(&self, key: &str) -> Option<schema::Token> {
        self.integer(key)?.try_into().ok()
    }

    /// The number of a key.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The boolean of a key.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.0.get(key)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The string of a key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The list of strings of a key.
    pub(crate) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.0.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// The list of integers of a key.
    pub(crate) fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.0.get(key)? {
            Value::Integers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// The list of floats of a key.
    pub(crate) fn numbers(&self, key: &str) -> Option<&[f64]> {
        match self.0.get(key)? {
            Value::Floats(numbers) => Some(numbers),
            _ => None,
        }
    }
}

/// Reads a file's header and checks that every tensor lies inside the file and apart from the others.
///
/// # Errors
/// A clause if the file is not GGUF of version 2 or 3 in little-endian order, or is damaged or incomplete.
pub(crate) fn read_header(file: &[u8]) -> Result<Header, Problem> {
    let mut cursor = Cursor { file, at: 0 };
    if cursor.take(4).ok() != Some(b"GGUF") {
        return Err("is not a GGUF file (it does not begin with `GGUF`)".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() == 3 => {
            return Err("is a big-endian GGUF file; only little-endian is supported".into());
        }
        version => return Err(format!("is GGUF version {version}; versions 2 and 3 are supported")),
    }
    let (tensor_count, value_count) = (cursor.u64()?, cursor.u64()?);

    let (mut metadata, mut values) = (BTreeMap::new(), Vec::new());
    for _ in 0..value_count {
        let key = cursor.text()?;
        let start = cursor.at;
        let kind = cursor.u32()?;
        let value = cursor.value(kind).map_err(|problem| format!("metadata `{key}`: {problem}"))?;
        values.push((key.clone(), start..cursor.at));
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata `{key}` appears twice"));
        }
    }
    let metadata = Metadata(metadata);

    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = cursor.text()?;
        let entry = cursor.entry().map_err(|problem| format!("tensor `{name}`: {problem}"))?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor `{name}` appears twice"));
        }
    }

    resolve_offsets(&metadata, &mut tensors, cursor.at, file.len())?;
    Ok(Header { metadata, values, tensors })
}

/// Turns offsets within the data section into offsets within the file, and checks them.
fn resolve_offsets(
    metadata: &Metadata,
    tensors: &mut BTreeMap<String, Entry>,
    header_len: usize,
    file_len: usize,
) -> Result<(), Problem> {
    let alignment = metadata.integer("general.alignment").unwrap_or(32);
    let alignment = usize::try_from(alignment)
        .ok()
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 20)
        .ok_or_else(|| format!("general.alignment is {alignment}, not a sensible power of two"))?;
    let data_start = header_len.next_multiple_of(alignment);

    let mut ordered: Vec<_> = tensors.iter_mut().collect();
    ordered.sort_by_key(|(_, entry)| entry.start);
    let mut end_before = data_start;
    for (name, entry) in ordered {
        let start = data_start.saturating_add(entry.start);
        let end = start.saturating_add(entry.len);
        if end > file_len {
            return Err(format!(
                "tensor `{name}` ends at byte {end}, but the file has {file_len}; was its download cut off?"
            ));
        }
        if entry.len > 0 && start < end_before {
            return Err(format!("tensor `{name}` overlaps another tensor; the file is damaged"));
        }
        entry.start = start;
        end_before = end.max(end_before);
    }
    Ok(())
}

/// A position in a file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let taken = self.at.checked_add(len).and_then(|end| self.file.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            format!("the file ends inside its header (at byte {}); was its download cut off?", self.file.len())
        })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        Ok(self.take(N)?.try_into().expect("`take` returns what was asked for"))
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of items of at least `least` bytes each, so that no list is larger than the file allows.
    fn count(&mut self, least: usize) -> Result<usize, Problem> {
        let count = self.u64()?;
        let room = (self.file.len() - self.at) / least;
        usize::try_from(count).ok().filter(|count| *count <= room).ok_or_else(|| {
            format!(
                "a count of {count} at byte {} is more than the file has room for; was its download cut off?",
                self.at - 8
            )
        })
    }

    fn text(&mut self) -> Result<String, Problem> {
        let len = self.count(1)?;
        let at = self.at;
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| format!("the string at byte {at} is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, Problem> {
        match kind {
            8 => Ok(Value::Text(self.text()?)),
            9 => self.list(),
            _ => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, Problem> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Flag(self.array::<1>()? != [0]),
            10 => Value::Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("unknown value type {other} at byte {}; the file is damaged", self.at)),
        })
    }

    fn list(&mut self) -> Result<Value, Problem> {
        let kind = self.u32()?;
        // A string takes at least its length, a nested list its type and length, a number at least one byte.
        let count = self.count(match kind {
            8 => 8,
            9 => 12,
            _ => 1,
        })?;
        Ok(match kind {
            8 => Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?),
            0..=5 | 10 | 11 => Value::Integers(
                (0..count)
                    .map(|_| match self.scalar(kind)? {
                        Value::Integer(number) => Ok(number),
                        _ => unreachable!("these kinds are integers"),
                    })
                    .collect::<Result<_, Problem>>()?,
            ),
            6 | 12 => Value::Floats(
                (0..count)
                    .map(|_| match self.scalar(kind)? {
                        Value::Float(number) => Ok(number),
                        _ => unreachable!("these kinds are floats"),
                    })
                    .collect::<Result<_, Problem>>()?,
            ),
            7 => {
                self.take(count)?;
                Value::Other
            }
            9 => return Err("lists of lists are not supported".into()),
            other => return Err(format!("unknown list type {other} at byte {}; the file is damaged", self.at)),
        })
    }

    /// An entry of the tensor table. `start` is still relative to the data section.
    fn entry(&mut self) -> Result<Entry, Problem> {
        let axes = self.u32()?;
        if !(1..=4).contains(&axes) {
            return Err(format!("{axes} axes; 1 to 4 are possible"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(self.u64()?);
        }
        if shape.contains(&0) {
            return Err("has an axis of size 0".into());
        }
        let row = shape[0];
        shape.reverse();
        let id = self.u32()?;
        let format = Format::from_id(id)
            .ok_or_else(|| format!("is stored in ggml format {id}, which is not supported; {} are", Format::names()))?;
        let block = format.block_numbers() as u64;
        if row % block != 0 {
            return Err(format!("a row of {row} numbers is no whole number of {} blocks of {block}", format.name()));
        }
        let too_large = || format!("shape {shape:?} is more than a file can hold");
        let shape =
            shape.iter().map(|size| usize::try_from(*size)).collect::<Result<Vec<_>, _>>().map_err(|_| too_large())?;
        let len = shape
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size))
            .and_then(|numbers| (numbers / format.block_numbers()).checked_mul(format.block_bytes()))
            .filter(|len| i64::try_from(*len).is_ok())
            .ok_or_else(too_large)?;
        let start = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        Ok(Entry { format, shape, start, len })
    }
}
