//! The grammar of quantities: from digits to fractions, roots and powers of ten, each with its exact value.
//!
//! ```text
//! number    = quantity [%, percent, thousand, million, …]
//! quantity  = decimal | decimal "*" 10^integer | 10^integer | a/b | \frac{a}{b} | integer fraction | \sqrt{square}
//! decimal   = digits, thousands apart by comma, apostrophe or thin space, fraction after a point, exponent after an e
//! ```
//!
//! Some things are read without a value, so that no part of them is taken for the answer: dates and versions
//! (`1/2/2024`, `1.2.3`), roots that do not come out, powers (`2^3`), multiples of π, numbers of more than a thousand
//! digits.

use super::cursor::{Cursor, Read};
use super::number::Number;
use super::plain::THIN;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, Zero};

/// More digits or a larger power of ten than this, and a number has no value: the cost of exactness is bounded.
const MOST_DIGITS: usize = 1_000;

/// Words that multiply what stands before them, with the power of ten.
const MAGNITUDES: [(&str, i64); 5] =
    [("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12)];

impl<'a> Cursor<'a> {
    /// A quantity with the suffix that changes its value: a per cent sign or a word such as `million`.
    pub(super) fn number(self) -> Read<'a, Number> {
        let (mut value, mut end) = self.quantity()?;
        let mut next = end;
        next.spaces();
        if let Some((_, power)) = MAGNITUDES.iter().find(|(word, _)| next.eat_word(word)) {
            value = value.map(|value| value * power_of_ten(*power));
            end = next;
            next.spaces();
        }
        let percent = next.eat("%") || next.eat_word("percent") || next.eat_word("per cent");
        let end = if percent { next } else { end };
        Some((value.map(|value| Number { value, percent }), end))
    }

    fn quantity(self) -> Read<'a, BigRational> {
        if let Some(repeating) = self.repeating() {
            return Some(repeating);
        }
        let (value, end) = if self.sees("\\frac") { self.latex_fraction()? } else { self.simple()? };
        Some(end.times_irrational().map_or((value, end), |end| (None, end)))
    }

    /// Repeating decimals: `0.\overline{3}` is 1/3, `0.1\overline{6}` is 1/6.
    fn repeating(mut self) -> Read<'a, BigRational> {
        let mut digits = self.eat_digits().to_vec();
        if digits.is_empty() || !self.eat(".") {
            return None;
        }
        let places = self.eat_digits();
        digits.extend(places);
        if !(self.eat("\\overline") || self.eat("\\bar")) {
            return None;
        }
        let (period, end) = self.braced(0)?;
        if period.is_empty() || !period.iter().all(u8::is_ascii_digit) || digits.len() > MOST_DIGITS {
            return None;
        }
        let integer = |digits: &[u8]| BigInt::parse_bytes(digits, 10).map(BigRational::from_integer);
        let ones = power_of_ten(period.len() as i64) - BigRational::one();
        let value = integer(&digits).zip(integer(period)).map(|(digits, period)| digits + period / ones);
        Some((value.map(|value| value * power_of_ten(-(places.len() as i64))), end))
    }

    /// A root, a decimal, or a fraction or mixed number that starts with a decimal.
    fn simple(self) -> Read<'a, BigRational> {
        if self.sees("\\sqrt") {
            return self.root();
        }
        let (value, end) = self.scientific()?;
        if let Some((divisor, end)) = end.divisor() {
            return Some((value.zip(divisor).and_then(|(a, b)| quotient(&a, &b)), end));
        }
        let mut gap = end;
        let spaces = gap.spaces();
        let fraction = if gap.sees("\\frac") {
            gap.latex_fraction()
        } else if (1..=2).contains(&spaces) {
            let numerator = gap.scientific();
            numerator.and_then(|(a, end)| {
                let (b, end) = end.divisor()?;
                Some((a.zip(b).and_then(|(a, b)| quotient(&a, &b)), end))
            })
        } else {
            None
        };
        let Some((fraction, after)) = fraction else { return Some((value, end)) };
        match (value, fraction) {
            (Some(whole), Some(part)) if whole.is_integer() && part < BigRational::one() && part.is_positive() => {
                Some((Some(whole + part), after))
            }
            // `5 \frac{3}{2}` is a product, `5 3/2` are two numbers.
            _ if gap.sees("\\frac") => Some((None, after)),
            (value, _) => Some((value, end)),
        }
    }

    /// Reads the divisor behind a slash; a second slash makes it a date, without a value.
    fn divisor(mut self) -> Read<'a, BigRational> {
        let spaces = self.spaces();
        let divides = self.eat("/") && spaces <= 1 && self.spaces() <= 1;
        let (value, mut end) = if divides { self.scientific()? } else { return None };
        if !(end.sees("/") && end.sees_digit_after(1)) {
            return Some((value, end));
        }
        end.at += end.rest().iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'/').count();
        Some((None, end))
    }

    /// `\frac{a}{b}`, also in the short forms `\frac12` and `\frac1{2}`.
    fn latex_fraction(mut self) -> Read<'a, BigRational> {
        self.eat("\\frac");
        let (a, end) = self.argument()?;
        let (b, end) = end.argument()?;
        Some((a.zip(b).and_then(|(a, b)| quotient(&a, &b)), end))
    }

    /// `\sqrt{n}` or `\sqrt n`, with a value where the root is rational.
    fn root(mut self) -> Read<'a, BigRational> {
        self.eat("\\sqrt");
        let (square, end) = match self.argument() {
            Some((square, end)) if end.text[end.at - 1] == b'}' => (square, end),
            _ => {
                self.spaces();
                self.scientific()?
            }
        };
        Some((square.and_then(|square| rational_root(&square)), end))
    }

    /// A braced number, or a single digit.
    fn argument(mut self) -> Read<'a, BigRational> {
        self.spaces();
        if self.sees_digit_after(0) {
            let digit = self.rest()[0] - b'0';
            return Some((Some(BigRational::from_integer(digit.into())), Self { at: self.at + 1, ..self }));
        }
        let (inside, end) = self.braced(0)?;
        let mut cursor = Cursor { text: inside, at: 0 };
        cursor.spaces();
        let negative = cursor.eat("-");
        let value = cursor.scientific().and_then(|(value, mut end)| {
            end.spaces();
            value.filter(|_| end.peek().is_none())
        });
        Some((value.map(|value| if negative { -value } else { value }), end))
    }

    /// A decimal, perhaps times a power of ten. Other powers are sums left undone and have no value.
    pub(super) fn scientific(self) -> Read<'a, BigRational> {
        let (value, end) = self.decimal()?;
        if let Some((exponent, end)) = end.exponent() {
            let ten = BigRational::from_integer(10.into());
            let power = exponent.filter(|_| value == Some(ten)).map(power_of_ten);
            return Some((power, end));
        }
        let mut next = end;
        next.spaces();
        if next.eat("*") || next.eat("x") || next.eat("X") {
            next.spaces();
            if next.eat("10")
                && let Some((exponent, end)) = next.exponent()
            {
                return Some((value.zip(exponent).map(|(value, exponent)| value * power_of_ten(exponent)), end));
            }
        }
        Some((value, end))
    }

    /// `^3`, `^{-3}`; without a value if it is no small integer. A degree sign is no exponent.
    pub(super) fn exponent(mut self) -> Read<'a, i64> {
        if !self.eat("^") || self.sees("°") || self.sees("{°}") {
            return None;
        }
        let (inside, end) = self.braced(0).unwrap_or_else(|| {
            let sign = usize::from(self.sees("-"));
            let digits = self.rest()[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let length = if digits == 0 { 0 } else { sign + digits };
            (&self.rest()[..length], Self { at: self.at + length, ..self })
        });
        let number: Option<i64> = std::str::from_utf8(inside).ok().and_then(|text| text.trim().parse().ok());
        Some((number.filter(|number| number.unsigned_abs() <= MOST_DIGITS as u64), end))
    }

    /// Digits with separators, point and exponent. Several points make it a version or a date, without a value.
    fn decimal(self) -> Read<'a, BigRational> {
        let mut end = self;
        let mut digits = end.eat_digits().to_vec();
        // No number of thousands starts with a zero: `0,100` are two numbers.
        while digits.first() != Some(&b'0') && (1..=3).contains(&digits.len())
            || digits.len() > 3 && end.at > self.at + digits.len()
        {
            let Some(three) = end.eat_thousand() else { break };
            digits.extend(three);
        }
        let whole = digits.len();
        if end.sees(".") && end.sees_digit_after(1) {
            end.at += 1;
            digits.extend(end.eat_digits());
            if end.sees(".") && end.sees_digit_after(1) {
                end.at += end.rest().iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
                return Some((None, end));
            }
        }
        if digits.is_empty() {
            return None;
        }
        let places = (digits.len() - whole) as i64;
        let (exponent, end) = end.e_notation().unwrap_or((Some(0), end));
        let value = exponent.filter(|_| digits.len() <= MOST_DIGITS).and_then(|exponent| {
            let integer = BigInt::parse_bytes(&digits, 10)?;
            Some(BigRational::from_integer(integer) * power_of_ten(exponent - places))
        });
        Some((value, end))
    }

    /// A separator and exactly three digits.
    fn eat_thousand(&mut self) -> Option<&'a [u8]> {
        let separated = matches!(self.peek()?, b',' | b'_' | b'\'') || self.peek()? == THIN as u8;
        let digits = (1..=3).all(|place| self.sees_digit_after(place)) && !self.sees_digit_after(4);
        (separated && digits).then(|| {
            self.at += 4;
            &self.text[self.at - 3..self.at]
        })
    }

    /// `e5`, `E-5`; without a value if the exponent is too large.
    fn e_notation(self) -> Read<'a, i64> {
        let mut next = self;
        if !(next.eat("e") || next.eat("E")) {
            return None;
        }
        let negative = next.eat("-");
        let _ = !negative && next.eat("+");
        let digits = next.eat_digits();
        if digits.is_empty() || next.peek().is_some_and(|byte| byte.is_ascii_alphabetic()) {
            return None;
        }
        let exponent: Option<i64> = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let exponent = exponent.filter(|e| *e <= MOST_DIGITS as i64).map(|e| if negative { -e } else { e });
        Some((exponent, next))
    }

    /// The position behind a root or a π that multiplies what stands before, or behind repeating decimals.
    fn times_irrational(mut self) -> Option<Self> {
        if self.eat(".\\overline") || self.eat("\\overline") {
            return Some(self.braced(0).map_or(self, |(_, end)| end));
        }
        self.spaces();
        let _ = self.eat("*") && self.spaces() > 0;
        if self.sees("\\sqrt") {
            return self.root().map_or(Some(Self { at: self.at + 5, ..self }), |(_, end)| Some(end));
        }
        self.eat("π").then_some(self)
    }
}

fn power_of_ten(exponent: i64) -> BigRational {
    let power = Pow::pow(BigInt::from(10), exponent.unsigned_abs());
    let value = BigRational::from_integer(power);
    if exponent < 0 { value.recip() } else { value }
}

fn quotient(a: &BigRational, b: &BigRational) -> Option<BigRational> {
    (!b.is_zero()).then(|| a / b)
}

/// The square root, if it is rational.
pub(super) fn rational_root(square: &BigRational) -> Option<BigRational> {
    if square.is_negative() {
        return None;
    }
    let root = BigRational::new(square.numer().sqrt(), square.denom().sqrt());
    (&root * &root == *square).then_some(root)
}
