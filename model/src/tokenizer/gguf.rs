//! Tokenizers from GGUF metadata: a vocabulary, and the *name* of the pre-tokenizer that splits text into words.
//!
//! Two kinds exist among the families here. `gpt2` is byte-level BPE with a list of merges; its pre-tokenizer has a
//! name that must be known, since a wrong one gives wrong ids without any other sign. `llama` is SentencePiece's BPE,
//! whose merges follow from the scores of the vocabulary (as the hub's own converter derives them).

use super::{Tokenizer, unusable};
use crate::chat_template::ChatTemplate;
use crate::gguf::Metadata;
use crate::{Error, Result};
use schema::Token;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// A pre-tokenizer of byte-level BPE.
struct PreTokenizer {
    names: &'static [&'static str],
    split: Split,
    /// Unicode composition (NFC) first.
    nfc: bool,
    /// A word in the vocabulary is one token, whatever the merges say.
    whole_words: bool,
    /// A text begins with the beginning-of-sequence token unless the file says otherwise.
    begins: bool,
}

/// The rule that splits text into words.
enum Split {
    /// GPT-2's words (Radford et al. 2019).
    Words,
    /// Each digit alone, then GPT-2's words.
    DigitsThenWords,
    /// The matches of this regular expression.
    Expression(&'static str),
}

/// Llama 3's words: as GPT-2's, but any case of contractions, at most three digits, and line breaks together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's words: as Llama 3's, but each digit alone.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The known pre-tokenizers. A new one is one entry.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer { names: &["default", "gpt-2"], split: Split::Words, nfc: false, whole_words: false, begins: false },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: Split::DigitsThenWords,
        nfc: false,
        whole_words: false,
        begins: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Split::Expression(LLAMA3),
        nfc: false,
        whole_words: true,
        begins: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Split::Expression(QWEN2),
        nfc: true,
        whole_words: false,
        begins: false,
    },
];

/// ggml's kinds of vocabulary entries.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// ggml's name of the pre-tokenizer of a `tokenizer.json`, if it is one of those known here.
pub(super) fn pre_tokenizer_name(json: &Value) -> Option<&'static str> {
    let model = &json["model"];
    let nfc = json["normalizer"]["type"] == "NFC";
    let plain = json["normalizer"].is_null();
    let cut = cutting(&json["pre_tokenizer"]);
    let rule = PRE_TOKENIZERS.iter().find(|rule| {
        let same = rule.split.build().and_then(|own| serde_json::to_value(own).map_err(unusable));
        let whole_words = model["ignore_merges"].as_bool().unwrap_or(false);
        same.is_ok_and(|own| cutting(&own) == cut)
            && rule.whole_words == whole_words
            && (nfc || plain)
            && rule.nfc == nfc
    })?;
    // The name `default` would tell a reader of the file nothing.
    rule.names.iter().find(|name| **name != "default").copied()
}

/// The steps of a pre-tokenizer, without settings that change no token, such as those of offsets.
fn cutting(json: &Value) -> Vec<Value> {
    let steps = json["pretokenizers"].as_array().cloned().unwrap_or_else(|| vec![json.clone()]);
    let plain = |mut step: Value| {
        if let Some(fields) = step.as_object_mut() {
            fields.remove("trim_offsets");
        }
        step
    };
    steps.into_iter().map(plain).collect()
}

impl Tokenizer {
    /// Builds a tokenizer from the metadata of a GGUF file.
    ///
    /// # Errors
    /// If the metadata holds no tokenizer, its kind or pre-tokenizer is not supported, or its merges, scores or chat
    /// template are damaged.
    pub(crate) fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let tokens = metadata
            .texts("tokenizer.ggml.tokens")
            .ok_or_else(|| Error::input("the file holds no tokenizer (metadata `tokenizer.ggml.tokens` is missing)"))?;
        let vocabulary = Vocabulary { metadata, tokens: with_text(metadata, tokens) };
        let mut inner = match metadata.text("tokenizer.ggml.model") {
            Some("gpt2") => vocabulary.byte_level()?,
            Some("llama") => vocabulary.sentence_piece()?,
            other => {
                return Err(Error::input(format!(
                    "tokenizer model `{}` is not supported; gpt2 and llama are",
                    other.unwrap_or("(none)")
                )));
            }
        };
        vocabulary.add_marks(&mut inner)?;
        let template = metadata
            .text("tokenizer.chat_template")
            .map(|source| ChatTemplate::new(source, vocabulary.named_texts()))
            .transpose()?;
        Ok(Self::new(inner, vocabulary.eos(), template))
    }

    /// The files of this tokenizer in a hub folder: vocabulary, special tokens, and end-of-sequence tokens.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub(crate) fn hub_files(metadata: &Metadata) -> Result<Vec<(String, Vec<u8>)>> {
        let tokenizer = Self::from_gguf(metadata)?;
        let tokens = metadata.texts("tokenizer.ggml.tokens").unwrap_or_default();
        let vocabulary = Vocabulary { metadata, tokens };
        let mut settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        for (name, text) in vocabulary.named_texts() {
            settings[name] = json!(text);
        }
        if let Some(template) = metadata.text("tokenizer.chat_template") {
            settings["chat_template"] = json!(template);
        }
        let mut generation = json!({ "eos_token_id": tokenizer.eos_ids() });
        for (name, key) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
            if let Some(id) = metadata.token(&format!("tokenizer.ggml.{key}_token_id")) {
                generation[name] = json!(id);
            }
        }
        let pretty = |value: &Value| serde_json::to_vec_pretty(value).map_err(unusable);
        Ok(vec![
            ("tokenizer.json".into(), tokenizer.inner.to_string(false).map_err(unusable)?.into_bytes()),
            ("tokenizer_config.json".into(), pretty(&settings)?),
            ("generation_config.json".into(), pretty(&generation)?),
        ])
    }
}

/// The tokens up to the last one with text: embeddings with more rows have names for them that occur in no text.
fn with_text<'a>(metadata: &Metadata, tokens: &'a [String]) -> &'a [String] {
    let kinds = metadata.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let is_padding =
        |(id, token): &(usize, &String)| kinds.get(*id) == Some(&UNUSED) && **token == format!("[PAD{id}]");
    let padding = tokens.iter().enumerate().rev().take_while(is_padding).count();
    &tokens[..tokens.len() - padding]
}

/// The vocabulary of a GGUF file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
}

impl Vocabulary<'_> {
    fn byte_level(&self) -> Result<tokenizers::Tokenizer> {
        let merges = self.metadata.texts("tokenizer.ggml.merges").ok_or_else(|| unusable("merges are missing"))?;
        let merges = merges.iter().map(|line| pair(line)).collect::<Result<Merges>>()?;
        let rule = self.pre_tokenizer()?;
        let model = BPE::builder()
            .vocab_and_merges(self.ids(), merges)
            .ignore_merges(rule.whole_words)
            .build()
            .map_err(unusable)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        if rule.nfc {
            inner.with_normalizer(Some(normalizer(json!({"type": "NFC"}))?)).map_err(unusable)?;
        }
        inner.with_pre_tokenizer(Some(rule.split.build()?));
        inner.with_decoder(Some(decoder(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        }))?));
        self.add_begin_and_end(&mut inner, rule.begins)?;
        Ok(inner)
    }

    fn pre_tokenizer(&self) -> Result<&'static PreTokenizer> {
        let name = self.metadata.text("tokenizer.ggml.pre").unwrap_or("default");
        PRE_TOKENIZERS.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
            let known: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|rule| rule.names).copied().collect();
            Error::input(format!(
                "pre-tokenizer `{name}` is not known (known: {}); use the model's Hugging Face folder instead",
                known.join(", ")
            ))
        })
    }

    fn sentence_piece(&self) -> Result<tokenizers::Tokenizer> {
        let scores = self
            .metadata
            .numbers("tokenizer.ggml.scores")
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| unusable("a SentencePiece vocabulary needs one score per token"))?;
        let mut model = BPE::builder()
            .vocab_and_merges(self.ids(), self.merges_from_scores(scores))
            .byte_fallback(true)
            .fuse_unk(true);
        if let Some(unknown) = self.text_of("tokenizer.ggml.unknown_token_id") {
            model = model.unk_token(unknown.to_owned());
        }
        let mut inner = tokenizers::Tokenizer::new(model.build().map_err(unusable)?);
        let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let leads = self.metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let steps = if leads { vec![json!({"type": "Prepend", "prepend": "▁"}), blanks] } else { vec![blanks] };
        inner
            .with_normalizer(Some(normalizer(json!({"type": "Sequence", "normalizers": steps}))?))
            .map_err(unusable)?;
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if leads {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        inner.with_decoder(Some(decoder(json!({"type": "Sequence", "decoders": steps}))?));
        self.add_begin_and_end(&mut inner, true)?;
        Ok(inner)
    }

    /// Every merge of two tokens into a third, best token first.
    fn merges_from_scores(&self, scores: &[f64]) -> Merges {
        let ids: HashMap<&str, usize> = self.tokens.iter().map(String::as_str).zip(0..).collect();
        let mut merges = Vec::new();
        for (token, score) in self.tokens.iter().zip(scores) {
            let mut ways: Vec<_> = token
                .char_indices()
                .skip(1)
                .map(|(at, _)| token.split_at(at))
                .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), left, right)))
                .collect();
            ways.sort_unstable_by_key(|(ids, ..)| *ids);
            merges.extend(ways.into_iter().map(|(_, left, right)| (*score, left, right)));
        }
        let characters = |text: &str| text.chars().count();
        merges.sort_by(|(score_a, left_a, right_a), (score_b, left_b, right_b)| {
            let lengths = |left, right| Reverse((characters(left), characters(right)));
            score_b.total_cmp(score_a).then_with(|| lengths(left_a, right_a).cmp(&lengths(left_b, right_b)))
        });
        merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }

    /// Adds the special tokens at the beginning and end of a text as the file's flags say.
    fn add_begin_and_end(&self, inner: &mut tokenizers::Tokenizer, begins: bool) -> Result<()> {
        let mark = |flag: &str, by_default: bool, key: &str| {
            self.metadata.flag(flag).unwrap_or(by_default).then(|| self.metadata.token(key)).flatten()
        };
        let begin = mark("tokenizer.ggml.add_bos_token", begins, "tokenizer.ggml.bos_token_id");
        let end = mark("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id");
        if begin.is_none() && end.is_none() {
            return Ok(());
        }
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let around = |sequences: Vec<Value>| -> Vec<Value> {
            let begin = begin.map(|_| special("begin"));
            begin.into_iter().chain(sequences).chain(end.map(|_| special("end"))).collect()
        };
        let entry = |name: &str, id: Token| (name.to_owned(), json!({"id": name, "ids": [id], "tokens": [name]}));
        let special_tokens: serde_json::Map<_, _> =
            [begin.map(|id| entry("begin", id)), end.map(|id| entry("end", id))].into_iter().flatten().collect();
        let processor: PostProcessorWrapper = serde_json::from_value(json!({
            "type": "TemplateProcessing",
            "single": around(vec![sequence("A")]),
            "pair": around(vec![sequence("A"), sequence("B")]),
            "special_tokens": special_tokens,
        }))
        .map_err(unusable)?;
        inner.with_post_processor(Some(processor));
        Ok(())
    }

    /// Registers special tokens and entries that are never split.
    fn add_marks(&self, inner: &mut tokenizers::Tokenizer) -> Result<()> {
        let Some(kinds) = self.metadata.integers("tokenizer.ggml.token_type") else { return Ok(()) };
        let marks = self.tokens.iter().zip(kinds).filter_map(|(token, kind)| match *kind {
            _ if token.is_empty() => None,
            CONTROL | UNKNOWN => Some(AddedToken::from(token.as_str(), true)),
            USER_DEFINED => Some(AddedToken::from(token.as_str(), false).normalized(false)),
            _ => None,
        });
        inner.add_tokens(marks).map_err(unusable)?;
        Ok(())
    }

    fn eos(&self) -> Vec<Token> {
        let mut ids: Vec<Token> = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .iter()
            .filter_map(|key| self.metadata.token(&format!("tokenizer.ggml.{key}")))
            .filter(|id| (*id as usize) < self.tokens.len())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The special tokens that a chat template may name.
    fn named_texts(&self) -> BTreeMap<String, String> {
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
            .iter()
            .filter_map(|(name, key)| {
                Some(((*name).to_owned(), self.text_of(&format!("tokenizer.ggml.{key}_token_id"))?.to_owned()))
            })
            .collect()
    }

    fn text_of(&self, key: &str) -> Option<&str> {
        self.tokens.get(self.metadata.token(key)? as usize).map(String::as_str)
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }
}

/// The two sides of a line of merges. The left side may begin with a blank, the right side holds none.
fn pair(line: &str) -> Result<(String, String)> {
    let (left, right) = line.rsplit_once(' ').ok_or_else(|| unusable(format!("merge `{line}` has no two sides")))?;
    Ok((left.to_owned(), right.to_owned()))
}

impl Split {
    fn build(&self) -> Result<PreTokenizerWrapper> {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
        let value = match self {
            Self::Words => bytes(true),
            Self::DigitsThenWords => sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Self::Expression(expression) => sequence(
                json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false}),
                bytes(false),
            ),
        };
        serde_json::from_value(value).map_err(unusable)
    }
}

fn normalizer(value: Value) -> Result<NormalizerWrapper> {
    serde_json::from_value(value).map_err(unusable)
}

fn decoder(value: Value) -> Result<DecoderWrapper> {
    serde_json::from_value(value).map_err(unusable)
}
