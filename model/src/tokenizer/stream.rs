//! Decoding tokens one at a time, into text that never has to be taken back.
//!
//! A letter may be spread over several tokens, and some decoders treat the first token of a text in a special way. So
//! each push decodes a short window twice, without and with the new tokens, and hands out the difference once it is
//! complete. The pieces, with what [`StreamDecoder::finish`] adds, make up what decoding all tokens at once gives.

use super::Tokenizer;
use schema::Token;

/// An incremental decoder.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens handed out, for context, then those that wait.
    window: Vec<Token>,
    handed_out: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), handed_out: 0 }
    }

    /// Takes the next token; returns the text that is now complete, if there is any.
    pub fn push(&mut self, token: Token) -> Option<String> {
        self.window.push(token);
        let text = self.waiting();
        // U+FFFD at the end is a letter whose other bytes are still to come.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return None;
        }
        self.window.drain(..self.handed_out);
        self.handed_out = self.window.len();
        Some(text)
    }

    /// What still waits when no more tokens come: an unfinished letter, as U+FFFD.
    pub fn finish(self) -> String {
        self.waiting()
    }

    fn waiting(&self) -> String {
        let before = self.tokenizer.decode(&self.window[..self.handed_out]);
        let all = self.tokenizer.decode(&self.window);
        match all.strip_prefix(&before) {
            Some(rest) => rest.to_owned(),
            // With byte fallback, a bad byte spoils the good ones before it in hindsight; they stay as handed out.
            None => self.tokenizer.decode(&self.window[self.handed_out..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(ids: &[Token]) -> (Vec<Option<String>>, String) {
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream();
        let pieces = ids.iter().map(|id| stream.push(*id)).collect();
        (pieces, stream.finish())
    }

    #[test]
    fn a_letter_waits_for_its_last_byte() {
        let (texts, rest) = pieces(&[65, 0xe2, 0x82, 0xac, 257, 66, 0xc3]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts, [some("A"), None, None, some("€"), None, some("B"), None]);
        assert_eq!(rest, "\u{fffd}");
    }

    proptest! {
        #[test]
        fn the_pieces_make_up_the_whole(ids in prop::collection::vec(0..259u32, 0..40)) {
            let (texts, rest) = pieces(&ids);
            let joined: String = texts.into_iter().flatten().chain([rest]).collect();
            prop_assert_eq!(joined, Tokenizer::bytes().decode(&ids));
        }

        #[test]
        fn text_comes_through_whole(text in "\\PC{0,20}") {
            let ids = Tokenizer::bytes().encode(&text).unwrap();
            let (texts, rest) = pieces(&ids);
            prop_assert_eq!(texts.into_iter().flatten().chain([rest]).collect::<String>(), text);
        }
    }
}
