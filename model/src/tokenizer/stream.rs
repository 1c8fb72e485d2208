//! Incremental decoding: tokens one at a time into text that is never taken back.
//!
//! A character may be spread over several tokens, and some decoders treat the first token of a text in a special way.
//! So each push decodes a short window twice, without and with the new tokens, and returns the difference once it is
//! complete. The pieces, with the rest that [`StreamDecoder::finish`] returns, equal the text of all tokens decoded at
//! once. Bytes that are not UTF-8 are returned as U+FFFD once they cannot become a character, so that the window stays
//! short.

use super::Tokenizer;
use schema::Token;

/// More tokens than a character has bytes: among so many waiting tokens, some are not part of a character.
const PATIENCE: usize = 8;

/// An incremental decoder.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The last decoded tokens, for context, then the waiting ones.
    window: Vec<Token>,
    decoded: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), decoded: 0 }
    }

    /// Takes the next token; returns the newly completed text, if there is any.
    pub fn push(&mut self, token: Token) -> Option<String> {
        self.window.push(token);
        let text = self.waiting();
        // U+FFFD at the end is a character whose other bytes are still to come.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            let settled = (self.window.len() - self.decoded > PATIENCE).then(|| self.settled(&text)).flatten();
            return settled.map(|(tokens, text)| self.take(tokens, text));
        }
        Some(self.take(self.window.len(), text))
    }

    /// Marks the window's first `tokens` tokens as decoded and returns their text.
    fn take(&mut self, tokens: usize, text: String) -> String {
        let old = std::mem::replace(&mut self.decoded, tokens);
        self.window.drain(..old);
        self.decoded -= old;
        text
    }

    /// The longest part of the window that later tokens cannot change, with its text: the rest decodes to the same text
    /// by itself as after it, so no character crosses that border.
    fn settled(&self, waiting: &str) -> Option<(usize, String)> {
        (self.decoded + 1..self.window.len()).rev().find_map(|border| {
            let rest = self.tokenizer.decode(&self.window[border..]);
            let text = waiting.strip_suffix(&rest).filter(|text| !rest.is_empty() && !text.is_empty())?;
            (self.added(border) == text).then(|| (border, text.to_owned()))
        })
    }

    /// The text of the waiting tokens at the end of the stream: an unfinished character becomes U+FFFD.
    pub fn finish(self) -> String {
        self.waiting()
    }

    fn waiting(&self) -> String {
        self.added(self.window.len())
    }

    /// The text that the window's first `tokens` tokens add to the decoded ones.
    fn added(&self, tokens: usize) -> String {
        let before = self.tokenizer.decode(&self.window[..self.decoded]);
        let all = self.tokenizer.decode(&self.window[..tokens]);
        match all.strip_prefix(&before) {
            Some(rest) => rest.to_owned(),
            // With byte fallback, a bad byte spoils the good ones before it in hindsight; their text stays as returned.
            None => self.tokenizer.decode(&self.window[self.decoded..tokens]),
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
    fn a_character_waits_for_its_last_byte() {
        let (texts, rest) = pieces(&[65, 0xe2, 0x82, 0xac, 257, 66, 0xc3]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts, [some("A"), None, None, some("€"), None, some("B"), None]);
        assert_eq!(rest, "\u{fffd}");
    }

    #[test]
    fn bytes_that_are_not_text_do_not_wait_forever() {
        let ids = [0xff; 100];
        let (texts, _) = pieces(&ids);
        let given: usize = texts.iter().flatten().map(|text| text.chars().count()).sum();
        assert!(given > 90, "{given} of 100 bytes");
        let tokenizer = Tokenizer::bytes();
        let mut stream = tokenizer.stream();
        for id in ids {
            stream.push(id);
        }
        assert!(stream.window.len() <= 2 * PATIENCE + 1, "a window of {} tokens", stream.window.len());
    }

    proptest! {
        #[test]
        fn broken_characters_make_up_the_whole_too(ids in prop::collection::vec(0x79..260u32, 0..120)) {
            let (texts, rest) = pieces(&ids);
            let joined: String = texts.into_iter().flatten().chain([rest]).collect();
            prop_assert_eq!(joined, Tokenizer::bytes().decode(&ids));
        }

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
