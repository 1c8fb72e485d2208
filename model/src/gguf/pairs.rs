//! Metadata to write to a GGUF file: keys, each with its encoded type and value.

/// Keys and encoded values, in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Pairs(Vec<(String, Vec<u8>)>);

/// ggml's ids of value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

impl Pairs {
    /// Adds an encoded value: its type and its bytes.
    pub(crate) fn raw(&mut self, key: &str, value: &[u8]) {
        self.0.push((key.to_owned(), value.to_vec()));
    }

    pub(crate) fn integer(&mut self, key: &str, value: u32) {
        self.scalar(key, U32, &value.to_le_bytes());
    }

    pub(crate) fn number(&mut self, key: &str, value: f64) {
        self.scalar(key, F32, &(value as f32).to_le_bytes());
    }

    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.scalar(key, FLAG, &[u8::from(value)]);
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.scalar(key, TEXT, &text(value));
    }

    pub(crate) fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.list(key, TEXT, values.len(), values.flat_map(text));
    }

    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) {
        self.list(key, I32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(crate) fn numbers(&mut self, key: &str, values: &[f32]) {
        self.list(key, F32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// Appends all pairs of another.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The number of pairs.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes of the metadata section.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect()
    }

    fn scalar(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.raw(key, &[&kind.to_le_bytes(), value].concat());
    }

    fn list(&mut self, key: &str, kind: u32, count: usize, values: impl Iterator<Item = u8>) {
        let head = [&LIST.to_le_bytes()[..], &kind.to_le_bytes(), &(count as u64).to_le_bytes()].concat();
        self.raw(key, &head.into_iter().chain(values).collect::<Vec<u8>>());
    }
}

/// A string: its length and its bytes.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
