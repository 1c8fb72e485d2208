//! The tokenizer of a hub folder as GGUF metadata, the reverse of `from_gguf`.
//!
//! The vocabulary and its merges can be copied. The pre-tokenizer cannot: GGUF only has a *name* for it, so the rules
//! of `tokenizer.json` must be exactly those of a known name, and are refused otherwise rather than guessed. A
//! SentencePiece vocabulary has scores in GGUF and merges in `tokenizer.json`; the score of a token is here minus the
//! rank of the first merge that makes it, which orders merges the same way.

use super::folder::Settings;
use super::gguf::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, pre_tokenizer_name};
use super::{Tokenizer, unusable};
use crate::gguf::Pairs;
use crate::{Error, Result};
use schema::Token;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

impl Tokenizer {
    /// The metadata of the tokenizer in a folder, for a network with `rows` rows in its embedding.
    ///
    /// # Errors
    /// If the tokenizer cannot be read, is not BPE, has more tokens than the network has rows, or has a pre-tokenizer
    /// without a name in GGUF.
    pub(crate) fn gguf_metadata(path: &Path, config: &Value, rows: usize) -> Result<Pairs> {
        let tokenizer = Self::from_folder(path, config)?;
        let settings = Settings::read(path)?;
        let json: Value = tokenizer
            .inner
            .to_string(false)
            .map_err(unusable)
            .and_then(|text| serde_json::from_str(&text).map_err(unusable))?;
        let source = Source { tokenizer: &tokenizer, json: &json, rows };
        let mut pairs = Pairs::default();
        source.vocabulary(&mut pairs).map_err(|error| Error::file(path, error))?;
        source.marks(config, &settings, &mut pairs);
        if let Some(template) = settings.chat_template(path)? {
            pairs.text("tokenizer.chat_template", &template);
        }
        Ok(pairs)
    }
}

/// A tokenizer and the network's number of embedding rows.
struct Source<'a> {
    tokenizer: &'a Tokenizer,
    /// The content of its `tokenizer.json`.
    json: &'a Value,
    rows: usize,
}

impl Source<'_> {
    fn vocabulary(&self, pairs: &mut Pairs) -> Result<()> {
        let model = &self.json["model"];
        if model["type"] != "BPE" {
            return Err(unusable(format!("its model is {}, and only BPE can be written to GGUF", model["type"])));
        }
        let merges = merges(model)?;
        let tokens = self.tokens()?;
        if model["byte_fallback"] == true {
            pairs.text("tokenizer.ggml.model", "llama");
            pairs.text("tokenizer.ggml.pre", "default");
            pairs.numbers("tokenizer.ggml.scores", &scores(&tokens, &merges));
            pairs.flag("tokenizer.ggml.add_space_prefix", self.begins_with_a_blank());
        } else {
            let name = pre_tokenizer_name(self.json).ok_or_else(|| {
                unusable("its way to cut words has no name in GGUF that is known here; export a Hugging Face folder")
            })?;
            pairs.text("tokenizer.ggml.model", "gpt2");
            pairs.text("tokenizer.ggml.pre", name);
            let lines: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
            pairs.texts("tokenizer.ggml.merges", lines.iter().map(String::as_str));
        }
        pairs.integers("tokenizer.ggml.token_type", &self.kinds(&tokens));
        pairs.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
        Ok(())
    }

    /// Every row's token; rows without one get a name that occurs in no text.
    fn tokens(&self) -> Result<Vec<String>> {
        let known = self.tokenizer.vocab_size();
        if known > self.rows {
            return Err(unusable(format!("it has {known} tokens, but the network has {} rows", self.rows)));
        }
        let token = |id: usize| self.tokenizer.token_text(id as Token).unwrap_or_else(|| format!("[PAD{id}]"));
        Ok((0..self.rows).map(token).collect())
    }

    fn kinds(&self, tokens: &[String]) -> Vec<i32> {
        let added = self.tokenizer.inner.get_added_tokens_decoder();
        let unknown = self.json["model"]["unk_token"].as_str();
        let falls_back = self.json["model"]["byte_fallback"] == true;
        let kind = |(id, token): (Token, &String)| match added.get(&id) {
            _ if Some(token.as_str()) == unknown => UNKNOWN,
            Some(mark) if mark.special => CONTROL,
            Some(_) => USER_DEFINED,
            None if self.tokenizer.token_text(id).is_none() => UNUSED,
            None if falls_back && is_byte(token) => BYTE,
            None => NORMAL,
        };
        (0..).zip(tokens).map(|entry| kind(entry) as i32).collect()
    }

    /// True if `▁` is put in front of a text.
    fn begins_with_a_blank(&self) -> bool {
        let normalizer = self.json["normalizer"].to_string();
        let scheme = self.json["pre_tokenizer"]["prepend_scheme"].as_str();
        normalizer.contains("\"Prepend\"") || scheme.is_some_and(|scheme| scheme != "never")
    }

    /// Writes the special tokens by role, and the flags of those added around a text.
    fn marks(&self, config: &Value, settings: &Settings, pairs: &mut Pairs) {
        let inner = &self.tokenizer.inner;
        let named = |name: &str| settings.special_text(name).and_then(|text| inner.token_to_id(text));
        let configured = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|id| Token::try_from(id).ok());
        let (plain, whole) = (self.tokenizer.encode("a"), self.tokenizer.encode_with_special("a"));
        let (plain, whole) = (plain.unwrap_or_default(), whole.unwrap_or_default());
        let begins = whole.len() > plain.len() && whole.first() != plain.first();
        let ends = whole.len() > plain.len() && whole.last() != plain.last();
        let begin = if begins { whole.first().copied() } else { named("bos_token").or(configured("bos_token_id")) };
        // The tokenizer's own end comes first: it is the one that templates write.
        let own = named("eos_token");
        let mut eos = self.tokenizer.eos_ids().to_vec();
        eos.sort_by_key(|id| Some(*id) != own);
        let ids = [
            ("bos", begin),
            ("eos", eos.first().copied()),
            ("eot", eos.get(1).copied()),
            ("eom", eos.get(2).copied()),
            ("padding", named("pad_token")),
            ("unknown", self.json["model"]["unk_token"].as_str().and_then(|text| inner.token_to_id(text))),
        ];
        for (role, id) in ids {
            if let Some(id) = id.filter(|id| (*id as usize) < self.rows) {
                pairs.integer(&format!("tokenizer.ggml.{role}_token_id"), id);
            }
        }
        pairs.flag("tokenizer.ggml.add_bos_token", begins);
        pairs.flag("tokenizer.ggml.add_eos_token", ends);
    }
}

/// The merges of a BPE model, written as pairs or as lines.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let merge = |value: &Value| match value {
        Value::String(line) => line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Value::Array(sides) => match &sides[..] {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let list = model["merges"].as_array().ok_or_else(|| unusable("it has no merges"))?;
    list.iter().map(|value| merge(value).ok_or_else(|| unusable(format!("merge {value} has no two sides")))).collect()
}

/// The score of each token of a SentencePiece vocabulary.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    // Below every merge, so that nothing is put together that has no merge.
    const NEVER: f32 = -1e9;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    tokens.iter().map(|token| ranks.get(token).map_or(NEVER, |rank| -(*rank as f32))).collect()
}

/// True for the token of one byte, such as `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_order_as_merges_do() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let merges: Vec<_> = [("a", "b"), ("ab", "c"), ("a", "bc")].map(|(l, r)| (l.to_owned(), r.to_owned())).into();
        assert_eq!(scores(&words(&["a", "ab", "abc"]), &merges), [-1e9, 0.0, -1.0]);
    }

    #[test]
    fn bytes_are_told_from_words() {
        assert!(is_byte("<0x0A>") && is_byte("<0xff>"));
        assert!(!is_byte("<0x0A") && !is_byte("<0xGG>") && !is_byte("<s>"));
    }
}
