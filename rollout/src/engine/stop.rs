//! The search for stop strings in an answer that grows token by token.
//!
//! Decoding the whole answer at each token would take quadratic time, so the search decodes a window of its last tokens,
//! which moves along. The window begins where its own text is the end of the longer text, not inside bytes that are no
//! character or not yet, and holds more bytes than the longest stop string. Only where it holds a stop string is the whole
//! answer decoded, so the result is that of a search in the whole text.

use model::tokenizer::Tokenizer;
use schema::Token;

/// Tokens after which the window may move.
const WINDOW: usize = 64;

/// Bytes that the window keeps beyond the longest stop string: more than two incomplete characters.
const SLACK: usize = 16;

/// Places at which the window is tried to begin.
const TRIES: usize = 16;

/// Search in one answer.
#[derive(Debug)]
pub(super) struct StopSearch {
    /// Index of the window's first token.
    begin: usize,
    /// Number of tokens at which the window moves.
    limit: usize,
}

impl Default for StopSearch {
    fn default() -> Self {
        Self { begin: 0, limit: WINDOW }
    }
}

impl StopSearch {
    /// Returns the text before the first stop string of all tokens so far, `ids`; `None` as long as there is none. Every
    /// token must have been the last once.
    pub(super) fn text_before(&mut self, tokenizer: &Tokenizer, ids: &[Token], stops: &[String]) -> Option<String> {
        let longest = stops.iter().map(String::len).max()?;
        let window = tokenizer.decode(&ids[self.begin..]);
        if stops.iter().any(|stop| window.contains(stop.as_str())) {
            let text = tokenizer.decode(ids);
            if let Some(end) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
                return Some(text[..end].to_owned());
            }
        }
        if ids.len() - self.begin >= self.limit {
            let latest = ids.len() - WINDOW / 2;
            let begins = (self.begin + 1..=latest).rev().take(TRIES);
            let fits = |begin: &usize| may_begin(&window, &tokenizer.decode(&ids[*begin..]), longest + SLACK);
            match begins.into_iter().find(fits) {
                Some(begin) => (self.begin, self.limit) = (begin, ids.len() - begin + WINDOW),
                None => self.limit *= 2,
            }
        }
        None
    }
}

/// Returns `true` if a window with the text `rest` can take the place of one with the text `window`.
fn may_begin(window: &str, rest: &str, bytes: usize) -> bool {
    let is_character = |letter: Option<char>| letter.is_some_and(|letter| letter != char::REPLACEMENT_CHARACTER);
    rest.len() >= bytes
        && window
            .strip_suffix(rest)
            .is_some_and(|before| is_character(before.chars().last()) || is_character(rest.chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches after each token; returns the number of tokens and the text before the stop string.
    fn search(ids: &[Token], stops: &[String]) -> Option<(usize, String)> {
        let (tokenizer, mut search) = (Tokenizer::bytes(), StopSearch::default());
        (1..=ids.len()).find_map(|count| search.text_before(&tokenizer, &ids[..count], stops).map(|text| (count, text)))
    }

    /// The same with the whole text at each token.
    fn whole(ids: &[Token], stops: &[String]) -> Option<(usize, String)> {
        let tokenizer = Tokenizer::bytes();
        (1..=ids.len()).find_map(|count| {
            let text = tokenizer.decode(&ids[..count]);
            let end = stops.iter().filter_map(|stop| text.find(stop.as_str())).min()?;
            Some((count, text[..end].to_owned()))
        })
    }

    #[test]
    fn the_window_moves_along() {
        let (tokenizer, stops) = (Tokenizer::bytes(), ["</answer>".to_owned()]);
        // The second text is that of a network which has learned nothing: between any two letters are torn characters.
        for text in ["é, an answer that never ends. ".as_bytes(), b"\xc3\xffU"] {
            let mut search = StopSearch::default();
            let ids: Vec<Token> = text.iter().cycle().take(4000).map(|byte| u32::from(*byte)).collect();
            for count in 1..=ids.len() {
                assert_eq!(search.text_before(&tokenizer, &ids[..count], &stops), None);
                assert!(count - search.begin <= 3 * WINDOW, "{count} tokens, from {}", search.begin);
            }
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_in_the_whole_text_finds(
            pieces in prop::collection::vec(prop_oneof!["[a-c]{1,40}", "é{1,30}", "€{1,9}"], 1..30),
            torn in prop::collection::vec((0..600usize, 0x7f..260u32), 0..6),
            stop in prop_oneof!["[a-c]{5,9}", "éa", "[é€]{2,12}", "abcabcabcabc"],
        ) {
            let mut ids: Vec<Token> = pieces.concat().bytes().map(u32::from).collect();
            for (place, byte) in torn {
                ids.insert(place % (ids.len() + 1), byte);
            }
            let stops = [stop, "cc\u{e9}cc".to_owned()];
            prop_assert_eq!(search(&ids, &stops), whole(&ids, &stops));
        }
    }
}
