//! The glossary for users holds every word of the glossary for the code.

use std::collections::BTreeSet;
use std::fs;

/// The first cells of the rows of a Markdown table, whose lines may begin with a doc comment's mark.
fn terms(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.trim_start_matches("//! ").strip_prefix("| "));
    let terms = rows.filter_map(|row| row.split(" | ").next());
    terms.filter(|term| !["term", "word"].contains(term)).map(str::to_owned).collect()
}

#[test]
fn users_find_every_word_of_the_code() {
    let read = |path: &str| fs::read_to_string(crate::workspace().join(path)).unwrap();
    let (code, users) = (terms(&read("schema/src/lib.rs")), terms(&read("docs/glossary.md")));
    assert!(code.len() >= 10, "only {code:?}");
    let missing: Vec<_> = code.difference(&users).collect();
    assert!(missing.is_empty(), "docs/glossary.md lacks {missing:?} of schema/src/lib.rs");
}
