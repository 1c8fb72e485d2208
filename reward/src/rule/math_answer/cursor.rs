//! A position in plain text, and the small steps that can be taken from it.

use super::plain::THIN;

/// A brace is not looked for further than this, in bytes: keeps every scan linear in the text.
const REACH: usize = 400;

/// A position in plain text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) text: &'a [u8],
    pub(super) at: usize,
}

/// The value read, if it has one, and the position behind it.
pub(super) type Read<'a, T> = Option<(Option<T>, Cursor<'a>)>;

impl<'a> Cursor<'a> {
    /// The start of a text.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0 }
    }

    pub(super) fn rest(self) -> &'a [u8] {
        &self.text[self.at..]
    }

    pub(super) fn peek(self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The byte `back` positions before this one.
    pub(super) fn before(self, back: usize) -> Option<u8> {
        self.at.checked_sub(back).and_then(|at| self.text.get(at)).copied()
    }

    pub(super) fn sees(self, text: &str) -> bool {
        self.rest().starts_with(text.as_bytes())
    }

    pub(super) fn sees_digit_after(self, skipped: usize) -> bool {
        self.rest().get(skipped).is_some_and(u8::is_ascii_digit)
    }

    pub(super) fn eat(&mut self, text: &str) -> bool {
        let seen = self.sees(text);
        self.at += if seen { text.len() } else { 0 };
        seen
    }

    /// Skips the spaces of this line; returns how many there were.
    pub(super) fn spaces(&mut self) -> usize {
        let count = self.rest().iter().take_while(|byte| is_space(**byte)).count();
        self.at += count;
        count
    }

    /// Skips a word without regard to case, if it is this one.
    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let rest = self.rest();
        let seen = rest.len() >= word.len()
            && rest[..word.len()].eq_ignore_ascii_case(word.as_bytes())
            && !rest.get(word.len()).is_some_and(u8::is_ascii_alphanumeric);
        self.at += if seen { word.len() } else { 0 };
        seen
    }

    /// The letters that start here.
    pub(super) fn letters(self) -> &'a str {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        std::str::from_utf8(&self.rest()[..count]).unwrap_or_default()
    }

    pub(super) fn eat_digits(&mut self) -> &'a [u8] {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = &self.rest()[..count];
        self.at += count;
        digits
    }

    /// The content of the braces that open `skipped` bytes on, and the position behind them.
    pub(super) fn braced(self, skipped: usize) -> Option<(&'a [u8], Self)> {
        let inside = self.rest().get(skipped..)?.strip_prefix(b"{")?;
        let mut depth = 1;
        for (index, byte) in inside.iter().enumerate().take(REACH) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some((&inside[..index], Self { at: self.at + skipped + index + 2, ..self }));
            }
        }
        None
    }

    pub(super) fn back_over_spaces(&mut self) {
        while self.before(1).is_some_and(is_space) {
            self.at -= 1;
        }
    }
}

pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t') || byte == THIN as u8
}
