//! Prompts, and pairs of answers to them.

use crate::hex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// One turn of a conversation, in the form that chat templates expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }
}

/// The input of a prompt in one of two forms. In JSON: a string, or a list of messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptInput {
    /// Text that is tokenized as it stands, without a chat template.
    Text(String),
    /// A conversation that the model's chat template turns into text.
    Messages(Vec<Message>),
}

/// A prompt, with the answer and the data that rewards need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// The question itself.
    pub input: PromptInput,
    /// The known right answer (`answer`, `solution` or `ground_truth` in a data set), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Every other column of the data set, for rewards and for later questions.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl Prompt {
    /// A prompt of one user turn, to be rendered by the chat template.
    pub fn user(content: impl Into<String>) -> Self {
        Self { input: PromptInput::Messages(vec![Message::user(content)]), answer: None, metadata: Map::new() }
    }

    /// A prompt of raw text, to be tokenized as it stands.
    pub fn text(text: impl Into<String>) -> Self {
        Self { input: PromptInput::Text(text.into()), answer: None, metadata: Map::new() }
    }

    /// The same prompt with a known answer.
    #[must_use]
    pub fn with_answer(mut self, answer: impl Into<String>) -> Self {
        self.answer = Some(answer.into());
        self
    }

    /// The question: the last user turn, or the raw text.
    pub fn question(&self) -> &str {
        match &self.input {
            PromptInput::Text(text) => text,
            PromptInput::Messages(messages) => messages
                .iter()
                .rev()
                .find(|message| message.role == "user")
                .or(messages.last())
                .map_or("", |message| &message.content),
        }
    }

    /// The SHA-256, in hexadecimal, of the prompt with its answer and metadata: equal prompts have equal hashes.
    pub fn hash(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        hex(&Sha256::digest(json.as_bytes()))
    }
}

/// Two answers to one prompt, of which the first is preferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The question that both answer.
    pub prompt: Prompt,
    /// The preferred completion.
    pub chosen: String,
    /// The other completion.
    pub rejected: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prompts_hash_alike_and_answers_tell_them_apart() {
        let prompt = Prompt::user("What is 2+2?");
        assert_eq!(prompt.hash(), Prompt::user("What is 2+2?").hash());
        assert_ne!(prompt.hash(), prompt.clone().with_answer("4").hash());
        assert_eq!(prompt.hash().len(), 64);
    }

    #[test]
    fn json_takes_text_or_messages() {
        let text: Prompt = serde_json::from_str(r#"{"input": "once upon"}"#).unwrap();
        assert_eq!(text, Prompt::text("once upon"));
        let chat: Prompt = serde_json::from_str(r#"{"input": [{"role": "user", "content": "hi"}]}"#).unwrap();
        assert_eq!(chat, Prompt::user("hi"));
        assert_eq!(chat.question(), "hi");
    }
}
