//! Zero characters in texts, which `PostgreSQL` does not store.
//!
//! A byte-level tokenizer may well generate one. It is spelled as two other characters there.

/// Stands before the `0` of a zero character, or the `1` of itself. It is no character of any script.
const MARK: char = '\u{10fffe}';

/// A text in which no character is zero.
pub(super) fn without_zeros(text: String) -> String {
    if !text.contains(['\0', MARK]) {
        return text;
    }
    text.replace(MARK, &format!("{MARK}1")).replace('\0', &format!("{MARK}0"))
}

/// The reverse of [`without_zeros`].
pub(crate) fn with_zeros(text: String) -> String {
    if !text.contains(MARK) {
        return text;
    }
    text.replace(&format!("{MARK}0"), "\0").replace(&format!("{MARK}1"), &MARK.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_characters_survive() {
        for text in ["", "plain", "a\0b", "\0\0", "\u{10fffe}0", "\u{10fffe}", "\0\u{10fffe}1\u{10fffe}0\0"] {
            let there = without_zeros(text.to_owned());
            assert!(!there.contains('\0'));
            assert_eq!(with_zeros(there), text);
        }
    }
}
