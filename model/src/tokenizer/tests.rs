//! Ids, texts and conversations agree with those of transformers, whatever a tokenizer came in.

use super::*;
use crate::files::read_json;
use crate::weights::Checkpoint;
use crate::weights::tests::{fixture, real_model};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

/// The results of transformers on the corpus.
#[derive(Deserialize)]
struct Expected {
    plain: Vec<Vec<Token>>,
    special: Vec<Vec<Token>>,
    decoded: Vec<String>,
    conversations: Vec<Conversation>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    closed: String,
    open: String,
    ids: Vec<Token>,
}

fn corpus() -> Vec<String> {
    serde_json::from_value(read_json(&fixture("corpus.json")).unwrap()).unwrap()
}

fn tokenizer(model: &Path) -> Tokenizer {
    Checkpoint::open(model).unwrap().tokenizer().unwrap()
}

pub(crate) fn check(tokenizer: &Tokenizer, expected: &str) {
    let expected: Expected = serde_json::from_value(read_json(&fixture(expected)).unwrap()).unwrap();
    let corpus = corpus();
    assert_eq!(corpus.len(), expected.plain.len());
    for (index, text) in corpus.iter().enumerate() {
        assert_eq!(tokenizer.encode(text).unwrap(), expected.plain[index], "{text:?}");
        let ids = tokenizer.encode_with_special(text).unwrap();
        assert_eq!(ids, expected.special[index], "{text:?}");
        assert_eq!(tokenizer.decode(&ids), expected.decoded[index]);
        let mut stream = tokenizer.stream();
        let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
        streamed += &stream.finish();
        assert_eq!(streamed, expected.decoded[index]);
    }
    for conversation in expected.conversations {
        let messages = conversation.messages;
        assert_eq!(tokenizer.render(&messages, Ending::LastMessage).unwrap(), conversation.closed);
        assert_eq!(tokenizer.render(&messages, Ending::AssistantOpening).unwrap(), conversation.open);
        let prompt = Prompt { input: PromptInput::Messages(messages), ..Prompt::text("") };
        assert_eq!(tokenizer.prompt_ids(&prompt).unwrap(), conversation.ids);
    }
}

#[test]
fn folders_agree_with_transformers() {
    for model in ["llama", "llama2", "qwen2", "qwen3"] {
        check(&tokenizer(&fixture(model)), &format!("{model}/expected.json"));
    }
}

#[test]
fn gguf_files_agree_with_transformers() {
    for model in ["llama", "llama2", "qwen2", "qwen3"] {
        check(&tokenizer(&fixture(&format!("{model}.gguf"))), &format!("{model}/expected.json"));
    }
}

#[test]
fn the_real_model_agrees_with_transformers() {
    let Some(file) = real_model() else { return };
    let tokenizer = tokenizer(&file);
    check(&tokenizer, "smollm2.json");
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!(tokenizer.token_text(1).as_deref(), Some("<|im_start|>"));
    assert!(tokenizer.decode(&[1]).is_empty() && !tokenizer.decode(&[28]).is_empty(), "special tokens leave no text");
}

#[test]
fn all_tokens_that_end_an_answer_are_known() {
    // generation_config.json lists two; the `2` that is config.json's default is not believed beside it.
    let llama = tokenizer(&fixture("llama"));
    let ends = ["<|im_end|>", "<|endoftext|>"].map(|text| llama.inner.token_to_id(text).unwrap());
    assert_eq!(llama.eos_ids(), ends);
    assert_eq!(tokenizer(&fixture("llama.gguf")).eos_ids(), ends);
    assert_eq!(tokenizer(&fixture("llama2")).eos_ids(), [2]);
    assert_eq!(tokenizer(&fixture("qwen2.gguf")).eos_ids(), tokenizer(&fixture("qwen2")).eos_ids());
}

#[test]
fn a_template_may_refuse_a_conversation() {
    let llama2 = tokenizer(&fixture("llama2"));
    let turns = vec![Message::user("a"), Message::user("b")];
    let error = llama2.render(&turns, Ending::AssistantOpening).unwrap_err().to_string();
    assert!(error.contains("refuses this conversation: roles must alternate"), "{error}");
}

#[test]
fn the_beginning_of_sequence_token_is_not_doubled() {
    let llama = tokenizer(&fixture("llama"));
    let begin = llama.inner.token_to_id("<|endoftext|>").unwrap();
    let ids = llama.prompt_ids(&Prompt::user("hi")).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == begin).count(), 1);
    assert_eq!(llama.prompt_ids(&Prompt::text("hi")).unwrap()[0], begin);
}

#[test]
fn the_error_names_the_missing_file_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let read = || Tokenizer::from_folder(folder.path(), &serde_json::Value::Null);
    let message = |error: Error| {
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    assert!(message(read().unwrap_err()).contains("holds no tokenizer.json"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(message(read().unwrap_err()).contains("tokenizer.json: the tokenizer cannot be used"));
    std::fs::copy(fixture("qwen2/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let bare = read().unwrap();
    assert!(bare.eos_ids().is_empty() && bare.template.is_none());
    assert!(message(bare.prompt_ids(&Prompt::user("hi")).unwrap_err()).contains("no chat template"));
    std::fs::write(folder.path().join("chat_template.jinja"), "{% if %}").unwrap();
    assert!(message(read().unwrap_err()).contains("chat template, line 1"));
}

/// A folder with the byte tokenizer as its `tokenizer.json`, ids 0 to 258, and these files.
fn folder_with(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let json = Tokenizer::bytes().inner.to_string(false).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    for (name, content) in files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn read_with(files: &[(&str, serde_json::Value)]) -> Result<Tokenizer> {
    Tokenizer::from_folder(folder_with(files).path(), &serde_json::Value::Null)
}

fn bytes(text: &str) -> Vec<Token> {
    text.bytes().map(Token::from).collect()
}

/// Two tokens that `tokenizer.json` lacks, as transformers 5.24 adds and encodes them.
#[test]
fn tokens_of_the_settings_are_added_with_their_ids() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|turn_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let flags = |content: &str, special: bool| {
        json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
               "special": special})
    };
    let settings = json!({
        "eos_token": "<|turn_end|>",
        "added_tokens_decoder": {"260": flags("<|turn_end|>", true), "259": flags("<tool>", false)},
    });
    let tokenizer =
        read_with(&[("tokenizer_config.json", settings), ("chat_template.jinja", json!(template))]).unwrap();
    assert_eq!(tokenizer.encode("x<tool>y").unwrap(), [120, 259, 121]);
    assert_eq!(tokenizer.encode("a <tool> b").unwrap(), [97, 32, 259, 32, 98]);
    assert_eq!(tokenizer.encode("<|turn_end|>").unwrap(), [260]);
    assert_eq!(tokenizer.encode("plain").unwrap(), bytes("plain"));
    assert_eq!((tokenizer.eos_ids(), tokenizer.vocab_size()), (&[260][..], 261));
    assert_eq!(tokenizer.decode(&[120, 259, 260]), "x<tool>", "a special token leaves no text");
    let ids = [&[256][..], &bytes("user\nhi"), &[260, 10, 256], &bytes("assistant\n")].concat();
    assert_eq!(tokenizer.prompt_ids(&Prompt::user("hi")).unwrap(), ids);
}

#[test]
fn flags_of_the_settings_count_before_those_of_the_vocabulary() {
    let encode = |flags: serde_json::Value| {
        let mut token = json!({"content": "<|im_end|>", "special": true});
        token.as_object_mut().unwrap().extend(flags.as_object().cloned().unwrap());
        let settings = json!({"added_tokens_decoder": {"257": token}});
        read_with(&[("tokenizer_config.json", settings)]).unwrap().encode("a <|im_end|> b").unwrap()
    };
    assert_eq!(encode(json!({})), [97, 32, 257, 32, 98]);
    assert_eq!(encode(json!({"lstrip": true})), [97, 257, 32, 98]);
    assert_eq!(encode(json!({"rstrip": true})), [97, 32, 257, 98]);
}

#[test]
fn special_tokens_of_every_place_are_one_token() {
    for files in [
        vec![("tokenizer_config.json", json!({"additional_special_tokens": ["<a>"]}))],
        vec![("tokenizer_config.json", json!({"extra_special_tokens": ["<a>"]}))],
        vec![("tokenizer_config.json", json!({"extra_special_tokens": {"image_token": "<a>"}}))],
        vec![("tokenizer_config.json", json!({"additional_special_tokens": [{"content": "<a>", "lstrip": false}]}))],
        vec![("tokenizer_config.json", json!({"pad_token": "<a>"}))],
        vec![("special_tokens_map.json", json!({"additional_special_tokens": ["<a>"]}))],
        vec![("special_tokens_map.json", json!({"mask_token": {"content": "<a>"}}))],
        vec![("added_tokens.json", json!({"<a>": 259}))],
        vec![("added_tokens.json", json!({"<a>": 259})), ("special_tokens_map.json", json!({"pad_token": "<a>"}))],
    ] {
        let tokenizer = read_with(&files).unwrap();
        assert_eq!(tokenizer.encode("x<a>y").unwrap(), [120, 259, 121], "{files:?}");
        let special = !(files.len() == 1 && files[0].0 == "added_tokens.json");
        assert_eq!(tokenizer.decode(&[259]).is_empty(), special, "{files:?}");
    }
    // A token that is there already stays what it is.
    let settings = json!({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]});
    assert_eq!(read_with(&[("tokenizer_config.json", settings)]).unwrap().vocab_size(), 259);
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    let entry = |id: &str, token: serde_json::Value| {
        let settings = json!({"added_tokens_decoder": {id: token}});
        let error = read_with(&[("tokenizer_config.json", settings)]).unwrap_err();
        assert!(error.is_input(), "{error}");
        error.to_string()
    };
    let error = entry("300", json!({"content": "<a>"}));
    assert!(error.contains("token `<a>` has id 300") && error.contains("but 259 after tokenizer.json"), "{error}");
    let sparse = json!({"added_tokens_decoder": {"259": {"content": "<a>"}}});
    assert_eq!(read_with(&[("tokenizer_config.json", sparse)]).unwrap().gaps(), 0);
    let error = entry("5", json!({"content": "<|im_end|>"}));
    assert!(error.contains("token `<|im_end|>` has id 5") && error.contains("but 257"), "{error}");
    assert!(entry("a", json!({"content": "<a>"})).contains("`added_tokens_decoder` is damaged"));
    assert!(entry("259", json!({})).contains("`added_tokens_decoder` is damaged"));
}

#[test]
fn a_prompt_ends_inside_the_assistants_turn_and_a_new_turn_can_be_asked_for() {
    let question = "Make 24 of 3, 3, 8, 8.";
    let begun = Message { role: "assistant".into(), content: "Let me think.\n<think>".into() };
    let prompt =
        Prompt { input: PromptInput::Messages(vec![Message::user(question), begun]), ..Prompt::user(question) };
    let tokenizer = Tokenizer::bytes();
    let start = [&[256][..], &bytes(&format!("user\n{question}")), &[257, 10, 256], &bytes("assistant\n")].concat();
    let inside = [&start[..], &bytes("Let me think.\n<think>")].concat();
    assert_eq!(tokenizer.prompt_ids(&prompt).unwrap(), inside);
    let new_turn = [&inside[..], &[257, 10, 256], &bytes("assistant\n")].concat();
    assert_eq!(tokenizer.new_turn_ids(&prompt).unwrap(), new_turn);
    assert_eq!(tokenizer.prompt_ids(&Prompt::user(question)).unwrap(), start);
    assert_eq!(tokenizer.new_turn_ids(&Prompt::user(question)).unwrap(), start);
}

#[test]
fn a_pinned_date_is_in_every_prompt() {
    let template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let tokenizer = read_with(&[("chat_template.jinja", json!(template))]).unwrap();
    assert!(tokenizer.tells_the_date() && !Tokenizer::bytes().tells_the_date());
    tokenizer.pin_date("2025-12-31T23:59:50".parse().unwrap());
    assert_eq!(tokenizer.prompt_ids(&Prompt::user("!")).unwrap(), bytes("31 Dec 2025!"));
}

#[test]
fn a_normalizer_that_multiplies_is_refused() {
    let mut json: serde_json::Value =
        serde_json::from_str(&Tokenizer::bytes().inner.to_string(false).unwrap()).unwrap();
    let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [step, step, step, step]});
    let folder = folder_with(&[("tokenizer.json", json)]);
    let error = Tokenizer::from_folder(folder.path(), &serde_json::Value::Null).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("times as long"), "{error}");
}
