//! The value of an answer as a whole: a number, a list in brackets, or a text.

use super::brackets::{Bracket, lists};
use super::number::{self, Number};
use super::plain::THIN;

/// Lists in lists are read no deeper than this: keeps the reading linear in the text.
const DEPTH: usize = 4;

/// The brackets around a list, on the left and on the right; `None` if there are none.
type Brackets = Option<(Bracket, Bracket)>;

/// The value of an answer.
#[derive(Debug)]
pub(super) enum Value {
    /// A number, to be compared by value.
    Number(Number),
    /// A pair, interval, tuple, set, or several values without brackets; to be compared element by element.
    List(Brackets, Vec<Value>),
    /// Anything else, to be compared as normalised text.
    Text(String),
}

impl Value {
    /// Reads a text in plain spelling as a whole; `None` if nothing is left of it.
    pub(super) fn new(plain: &str) -> Option<Self> {
        Self::nested(plain, DEPTH)
    }

    fn nested(plain: &str, depth: usize) -> Option<Self> {
        if let Some(number) = number::whole(plain) {
            return Some(Self::Number(number));
        }
        if depth > 0
            && let Some((brackets, items)) = list(plain)
        {
            let items: Vec<_> = items.into_iter().map(|item| Self::nested(item, depth - 1)).collect();
            let says = items.iter().any(Option::is_some);
            let items = items.into_iter().map(|item| item.unwrap_or_else(|| Self::Text(String::new()))).collect();
            return says.then_some(Self::List(brackets, items));
        }
        let text = essence(plain);
        // Braces that hold nothing group nothing.
        (!text.is_empty() && text != "{}").then_some(Self::Text(text))
    }

    /// Returns true if two values are equal. Lists need the same brackets, which tell a closed interval from an open
    /// one; the order counts but in sets.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.same(b),
            (Self::List(brackets, a), Self::List(others, b)) if a.len() == b.len() => {
                let set = |brackets: &Brackets| *brackets == Some((Bracket::Curly, Bracket::Curly));
                // A set may be written without its braces.
                if set(brackets) && (set(others) || others.is_none()) || brackets.is_none() && set(others) {
                    same_in_any_order(a, b)
                } else {
                    brackets == others && a.iter().zip(b).all(|(a, b)| a.same(b))
                }
            }
            (Self::Text(a), Self::Text(b)) => a == b,
            _ => false,
        }
    }
}

fn same_in_any_order(a: &[Value], b: &[Value]) -> bool {
    let mut left: Vec<&Value> = b.iter().collect();
    a.iter().all(|a| left.iter().position(|b| a.same(b)).map(|found| left.swap_remove(found)).is_some())
}

/// The elements of a text that is a list as a whole, with its brackets.
fn list(plain: &str) -> Option<(Brackets, Vec<&str>)> {
    let text = bare(plain);
    let lists = lists(text);
    if let Some(span) = lists.get(&0)
        && span.end == text.len()
    {
        return Some((Some(span.brackets), span.items(text)));
    }
    if text.contains(['(', '[', '{']) || !text.contains([',', ';']) {
        return None;
    }
    // Without brackets a comma may stand for thousands, so one with a space goes first.
    let apart: Vec<&str> = text.split(", ").collect();
    let numbers = apart.len() > 1 && apart.iter().all(|item| number::whole(item).is_some());
    Some((None, if numbers { apart } else { text.split([',', ';']).collect() }))
}

/// A text without spaces, dollar signs, emphasis and quotes around it.
fn bare(text: &str) -> &str {
    let around = |c: char| c.is_whitespace() || c == THIN || matches!(c, '$' | '*' | '"' | '\'' | '`');
    text.trim_matches(around).trim_end_matches(|c| around(c) || matches!(c, '.' | ',' | ';' | '!'))
}

/// A text without what does not change an answer: case, spaces, dollar signs, emphasis, quotes, a full stop.
fn essence(plain: &str) -> String {
    let mut text = plain.to_lowercase();
    text.retain(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '$' | '*' | '"' | '\'' | '`'));
    let text = text.trim_end_matches(['.', ',', ';', '!']);
    // A choice is the same with and without its brackets.
    let letter = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    letter.filter(|letter| letter.len() == 1).unwrap_or(text).to_owned()
}
