//! Comparison in both orders, which every judge goes through.
//!
//! A judge with position bias says P(a ≻ b) + P(b ≻ a) ≠ 1, which breaks the game that preference methods
//! play. So each pair is asked about in both orders, and
//!
//! ```text
//! P(a ≻ b) = ½ (p(a, b) + 1 − p(b, a))
//! ```
//!
//! is antisymmetric whatever the judge prefers. If either order fails, so does the comparison: half an average would
//! bring the bias back. Two samples of the same text tie, without a call.

use super::{Judge, Matchup};
use schema::Grade;

/// A judge whose result does not depend on the order.
pub struct Fair {
    judge: Box<dyn Judge>,
    swap: bool,
}

impl Fair {
    /// Wraps `judge`; asks it in both orders if `swap` is set and the judge is not symmetric.
    pub fn new(judge: Box<dyn Judge>, swap: bool) -> Self {
        Self { swap: swap && !judge.is_symmetric(), judge }
    }
}

impl Judge for Fair {
    fn name(&self) -> &'static str {
        self.judge.name()
    }

    fn version(&self) -> String {
        if self.swap { format!("{}+swap", self.judge.version()) } else { self.judge.version() }
    }

    fn is_symmetric(&self) -> bool {
        self.swap || self.judge.is_symmetric()
    }

    fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
        let orders = if self.swap { 2 } else { 1 };
        let differ = |(a, b): &Matchup<'_>| a.sample().text != b.sample().text;
        let asked: Vec<Matchup<'_>> = pairs
            .iter()
            .filter(|pair| differ(pair))
            .flat_map(|(a, b)| [(*a, *b), (*b, *a)].into_iter().take(orders))
            .collect();
        let said: Vec<Grade> =
            if asked.is_empty() { Vec::new() } else { self.judge.compare(&asked).into_iter().map(checked).collect() };
        let mut said = said.chunks_exact(orders);
        let missing = || Grade::missing("the judge said nothing of this pair");
        let mut next = || said.next().map_or_else(missing, merged);
        let one = |pair: &Matchup<'_>| if differ(pair) { next() } else { Grade::Value(0.5) };
        pairs.iter().map(one).collect()
    }
}

/// Refuses a value outside [0, 1].
fn checked(said: Grade) -> Grade {
    match said {
        Grade::Value(value) if !(0.0..=1.0).contains(&value) => {
            Grade::missing(format!("the judge said {value}, which is no probability from 0 to 1"))
        }
        said => said,
    }
}

/// Merges the results of one order, or of both.
fn merged(orders: &[Grade]) -> Grade {
    match orders {
        [Grade::Value(there), Grade::Value(back)] => Grade::Value(0.5 * (there + 1.0 - back)),
        [_, failed @ Grade::Missing(_)] | [failed @ Grade::Missing(_), _] => failed.clone(),
        [one] => one.clone(),
        _ => Grade::missing("the judge said nothing of this pair"),
    }
}
