//! Tokens that other files than `tokenizer.json` add to it.
//!
//! transformers adds to a `tokenizer.json`, when it loads a folder: the tokens of `added_tokens_decoder` in
//! `tokenizer_config.json` in the order of their ids (or, in older folders, those of `added_tokens.json`), whose flags
//! (`lstrip`, `rstrip`, `single_word`, `normalized`, `special`) count before those of a token of the same text that is
//! there already; then every special token that a role (`eos_token` and others) or a list of further special tokens
//! names and that is not yet an added one. Without them, a mark that the chat template writes would fall apart into
//! letters.

use super::folder::Settings;
use super::unusable;
use crate::files::read_json;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use tokenizers::AddedToken;

/// Roles of special tokens, which chat templates may name, too.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Lists of special tokens without a role; `extra_special_tokens` may give them names.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Adds the tokens of the other files in the folder `path`.
///
/// # Errors
/// If an entry is damaged, or a token does not get the id that the file gives it.
pub(super) fn add(inner: &mut tokenizers::Tokenizer, settings: &Settings, path: &Path) -> Result<()> {
    let special = special_tokens(settings);
    let listed = listed(settings, path, &special)?;
    inner.add_tokens(listed.iter().map(|(_, token)| token.clone())).map_err(unusable)?;
    for (id, token) in &listed {
        let found = inner.token_to_id(&token.content);
        if found != Some(*id) {
            return Err(Error::file(
                path,
                format!(
                    "token `{}` has id {id} in tokenizer_config.json or added_tokens.json, but {} after tokenizer.json; one of \
                     the files lacks the tokens between; save the tokenizer again with transformers",
                    token.content,
                    found.map_or_else(|| "none".to_owned(), |id| id.to_string())
                ),
            ));
        }
    }
    let known: BTreeSet<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let missing = special.into_iter().filter(|token| !known.contains(&token.content));
    inner.add_tokens(missing).map_err(unusable)?;
    Ok(())
}

/// The tokens that a file gives ids, in the order of the ids.
fn listed(settings: &Settings, path: &Path, special: &[AddedToken]) -> Result<Vec<(u32, AddedToken)>> {
    let is_special = |content: &str| special.iter().any(|token| token.content == content);
    let entries = settings.tokenizer.get("added_tokens_decoder").and_then(Value::as_object);
    let (key, tokens): (_, Option<Vec<_>>) = if let Some(entries) = entries {
        let tokens = entries.iter().map(|(id, value)| Some((id.parse().ok()?, token(value, false)?)));
        ("added_tokens_decoder", tokens.collect())
    } else {
        let file = path.join("added_tokens.json");
        let entries = if file.exists() { read_json(&file)? } else { Value::Null };
        let tokens = entries.as_object().into_iter().flatten().map(|(content, id)| {
            let special = is_special(content);
            let token = AddedToken::from(content.as_str(), special).normalized(!special);
            Some((id.as_u64()?.try_into().ok()?, token))
        });
        ("added_tokens.json", tokens.collect())
    };
    let mut tokens = tokens
        .ok_or_else(|| Error::file(path, format!("`{key}` is damaged; each token needs an id and a `content`")))?;
    tokens.sort_by_key(|(id, _)| *id);
    // A role or a list makes a token special, whatever its own flag says.
    for (_, token) in &mut tokens {
        token.special = token.special || is_special(&token.content);
    }
    Ok(tokens)
}

/// The special tokens that the settings name, each once.
fn special_tokens(settings: &Settings) -> Vec<AddedToken> {
    let roles = ROLES.iter().filter_map(|role| settings.special(role));
    let lists = LISTS.iter().filter_map(|list| settings.special(list)).flat_map(|list| match list {
        Value::Array(tokens) => tokens.iter().collect::<Vec<_>>(),
        Value::Object(named) => named.values().collect(),
        _ => Vec::new(),
    });
    let mut seen = BTreeSet::new();
    let tokens = roles.chain(lists).filter_map(|value| token(value, true));
    tokens.filter(|token| !token.content.is_empty() && seen.insert(token.content.clone())).collect()
}

/// A token, written as a text or as an object with its flags.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(content, special);
    Some(
        token
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .single_word(flag("single_word").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}
