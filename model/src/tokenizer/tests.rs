//! Ids, texts and conversations agree with those of transformers, whatever a tokenizer came in.

use super::*;
use crate::files::read_json;
use crate::weights::Checkpoint;
use crate::weights::tests::{fixture, real_model};
use serde::Deserialize;
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
