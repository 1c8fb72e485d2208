//! A tokenizer without files, for tiny random networks: one token per byte, and `ChatML`'s special tokens.

use super::Tokenizer;
use crate::chat_template::{CHATML, ChatTemplate};
use std::collections::BTreeMap;
use tokenizers::AddedToken;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const MARKS: [&str; 3] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];

impl Tokenizer {
    /// A tokenizer of bytes: ids 0 to 255 are the bytes of UTF-8; 256 opens a turn, 257 ends it and the answer, 258 is
    /// `<|endoftext|>`.
    pub fn bytes() -> Self {
        let vocabulary = byte_characters().zip(0..).map(|(character, id)| (character.to_string(), id)).collect();
        let mut inner = tokenizers::Tokenizer::new(BPE::new(vocabulary, Vec::new()));
        // Bytes become characters before they are looked up, and back.
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        inner.with_decoder(Some(ByteLevel::default()));
        inner
            .add_special_tokens(MARKS.map(|mark| AddedToken::from(mark, true)))
            .expect("marks are not empty, and there is no normalizer that could refuse them");
        let template = ChatTemplate::new(CHATML, BTreeMap::new()).expect("a constant that a test compiles");
        Self::new(inner, vec![257], Some(template))
    }
}

/// The characters for the bytes 0 to 255 in byte-level vocabularies (Radford et al. 2019): printable bytes are
/// themselves, the others are the characters from U+0100 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let mut next = 0x100..;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => next.next().and_then(char::from_u32).expect("there are 68 such bytes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::Ending;
    use schema::{Message, Prompt};

    #[test]
    fn ids_are_bytes() {
        let tokenizer = Tokenizer::bytes();
        assert_eq!(tokenizer.encode("Aé\n ").unwrap(), [65, 0xc3, 0xa9, 10, 32]);
        assert_eq!(tokenizer.vocab_size(), 259);
        let all: Vec<u32> = (0..=255).collect();
        assert_eq!(tokenizer.decode(&all[..128]), (0..128u8).map(char::from).collect::<String>());
        assert_eq!(tokenizer.decode(&[0xe2, 0x82, 0xac, 257]), "€");
    }

    #[test]
    fn a_prompt_opens_the_assistants_turn() {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer.prompt_ids(&Prompt::user("hi")).unwrap();
        let text = b"user\nhi".map(u32::from);
        let end = b"\n".map(u32::from);
        let open = b"assistant\n".map(u32::from);
        assert_eq!(ids, [&[256][..], &text, &[257], &end, &[256], &open].concat());
        assert_eq!(tokenizer.eos_ids(), [257]);
        assert_eq!(tokenizer.decode(&[258, 65]), "A", "special tokens leave no text");
    }

    #[test]
    fn an_empty_prompt_is_refused() {
        let error = Tokenizer::bytes().prompt_ids(&Prompt::text("")).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("no tokens"));
    }

    #[test]
    fn a_closed_conversation_ends_with_its_last_message() {
        let text = Tokenizer::bytes().render(&[Message::user("hi")], Ending::LastMessage).unwrap();
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n");
    }
}
