//! Decoding tokens one at a time, into text that never has to be taken back.
//!
//! A letter may be spread over several tokens, and some decoders treat the first token of a text in a special way. So
//! each push decodes a short window twice, without and with the new tokens, and hands out the difference once it is
//! complete. The pieces, with what [`StreamDecoder::finish`] adds, make up what decoding all tokens at once gives.
//! Bytes that are no text at all are handed out, as U+FFFD, once no letter can come of them, so that the window stays
//! short.

use super::Tokenizer;
use schema::Token;

/// More tokens than a letter has bytes: among so many that wait, some are no part of a letter.
const PATIENCE: usize = 8;

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
            let settled = (self.window.len() - self.handed_out > PATIENCE).then(|| self.settled(&text)).flatten();
            return settled.map(|(tokens, text)| self.hand_out(tokens, text));
        }
        Some(self.hand_out(self.window.len(), text))
    }

    /// What the window's first `tokens` tokens add is handed out with this call.
    fn hand_out(&mut self, tokens: usize, text: String) -> String {
        let old = std::mem::replace(&mut self.handed_out, tokens);
        self.window.drain(..old);
        self.handed_out -= old;
        text
    }

    /// The most of the window's tokens that later ones cannot change, with the text that they add: what follows them
    /// reads the same by itself as behind them, so no letter reaches over that border.
    fn settled(&self, waiting: &str) -> Option<(usize, String)> {
        (self.handed_out + 1..self.window.len()).rev().find_map(|border| {
            let rest = self.tokenizer.decode(&self.window[border..]);
            let text = waiting.strip_suffix(&rest).filter(|text| !rest.is_empty() && !text.is_empty())?;
            (self.added(border) == text).then(|| (border, text.to_owned()))
        })
    }

    /// What still waits when no more tokens come: an unfinished letter, as U+FFFD.
    pub fn finish(self) -> String {
        self.waiting()
    }

    fn waiting(&self) -> String {
        self.added(self.window.len())
    }

    /// What the window's first `tokens` tokens add to those that were handed out.
    fn added(&self, tokens: usize) -> String {
        let before = self.tokenizer.decode(&self.window[..self.handed_out]);
        let all = self.tokenizer.decode(&self.window[..tokens]);
        match all.strip_prefix(&before) {
            Some(rest) => rest.to_owned(),
            // With byte fallback, a bad byte spoils the good ones before it in hindsight; they stay as handed out.
            None => self.tokenizer.decode(&self.window[self.handed_out..tokens]),
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

    #[test]
    fn what_is_no_text_does_not_wait_for_ever() {
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
        fn broken_letters_make_up_the_whole_too(ids in prop::collection::vec(0x79..260u32, 0..120)) {
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
