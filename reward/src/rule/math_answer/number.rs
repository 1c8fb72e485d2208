//! Numbers in text, and strings that only look like one.
//!
//! A number is a quantity (see `quantity.rs`) with its sign. Digits in names, subscripts and exponents (`x2`, `x_2`,
//! `x^2`, `m^2`) are none. A hyphen behind a digit, a closing bracket or a letter is an operator or a dash, not a sign:
//! `10-5` ends in 5.

use super::brackets::{lists, separates};
use super::cursor::{Cursor, Read, is_space};
use super::plain::THIN;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

/// Currency codes that may stand before a number, glued to it or not.
const CURRENCIES: [&str; 6] = ["USD", "EUR", "GBP", "US", "Rs.", "Rs"];

/// Units of one letter; other single letters are variables, and `5x` is not 5.
const LETTERS: &str = "mgshlLNJWVKCF";

/// Words that are no units, though they may follow a number.
const NO_UNITS: [&str; 14] =
    ["or", "and", "to", "pi", "sqrt", "log", "ln", "sin", "cos", "tan", "mod", "times", "plus", "minus"];

/// Greek letters, which are variables but for π.
const GREEK: [&str; 12] =
    ["alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "sigma", "tau", "phi", "omega"];

/// The factorial of a larger number has no value: the cost of exactness is bounded.
const MOST_FACTORS: u32 = 200;

/// An exact number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number {
    /// The value, without regard to a per cent sign.
    pub(super) value: BigRational,
    /// True if it was written with a per cent sign.
    pub(super) percent: bool,
}

impl Number {
    /// Equality by value. Where just one side has a per cent sign, both readings of it count: data sets answer "what
    /// per cent …?" with `50` as well as with `0.5`.
    pub(super) fn same(&self, other: &Self) -> bool {
        let hundred = || BigRational::from_integer(100.into());
        self.value == other.value
            || match (self.percent, other.percent) {
                (true, false) => self.value == &other.value * hundred(),
                (false, true) => other.value == &self.value * hundred(),
                _ => false,
            }
    }
}

/// The reading of a text whose last number is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Any number: of `6/3` it is 3, of `10-5` it is 5.
    Listed,
    /// The number that a statement comes to: `6/3` is 2, and `7+15` has no value, since its sum is left undone.
    Stated,
}

/// The text's last number; `None` if there is none or if what looks like the last has no value. A number behind a
/// negation (`not 12`) does not count.
pub(super) fn last(plain: &str, reading: Reading) -> Option<Number> {
    scan(plain, reading)?.0
}

/// Returns true if the text has a number in it that no negation takes back.
pub(super) fn mentioned(plain: &str) -> bool {
    scan(plain, Reading::Stated).is_some()
}

/// The number that the text as a whole stands for: `22`, `x = 22`, `$22.00`, `22 apples`. `None` if anything is left
/// over that is no unit, as in `7 or 22` and in `2x`.
pub(super) fn whole(plain: &str) -> Option<Number> {
    let text = unwrapped(right_hand_side(unwrapped(plain))?);
    if let Some(inside) = text.strip_prefix('|').and_then(|text| text.strip_suffix('|')) {
        let number = if inside.contains('|') { None } else { whole(inside) };
        return number.map(|number| Number { value: number.value.abs(), ..number });
    }
    let mut cursor = Cursor::new(text);
    let _ = CURRENCIES.iter().any(|code| cursor.eat(code));
    cursor.spaces();
    let before = cursor.eat("$");
    let negative = cursor.eat("-");
    let _ = !negative && cursor.eat("+");
    cursor.spaces();
    let _ = !before && cursor.eat("$");
    let (number, end) = cursor.number()?;
    let (number, end) = end.factorial(number.as_ref()).unwrap_or((number, end));
    if !end.only_units() {
        return None;
    }
    number.map(|number| if negative { negated(number) } else { number })
}

/// The last thing in the text that looks like a number, with its value if it has one.
fn scan(plain: &str, reading: Reading) -> Read<'_, Number> {
    let mut last: Read<'_, Number> = None;
    let mut cursor = Cursor::new(plain);
    let mut negation = Negation::default();
    let lists = lists(plain);
    while cursor.peek().is_some() {
        // A pair or an interval is no number, and none of its parts is the answer.
        if let Some(list) = lists.get(&cursor.at).filter(|list| !list.prose) {
            cursor.at = list.end;
            last = if negation.holds() { last } else { Some((None, cursor)) };
            continue;
        }
        if !cursor.starts_number() {
            negation.pass(cursor);
            cursor = cursor.after_other();
            continue;
        }
        let start = cursor;
        let Some((number, end)) = start.number() else {
            cursor.at += 1;
            continue;
        };
        // In a text that is not a statement, a quotient that comes out whole (`6/3`) is a sum left undone: its parts
        // are the numbers.
        let quotient = plain.as_bytes()[start.at..end.at].iter().any(|byte| matches!(byte, b'/' | b'\\'));
        let whole = number.as_ref().is_some_and(|number| number.value.is_integer()) && !start.sees("\\sqrt");
        if reading == Reading::Listed && quotient && whole {
            cursor = start.scientific().map_or(Cursor { at: start.at + 1, ..start }, |(_, end)| end);
            continue;
        }
        let (mut number, end) = match end.factorial(number.as_ref()) {
            Some(factorial) if !start.exclaims(end) => factorial,
            _ => (number, end),
        };
        let undone = reading == Reading::Stated && start.behind_operator();
        if undone || end.multiplies_variable() {
            number = None;
        }
        if !negation.holds() {
            last = Some((number.map(|number| if start.behind_minus() { negated(number) } else { number }), end));
        }
        cursor = end;
    }
    last
}

/// A negation, and for how many more words it holds.
#[derive(Default)]
struct Negation {
    words: usize,
}

impl Negation {
    /// Words that a negation reaches over: `not equal to 12`.
    const REACH: usize = 4;

    fn holds(&self) -> bool {
        self.words > 0
    }

    /// Takes in what stands at the cursor. A negation ends with its clause and before a new one (`not 12 but 13`).
    fn pass(&mut self, cursor: Cursor<'_>) {
        let Some(byte) = cursor.peek() else { return };
        if !byte.is_ascii_alphabetic() {
            self.words =
                if matches!(byte, b'.' | b',' | b';' | b':' | b'=' | b'!' | b'?' | b'\n') { 0 } else { self.words };
            return;
        }
        let word = cursor.letters();
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        let before = &cursor.text[..cursor.at];
        let short = is("t") && (before.ends_with(b"n'") || before.ends_with("n’".as_bytes()));
        let prefers = ["instead of", "rather than"].iter().any(|words| { cursor }.eat_word(words));
        self.words = if short || prefers || ["not", "never", "cannot"].into_iter().any(is) {
            Self::REACH
        } else if ["but", "is", "it", "so"].into_iter().any(is) {
            0
        } else {
            self.words.saturating_sub(1)
        };
    }
}

impl<'a> Cursor<'a> {
    /// Returns true if a number may start here. A point starts one only where it does not end a sentence or a word.
    fn starts_number(self) -> bool {
        match self.peek() {
            Some(b'0'..=b'9') => true,
            Some(b'.') => {
                self.sees_digit_after(1) && !self.before(1).is_some_and(|b| b.is_ascii_alphanumeric() || b == b'.')
            }
            Some(b'\\') => self.sees("\\frac") || self.sees("\\sqrt"),
            _ => false,
        }
    }

    /// The position behind something that is not a number: a name with its digits, a subscript, an exponent, a command.
    fn after_other(mut self) -> Self {
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        match self.peek() {
            Some(b'\\') => {
                self.at += 1;
                self.at += self.letters().len();
            }
            Some(b'^') => self = self.exponent().map_or(Self { at: self.at + 1, ..self }, |(_, end)| end),
            Some(byte) if is_name(&byte) => {
                let letters = self.letters();
                if CURRENCIES.contains(&letters) {
                    return Self { at: self.at + letters.len(), ..self };
                }
                self.at += self.rest().iter().take_while(|byte| is_name(byte)).count();
                if self.before(1) == Some(b'_') {
                    self = self.braced(0).map_or(self, |(_, end)| end);
                }
            }
            _ => self.at += 1,
        }
        self
    }

    /// Returns true if the text before makes the number negative.
    fn behind_minus(self) -> bool {
        let mut at = self;
        while at.before(1) == Some(b'$') {
            at.at -= 1;
        }
        let attached = !at.before(1).is_some_and(is_space);
        at.back_over_spaces();
        if at.before(1) != Some(b'-') {
            return false;
        }
        at.at -= 1;
        // An absolute value is not negative: `|-5|`.
        if at.before(1) == Some(b'|') {
            return false;
        }
        // A dollar sign here opens or closes mathematics: `$-5$`, but `$10$-$5$`.
        let mut outside = at;
        while outside.before(1) == Some(b'$') {
            outside.at -= 1;
        }
        if outside.at < at.at {
            return !outside.before(1).is_some_and(is_operand);
        }
        let spaced = at.before(1).is_some_and(is_space);
        at.back_over_spaces();
        match at.before(1) {
            // At the start of a line a hyphen that stands off is a bullet.
            None | Some(b'\n' | b'\r') => attached,
            Some(byte) if is_operand(byte) || at.text[..at.at].ends_with("°".as_bytes()) => false,
            Some(byte) if byte.is_ascii_alphabetic() => spaced && attached,
            Some(_) => true,
        }
    }

    /// Returns true if the text before adds, subtracts or multiplies: `7+15`, `2x + 3`.
    fn behind_operator(mut self) -> bool {
        let around = |at: Self| at.before(1).is_some_and(|byte| is_space(byte) || byte == b'$');
        while around(self) {
            self.at -= 1;
        }
        // Asterisks are emphasis where they stand in pairs.
        if !matches!(self.before(1), Some(b'+' | b'-' | b'*')) || self.before(2) == Some(b'*') {
            return false;
        }
        self.at -= 1;
        while around(self) {
            self.at -= 1;
        }
        let letter = |byte: u8| byte.is_ascii_alphabetic();
        self.before(1).is_some_and(|byte| is_operand(byte) || letter(byte) && !self.before(2).is_some_and(letter))
    }

    /// Returns true if the mark behind a number ends a sentence, as in `It is 5!`; else it is a factorial.
    fn exclaims(mut self, end: Self) -> bool {
        while self.before(1).is_some_and(|byte| matches!(byte, b'-' | b'$' | b'"' | b'(')) {
            self.at -= 1;
        }
        let word = self.before(1).is_some_and(is_space) && {
            self.back_over_spaces();
            self.before(1).is_some_and(|byte| byte.is_ascii_alphabetic() || !byte.is_ascii())
        };
        let after = end.rest().iter().find(|byte| **byte != b'!');
        word && after.is_none_or(u8::is_ascii_whitespace)
    }

    /// The factorial of a number with a `!` behind it, without a value unless the number is a small whole one.
    fn factorial(mut self, number: Option<&Number>) -> Read<'a, Number> {
        if !self.eat("!") || self.sees("=") {
            return None;
        }
        let number = number.filter(|number| !number.percent && number.value.is_integer());
        let small = number.and_then(|number| number.value.numer().to_u32()).filter(|small| *small <= MOST_FACTORS);
        let product = small.map(|small| (1..=small).map(BigInt::from).product());
        let value = product.filter(|_| !self.sees("!")).map(BigRational::from_integer);
        Some((value.map(|value| Number { value, percent: false }), self))
    }

    /// Returns true if a variable stands right behind a number: `5x`, `5\theta`, `101_2`.
    fn multiplies_variable(self) -> bool {
        if self.sees("_") {
            return true;
        }
        if self.sees("\\") {
            return GREEK.contains(&Self { at: self.at + 1, ..self }.letters());
        }
        let word = self.letters();
        let variables = word.len() == 1 && !LETTERS.contains(word);
        variables || !word.is_empty() && word.bytes().all(|byte| b"abknxyz".contains(&byte))
    }

    /// Returns true if nothing but units follows: words, their quotients and powers, degrees, a currency.
    fn only_units(mut self) -> bool {
        loop {
            self.spaces();
            if self.peek().is_none() {
                return true;
            }
            let word = self.letters();
            let is_unit = match word.len() {
                0 => self.eat("/") || self.eat("°") || self.eat("^°") || self.eat("^{°}") || self.eat("$"),
                1 => LETTERS.contains(word),
                _ => !NO_UNITS.contains(&word.to_ascii_lowercase().as_str()),
            };
            if !is_unit {
                return false;
            }
            self.at += word.len();
            let mut gap = self;
            gap.spaces();
            if let Some((_, end)) = gap.exponent().filter(|_| !word.is_empty()) {
                self = end;
            }
            let _ = self.eat(".") || word.len() > 1 && self.eat("!");
        }
    }
}

/// Returns true if a hyphen behind this byte is an operator.
fn is_operand(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b')' | b']' | b'}' | b'%')
}

fn negated(number: Number) -> Number {
    Number { value: -number.value, ..number }
}

/// Takes off what may surround an answer: spaces, dollar signs, quotes, emphasis, brackets, a full stop.
pub(super) fn unwrapped(text: &str) -> &str {
    let mut text = text;
    loop {
        let around = |c: char| c.is_whitespace() || c == THIN || matches!(c, '*' | '"' | '\'' | '`');
        let mut inner = text.trim_matches(around).trim_end_matches(['.', ',', ';', ':']);
        // Behind a number or a bracket the mark is a factorial.
        inner = inner.strip_suffix('!').filter(|inner| inner.ends_with(['*', '$', '"'])).unwrap_or(inner);
        for (open, close) in [('$', '$'), ('(', ')'), ('[', ']'), ('{', '}')] {
            inner = inner
                .strip_prefix(open)
                .and_then(|inner| inner.strip_suffix(close))
                .filter(|inner| !inner.contains([open, close]) && (open == '$' || !separates(inner)))
                .unwrap_or(inner);
        }
        if inner.len() == text.len() {
            return inner;
        }
        text = inner;
    }
}

/// The right-hand side of an equation: 5 of `x = 5`, of `x ≈ 5` and of `n ≡ 5`. `None` for inequalities and for several equations.
pub(super) fn right_hand_side(text: &str) -> Option<&str> {
    let Some((left, right)) = text.rsplit_once(['=', '≈', '≡']) else { return Some(text) };
    let several = left.contains(';')
        || left.contains(", ")
        || left.split_whitespace().any(|word| matches!(word, "or" | "and"))
        || left.contains(['<', '>', '!', '≠', '≤', '≥']);
    (!several).then_some(right)
}
