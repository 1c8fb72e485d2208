//! Text of one sample as it is sent to a client, in pieces that never have to be taken back.
//!
//! Text waits for two reasons. A character may be spread over several tokens; it is sent whole, or not at all if the
//! token limit cuts it. Text that could begin a stop string waits until it is known to be one or not, so no part of a
//! stop string, and nothing after it, is ever sent.

use super::reply::{Part, PositionedToken};
use crate::engine::SampledToken;
use model::tokenizer::{StreamDecoder, Tokenizer};
use schema::{Finish, Sample};

/// A growing sample.
pub(super) struct Choice<'a> {
    decoder: StreamDecoder<'a>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that have been sent.
    sent: usize,
    characters: usize,
    /// Tokens that have not been sent.
    unsent: Vec<PositionedToken>,
    tokens: usize,
    finish: Option<Finish>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Self {
            decoder: tokenizer.stream(),
            stops,
            text: String::new(),
            sent: 0,
            characters: 0,
            unsent: Vec::new(),
            tokens: 0,
            finish: None,
        }
    }

    /// Appends a token.
    pub(super) fn push(&mut self, token: SampledToken) {
        let piece = self.decoder.push(token.id).unwrap_or_default();
        self.unsent.push(PositionedToken { token, offset: self.characters });
        self.characters += piece.chars().count();
        self.text.push_str(&piece);
        self.tokens += 1;
    }

    /// Completes the sample.
    pub(super) fn finish(&mut self, sample: &Sample) {
        self.finish = Some(sample.finish);
        let rest = sample.text.strip_prefix(&self.text);
        let cut = rest.is_some_and(|rest| rest.chars().all(|character| character == char::REPLACEMENT_CHARACTER));
        if sample.finish == Finish::Length && cut {
            return;
        }
        // Text that has been sent stays, even if a later byte has changed it.
        match sample.text.get(self.sent..).filter(|_| sample.text.starts_with(&self.text[..self.sent])) {
            Some(rest) => self.text.replace_range(self.sent.., rest),
            None => self.text.truncate(self.sent),
        }
    }

    /// Takes the part that can be sent now, as choice `index` of its answer.
    pub(super) fn part(&mut self, index: usize) -> Part<'_> {
        let start = self.sent;
        self.sent += self.ready();
        let tokens = std::mem::take(&mut self.unsent);
        Part { choice: index, text: &self.text[start..self.sent], tokens, finish: self.finish }
    }

    /// Number of tokens sampled so far.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of unsent bytes that no later token can change.
    fn ready(&self) -> usize {
        let waiting = &self.text[self.sent..];
        if self.finish.is_some() {
            return waiting.len();
        }
        if let Some(end) = self.stops.iter().filter_map(|stop| waiting.find(stop.as_str())).min() {
            return end;
        }
        waiting.len() - self.stops.iter().map(|stop| begun(waiting, stop)).max().unwrap_or(0)
    }
}

/// Number of bytes at the end of `text` that are the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let ends = (1..stop.len()).rev().filter(|end| stop.is_char_boundary(*end));
    ends.into_iter().find(|end| text.ends_with(&stop[..*end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> SampledToken {
        SampledToken { id, logprob: -1.0, top_logprobs: Vec::new() }
    }

    /// The text sent after each byte, then at the end.
    fn pieces(bytes: &[u8], stops: &[&str], finish: Finish, text: &str) -> Vec<String> {
        let tokenizer = Tokenizer::bytes();
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut choice = Choice::new(&tokenizer, &stops);
        let mut pieces = Vec::new();
        for byte in bytes {
            choice.push(token(u32::from(*byte)));
            pieces.push(choice.part(0).text.to_owned());
        }
        let ids = bytes.iter().map(|byte| u32::from(*byte)).collect();
        choice.finish(&Sample { ids, mask: vec![], logprobs: vec![], finish, text: text.to_owned() });
        pieces.push(choice.part(0).text.to_owned());
        pieces
    }

    #[test]
    fn text_that_may_be_a_stop_string_waits() {
        assert_eq!(pieces(b"a##b", &["###"], Finish::Length, "a##b"), ["a", "", "", "##b", ""]);
        assert_eq!(pieces(b"a###", &["###"], Finish::Stop, "a"), ["a", "", "", "", ""]);
        // The end of the answer releases the text that waited.
        assert_eq!(pieces(b"a#", &["###"], Finish::Eos, "a#"), ["a", "", "#"]);
        // "ab" of "aab" may begin with its second character.
        assert_eq!(pieces(b"aac", &["ab", "b!"], Finish::Length, "aac"), ["", "a", "ac", ""]);
    }

    #[test]
    fn nothing_after_a_stop_string_is_sent_even_within_one_token() {
        let tokenizer = Tokenizer::bytes();
        let stops = ["#".to_owned()];
        let mut choice = Choice::new(&tokenizer, &stops);
        choice.push(token(u32::from(b'x')));
        choice.text.push_str("#secret");
        assert_eq!(choice.part(0).text, "x");
        choice.finish(&Sample { ids: vec![], mask: vec![], logprobs: vec![], finish: Finish::Stop, text: "x".into() });
        assert_eq!(choice.part(0).text, "");
    }

    #[test]
    fn characters_are_sent_whole_or_not_at_all() {
        let euro = "€".as_bytes();
        assert_eq!(pieces(euro, &[], Finish::Length, "€"), ["", "", "€", ""]);
        assert_eq!(pieces(&euro[..2], &[], Finish::Length, "\u{fffd}"), ["", "", ""]);
        assert_eq!(pieces(&[b'a', 0xff, b'b'], &[], Finish::Length, "a\u{fffd}b"), ["a", "", "\u{fffd}b", ""]);
    }

    #[test]
    fn tokens_have_their_offset_in_the_text() {
        let tokenizer = Tokenizer::bytes();
        let mut choice = Choice::new(&tokenizer, &[]);
        "a€b".bytes().for_each(|byte| choice.push(token(u32::from(byte))));
        let offsets: Vec<usize> = choice.part(0).tokens.iter().map(|token| token.offset).collect();
        assert_eq!((offsets, choice.tokens()), (vec![0, 1, 1, 1, 2], 5));
        assert!(choice.part(0).tokens.is_empty());
    }
}
