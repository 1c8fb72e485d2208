//! Brackets and the commas in them: pairs, intervals, tuples and sets.
//!
//! In brackets a comma separates: `(1,200)` is a pair, `1,200` a number. Braces behind a name, a power or another
//! argument group what they hold (`\frac{1}{2}`); elsewhere, and where they are escaped, they hold a set.

use std::collections::HashMap;

/// The bracket at one end of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bracket {
    Round,
    Square,
    Curly,
}

/// A list in brackets.
#[derive(Debug)]
pub(super) struct Span {
    /// The index behind the closing bracket.
    pub(super) end: usize,
    /// The brackets on the left and on the right.
    pub(super) brackets: (Bracket, Bracket),
    /// The range inside the brackets.
    inside: (usize, usize),
    /// The indices of the separators.
    separators: Vec<usize>,
    /// True if it holds words or an amount of money, as brackets in prose do: `(about 1,200)`, `($1,200)`.
    pub(super) prose: bool,
}

impl Span {
    /// The texts between the separators of this list.
    pub(super) fn items<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let (start, end) = self.inside;
        let starts = std::iter::once(start).chain(self.separators.iter().map(|at| at + 1));
        starts.zip(self.separators.iter().copied().chain([end])).map(|(start, end)| &text[start..end]).collect()
    }
}

/// An opened bracket.
struct Open {
    start: usize,
    inside: usize,
    bracket: Bracket,
    argument: bool,
    separators: Vec<usize>,
    words: bool,
    dollars: usize,
}

/// Returns the lists of a text by the index where they start. One pass: linear in the text.
pub(super) fn lists(plain: &str) -> HashMap<usize, Span> {
    let text = plain.as_bytes();
    let mut spans = HashMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut braces = 0;
    let mut at = 0;
    while at < text.len() {
        let escaped = text[at] == b'\\' && matches!(text.get(at + 1), Some(b'{' | b'}'));
        let start = at;
        at += usize::from(escaped);
        match text[at] {
            b'(' | b'[' | b'{' => {
                let bracket = bracket(text[at]);
                braces += usize::from(bracket == Bracket::Curly);
                let behind = start.checked_sub(1).map(|before| text[before]);
                let argument = bracket == Bracket::Curly
                    && !escaped
                    && behind.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'^' | b'_' | b'}' | b']'));
                let separators = Vec::new();
                open.push(Open { start, inside: at + 1, bracket, argument, separators, words: false, dollars: 0 });
            }
            b')' | b']' | b'}' => {
                let close = bracket(text[at]);
                // Round and square brackets close each other: `[0,1)`.
                if close == Bracket::Curly {
                    while braces > 0 && open.last().is_some_and(|open| open.bracket != Bracket::Curly) {
                        open.pop();
                    }
                }
                let fits = |open: &mut Open| (open.bracket == Bracket::Curly) == (close == Bracket::Curly);
                if let Some(closed) = open.pop_if(fits) {
                    braces -= usize::from(close == Bracket::Curly);
                    if let Some(outer) = open.last_mut() {
                        outer.words |= closed.words;
                        outer.dollars += closed.dollars;
                    }
                    if !closed.argument && !closed.separators.is_empty() {
                        spans.insert(
                            closed.start,
                            Span {
                                end: at + 1,
                                brackets: (closed.bracket, close),
                                inside: (closed.inside, start),
                                separators: closed.separators,
                                prose: closed.words || closed.dollars % 2 == 1,
                            },
                        );
                    }
                }
            }
            b',' | b';' => open.last_mut().into_iter().for_each(|open| open.separators.push(at)),
            b'$' => open.last_mut().into_iter().for_each(|open| open.dollars += 1),
            b'\\' => at += letters(&text[at + 1..]),
            byte if byte.is_ascii_alphabetic() => {
                let letters = letters(&text[at..]);
                at += letters - 1;
                open.last_mut().into_iter().for_each(|open| open.words |= letters > 1);
            }
            _ => {}
        }
        at += 1;
    }
    spans
}

/// Returns true if what stands between two brackets is a list rather than one thing: `1,200`, but not `$1,200`.
pub(super) fn separates(inside: &str) -> bool {
    inside.contains([',', ';']) && !(inside.starts_with('$') && inside.matches('$').count() == 1)
}

fn bracket(byte: u8) -> Bracket {
    match byte {
        b'(' | b')' => Bracket::Round,
        b'[' | b']' => Bracket::Square,
        _ => Bracket::Curly,
    }
}

fn letters(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_alphabetic()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, start: usize, expected: Option<&[&str]>) {
        let lists = lists(text);
        assert_eq!(lists.get(&start).map(|span| span.items(text)).as_deref(), expected, "{text:?}");
    }

    #[test]
    fn commas_separate_in_the_brackets_around_them() {
        check("(1,200)", 0, Some(&["1", "200"]));
        check("[0, 1)", 0, Some(&["0", " 1"]));
        check("in \\{1,2\\}", 3, Some(&["1", "2"]));
        check("((1,2),3)", 0, Some(&["(1,2)", "3"]));
        check("((1,2),3)", 1, Some(&["1", "2"]));
        check("(\\frac{1,5}{2};3)", 0, Some(&["\\frac{1,5}{2}", "3"]));
        check("\\boxed{1,200}", 6, None);
        check("(5)", 0, None);
        check("(1,2", 0, None);
        check("a) 1, b) 2", 0, None);
    }

    #[test]
    fn brackets_in_prose_hold_words_or_money() {
        for (text, prose) in [("(1,200)", false), ("(about 1,200)", true), ("($1,200)", true), ("($1,2$)", false)] {
            assert_eq!(lists(text)[&0].prose, prose, "{text:?}");
        }
    }
}
