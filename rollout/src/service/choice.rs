//! One sample on its way to a client: tokens become text that never has to be taken back.
//!
//! Two things hold text up. A letter may be spread over several tokens and goes out whole, or not at all where the token
//! limit cuts it. And text that could be the beginning of a stop string waits until it is known whether it is one, so
//! that no part of a stop string, and nothing behind it, is ever sent.

use super::desk::DrawnToken;
use model::tokenizer::{StreamDecoder, Tokenizer};
use schema::{Finish, Sample};

/// A token that has not been sent, with its place in the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub(super) drawn: DrawnToken,
    /// Letters of the text before it.
    pub(super) offset: usize,
}

/// A sample that grows.
pub(super) struct Choice<'a> {
    decoder: StreamDecoder<'a>,
    stops: &'a [String],
    text: String,
    /// Bytes of `text` that have been taken.
    sent: usize,
    letters: usize,
    tokens: Vec<Placed>,
    drawn: usize,
    finish: Option<Finish>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> Self {
        Self {
            decoder: tokenizer.stream(),
            stops,
            text: String::new(),
            sent: 0,
            letters: 0,
            tokens: Vec::new(),
            drawn: 0,
            finish: None,
        }
    }

    /// Takes the next token.
    pub(super) fn push(&mut self, drawn: DrawnToken) {
        let piece = self.decoder.push(drawn.token).unwrap_or_default();
        self.tokens.push(Placed { drawn, offset: self.letters });
        self.letters += piece.chars().count();
        self.text.push_str(&piece);
        self.drawn += 1;
    }

    /// Takes the end.
    pub(super) fn finish(&mut self, sample: &Sample) {
        self.finish = Some(sample.finish);
        let rest = sample.text.strip_prefix(&self.text);
        let cut_letter = rest.is_some_and(|rest| rest.chars().all(|letter| letter == char::REPLACEMENT_CHARACTER));
        if sample.finish == Finish::Length && cut_letter {
            return;
        }
        // What has been sent stands, whatever a later byte made of it.
        match sample.text.get(self.sent..).filter(|_| sample.text.starts_with(&self.text[..self.sent])) {
            Some(rest) => self.text.replace_range(self.sent.., rest),
            None => self.text.truncate(self.sent),
        }
    }

    /// The text that can go out now.
    pub(super) fn take_text(&mut self) -> &str {
        let from = self.sent;
        self.sent += self.ready();
        &self.text[from..self.sent]
    }

    /// The tokens since the last call.
    pub(super) fn take_tokens(&mut self) -> Vec<Placed> {
        std::mem::take(&mut self.tokens)
    }

    /// How many tokens were drawn.
    pub(super) fn drawn(&self) -> usize {
        self.drawn
    }

    /// Why it ended, once it has.
    pub(super) fn ended(&self) -> Option<Finish> {
        self.finish
    }

    /// Bytes after those that were taken which nothing can take back.
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

/// How many bytes at the end of `text` are the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let ends = (1..stop.len()).rev().filter(|end| stop.is_char_boundary(*end));
    ends.into_iter().find(|end| text.ends_with(&stop[..*end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(token: u32) -> DrawnToken {
        DrawnToken { token, logprob: -1.0, likeliest: Vec::new() }
    }

    /// What goes out after each byte, then at the end.
    fn pieces(bytes: &[u8], stops: &[&str], finish: Finish, text: &str) -> Vec<String> {
        let tokenizer = Tokenizer::bytes();
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut choice = Choice::new(&tokenizer, &stops);
        let mut pieces = Vec::new();
        for byte in bytes {
            choice.push(drawn(u32::from(*byte)));
            pieces.push(choice.take_text().to_owned());
        }
        let ids = bytes.iter().map(|byte| u32::from(*byte)).collect();
        choice.finish(&Sample { ids, mask: vec![], logprobs: vec![], finish, text: text.to_owned() });
        pieces.push(choice.take_text().to_owned());
        pieces
    }

    #[test]
    fn what_may_be_a_stop_string_waits() {
        assert_eq!(pieces(b"a##b", &["###"], Finish::Length, "a##b"), ["a", "", "", "##b", ""]);
        assert_eq!(pieces(b"a###", &["###"], Finish::Stop, "a"), ["a", "", "", "", ""]);
        // The end of the answer settles what waited.
        assert_eq!(pieces(b"a#", &["###"], Finish::Eos, "a#"), ["a", "", "#"]);
        // "ab" of "aab" may begin with its second letter.
        assert_eq!(pieces(b"aac", &["ab", "b!"], Finish::Length, "aac"), ["", "a", "ac", ""]);
    }

    #[test]
    fn nothing_behind_a_stop_string_goes_out_even_within_one_token() {
        let tokenizer = Tokenizer::bytes();
        let stops = ["#".to_owned()];
        let mut choice = Choice::new(&tokenizer, &stops);
        choice.push(drawn(u32::from(b'x')));
        choice.text.push_str("#secret");
        assert_eq!(choice.take_text(), "x");
        choice.finish(&Sample { ids: vec![], mask: vec![], logprobs: vec![], finish: Finish::Stop, text: "x".into() });
        assert_eq!(choice.take_text(), "");
    }

    #[test]
    fn letters_go_out_whole_or_not_at_all() {
        let euro = "€".as_bytes();
        assert_eq!(pieces(euro, &[], Finish::Length, "€"), ["", "", "€", ""]);
        assert_eq!(pieces(&euro[..2], &[], Finish::Length, "\u{fffd}"), ["", "", ""]);
        assert_eq!(pieces(&[b'a', 0xff, b'b'], &[], Finish::Length, "a\u{fffd}b"), ["a", "", "\u{fffd}b", ""]);
    }

    #[test]
    fn tokens_know_their_place_in_the_text() {
        let tokenizer = Tokenizer::bytes();
        let mut choice = Choice::new(&tokenizer, &[]);
        "a€b".bytes().for_each(|byte| choice.push(drawn(u32::from(byte))));
        let offsets: Vec<usize> = choice.take_tokens().iter().map(|placed| placed.offset).collect();
        assert_eq!((offsets, choice.drawn()), (vec![0, 1, 1, 1, 2], 5));
        assert!(choice.take_tokens().is_empty());
    }
}
