//! The value of an answer as a whole: a number, a product of roots and π, a list, or a text.

use super::brackets::{Bracket, lists};
use super::expression::canonical;
use super::number::{self, Number};
use super::plain::THIN;
use super::surd::Surd;

/// Lists in lists are read no deeper than this: keeps the reading linear in the text.
const DEPTH: usize = 4;

/// The brackets around a list, on the left and on the right; `None` if there are none.
type Brackets = Option<(Bracket, Bracket)>;

/// The value of an answer.
#[derive(Debug)]
pub(super) enum Value {
    /// A number, to be compared by value.
    Number(Number),
    /// A product with a root or π that does not come out, to be compared by value.
    Surd(Surd),
    /// A pair, interval, tuple, set, or several values without brackets; to be compared element by element.
    List(Brackets, Vec<Value>),
    /// Anything else, to be compared in one spelling; with the variable that it is said to be (`y = 2x + 1`).
    Text(Option<String>, String),
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
        if let Some(surd) = Surd::whole(plain) {
            let number = surd.rational().map(|value| Number { value, percent: false });
            return Some(number.map_or(Self::Surd(surd), Self::Number));
        }
        if depth > 0
            && let Some((brackets, items)) = list(plain)
        {
            let items: Vec<_> = items.into_iter().map(|item| Self::nested(item, depth - 1)).collect();
            let says = items.iter().any(Option::is_some);
            let items = items.into_iter().map(|item| item.unwrap_or_else(|| Self::Text(None, String::new()))).collect();
            return says.then_some(Self::List(brackets, items));
        }
        let text = canonical(plain);
        let (left, right) = variable(plain).map_or((None, text), |(left, right)| (Some(left), right));
        (!right.is_empty()).then_some(Self::Text(left, right))
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
            (Self::Surd(a), Self::Surd(b)) => a == b,
            (Self::Text(left, a), Self::Text(other, b)) => {
                a == b && (left == other || left.is_none() || other.is_none())
            }
            _ => false,
        }
    }
}

/// Compares two lists of one length without regard to order.
fn same_in_any_order(a: &[Value], b: &[Value]) -> bool {
    let mut left: Vec<&Value> = b.iter().collect();
    a.iter().all(|a| left.iter().position(|b| a.same(b)).map(|found| left.remove(found)).is_some())
}

/// The elements of a text that is a list as a whole, with its brackets. What a list is said to be (`x ∈ [0,1]`) does not
/// count.
fn list(plain: &str) -> Option<(Brackets, Vec<&str>)> {
    let whole = bare(plain);
    let lists = lists(whole);
    let said = whole.rfind(['=', '∈']).and_then(|at| whole[at..].chars().next().map(|sign| at + sign.len_utf8()));
    for start in [Some(0), said].into_iter().flatten() {
        let start = whole.len() - whole[start..].trim_start().len();
        if let Some(span) = lists.get(&start)
            && span.end == whole.len()
        {
            return Some((Some(span.brackets), span.items(whole)));
        }
    }
    let text = whole;
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
    let text = text.trim_matches(around).trim_end_matches(|c| around(c) || matches!(c, '.' | ',' | ';'));
    // Braces around brackets only group them.
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    inner.filter(|inner| inner.starts_with(['(', '[']) && !inner.contains(['{', '}'])).unwrap_or(text)
}

/// The two sides of an equation with a variable or a function on its left, in one spelling: `y = 2x + 1`.
fn variable(plain: &str) -> Option<(String, String)> {
    let (left, right) = plain.split_once('=').filter(|(_, right)| !right.contains('='))?;
    let left = canonical(left);
    let mut letters = left.chars();
    let name = letters.next().is_some_and(char::is_alphabetic)
        && match letters.as_str().as_bytes() {
            [] => true,
            [b'_', index] => index.is_ascii_alphanumeric(),
            [b'(', argument, b')'] => argument.is_ascii_alphabetic(),
            _ => false,
        };
    name.then(|| (left, canonical(right))).filter(|(_, right)| !right.is_empty())
}
