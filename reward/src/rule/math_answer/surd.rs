//! Products of fractions, square roots and powers of π, compared by value.
//!
//! ```text
//! product = [sign] factor { ["*"] factor | "/" factor }
//! factor  = decimal | \frac{product}{product} | \sqrt{fraction} | π | π^integer | "(" product ")"
//! ```
//!
//! A product is ±√s · π^k with a rational s, so that `2\sqrt{3}`, `\sqrt{12}` and `6/\sqrt{3}` are one value and no
//! number has to be factored. π is transcendental and √s algebraic: two products are equal only if all three parts are.
//! Sums stay out of reach. So does a factor behind a divisor (`1/2π`), which writers read in two ways.

use super::cursor::Cursor;
use super::number::{right_hand_side, unwrapped};
use super::quantity::rational_root;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Signed, Zero};

/// Longer texts, in bytes, have no value: the cost of exactness is bounded.
const LONGEST: usize = 200;

/// Larger numerators and denominators, in bits, have no value.
const MOST_BITS: u64 = 10_000;

/// Brackets, fractions and roots in each other.
const DEPTH: usize = 8;

/// The value ±√square · π^pi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surd {
    negative: bool,
    square: BigRational,
    pi: i64,
}

impl Surd {
    /// Reads a text in plain spelling as a whole.
    pub(super) fn whole(plain: &str) -> Option<Self> {
        let text = unwrapped(right_hand_side(unwrapped(plain))?);
        if text.len() > LONGEST || text.contains('(') && text.contains([',', ';']) {
            return None;
        }
        let (value, mut end) = product(Cursor::new(text), DEPTH)?;
        end.spaces();
        end.peek().is_none().then_some(value)
    }

    /// The value as a fraction, if it is one.
    pub(super) fn rational(&self) -> Option<BigRational> {
        let root = rational_root(&self.square).filter(|root| self.pi == 0 || root.is_zero())?;
        Some(if self.negative { -root } else { root })
    }

    fn new(value: &BigRational) -> Self {
        Self { negative: value.is_negative(), square: value * value, pi: 0 }
    }

    fn pi(power: i64) -> Self {
        Self { negative: false, square: BigRational::one(), pi: power }
    }

    fn times(&self, other: &Self) -> Option<Self> {
        let bits = |value: &BigRational| value.numer().bits() + value.denom().bits();
        (bits(&self.square) + bits(&other.square) <= MOST_BITS).then(|| Self {
            negative: self.negative != other.negative,
            square: &self.square * &other.square,
            pi: self.pi + other.pi,
        })
    }

    fn over(&self, other: &Self) -> Option<Self> {
        let inverse = || Self { negative: other.negative, square: other.square.recip(), pi: -other.pi };
        if other.square.is_zero() { None } else { self.times(&inverse()) }
    }

    fn root(&self) -> Option<Self> {
        let square = self.rational().filter(|square| !square.is_negative())?;
        Some(Self { negative: false, square, pi: 0 })
    }
}

fn product(mut cursor: Cursor<'_>, depth: usize) -> Option<(Surd, Cursor<'_>)> {
    cursor.spaces();
    let negative = cursor.eat("-");
    let _ = !negative && cursor.eat("+");
    let first = cursor.peek();
    let (mut value, mut end) = factor(cursor, depth)?;
    value.negative ^= negative;
    let mut digits = first.is_some_and(|byte| byte.is_ascii_digit());
    let mut divided = false;
    loop {
        let mut next = end;
        next.spaces();
        if next.eat("/") {
            let (divisor, after) = factor(next, depth)?;
            (value, end, divided) = (value.over(&divisor)?, after, true);
        } else if next.eat("*") {
            let (other, after) = factor(next, depth)?;
            (value, end) = (value.times(&other)?, after);
        } else if ["\\frac", "\\sqrt", "sqrt", "π", "pi", "("].iter().any(|start| next.sees(start)) {
            let (other, after) = factor(next, depth)?;
            // `2\frac{1}{2}` is a mixed number.
            let mixed = digits && next.sees("\\frac") && other.rational().is_some();
            if divided || mixed {
                return None;
            }
            (value, end) = (value.times(&other)?, after);
        } else {
            return Some((value, end));
        }
        digits = false;
    }
}

fn factor(mut cursor: Cursor<'_>, depth: usize) -> Option<(Surd, Cursor<'_>)> {
    let depth = depth.checked_sub(1)?;
    cursor.spaces();
    let (value, end) = if cursor.eat("\\frac") {
        let (above, next) = argument(cursor, depth)?;
        let (below, end) = argument(next, depth)?;
        (above.over(&below)?, end)
    } else if cursor.eat("\\sqrt") || cursor.eat("sqrt") {
        let mut inside = cursor;
        inside.spaces();
        let (square, end) = if inside.sees_digit_after(0) { decimal(inside)? } else { argument(inside, depth)? };
        (square.root()?, end)
    } else if cursor.eat("π") || cursor.eat_word("pi") {
        match cursor.exponent() {
            Some((power, end)) => (Surd::pi(power.filter(|power| power.abs() < 100)?), end),
            None => (Surd::pi(1), cursor),
        }
    } else if cursor.eat("(") {
        let (value, mut end) = product(cursor, depth)?;
        end.spaces();
        if !end.eat(")") {
            return None;
        }
        (value, end)
    } else {
        decimal(cursor)?
    };
    let mut behind = end;
    behind.spaces();
    (!behind.sees("^") && !behind.sees("!")).then_some((value, end))
}

/// A braced product, or a single digit, π or root.
fn argument(mut cursor: Cursor<'_>, depth: usize) -> Option<(Surd, Cursor<'_>)> {
    cursor.spaces();
    if cursor.sees_digit_after(0) {
        let digit = BigInt::from(cursor.rest()[0] - b'0');
        return Some((Surd::new(&BigRational::from_integer(digit)), Cursor { at: cursor.at + 1, ..cursor }));
    }
    let Some((inside, end)) = cursor.braced(0) else { return factor(cursor, depth) };
    let (value, mut rest) = product(Cursor { text: inside, at: 0 }, depth)?;
    rest.spaces();
    rest.peek().is_none().then_some((value, end))
}

fn decimal(cursor: Cursor<'_>) -> Option<(Surd, Cursor<'_>)> {
    let (value, end) = cursor.scientific()?;
    Some((Surd::new(&value?), end))
}
