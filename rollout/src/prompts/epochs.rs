//! The prompts of each step: the next ones, in an order that is shuffled anew for each pass over the data.
//!
//! The order of a pass depends only on the seed and the number of the pass, so the prompts of a step do not depend on
//! earlier steps. A step that crosses the end of a pass continues with the next one. Endless sources are read in their
//! own order.

use super::PromptSource;
use crate::{Error, Result};
use schema::{Prompt, Seed};
use std::cell::RefCell;

/// First index of the additional prompts of [`Epochs::more`].
const MORE: u64 = 1 << 48;
/// Rounds of additional prompts that a step has indices for.
const MAX_ROUNDS: u64 = 1 << 10;

/// A source of prompts, split into steps.
pub struct Epochs {
    source: PromptSource,
    prompts_per_step: usize,
    seed: Seed,
    /// The pass last read, and its order.
    order: RefCell<(u64, Vec<usize>)>,
}

impl Epochs {
    /// Splits `source` into steps of `prompts_per_step` prompts; `seed` determines the order of each pass.
    pub fn new(source: PromptSource, prompts_per_step: usize, seed: Seed) -> Self {
        Self { source, prompts_per_step, seed, order: RefCell::default() }
    }

    /// Returns the prompts of a step; steps count from 1.
    ///
    /// # Errors
    ///
    /// An input error if the source is empty.
    pub fn step(&self, step: u64) -> Result<Vec<Prompt>> {
        self.from(step.saturating_sub(1) * self.prompts_per_step as u64)
    }

    /// Returns as many additional prompts for a step, a different set for each round. They come from passes of their
    /// own, so the prompts of later steps stay the same.
    ///
    /// # Errors
    ///
    /// An input error if the source is empty.
    pub fn more(&self, step: u64, round: u64) -> Result<Vec<Prompt>> {
        self.from(MORE + (step * MAX_ROUNDS + round % MAX_ROUNDS) * self.prompts_per_step as u64)
    }

    fn from(&self, first: u64) -> Result<Vec<Prompt>> {
        let count = self.prompts_per_step as u64;
        (first..first + count).map(|index| self.source.prompt(self.source_index(index)?)).collect()
    }

    /// Passes over the data in the first `steps` steps; `None` for an endless source.
    pub fn passes(&self, steps: u64) -> Option<f64> {
        let len = self.source.len().filter(|len| *len > 0)?;
        Some((steps * self.prompts_per_step as u64) as f64 / len as f64)
    }

    /// Index in the source of the prompt that comes out at `index`.
    fn source_index(&self, index: u64) -> Result<u64> {
        let Some(len) = self.source.len() else { return Ok(index) };
        let pass = index.checked_div(len).ok_or_else(|| Error::input("there are no prompts"))?;
        let mut order = self.order.borrow_mut();
        if order.1.is_empty() || order.0 != pass {
            *order = (pass, self.seed.at(pass).permutation(len as usize));
        }
        Ok(order.1[(index % len) as usize] as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(len: usize, prompts_per_step: usize) -> Epochs {
        let prompts = (0..len).map(|number| Prompt::user(number.to_string())).collect();
        Epochs::new(PromptSource::Finite(prompts), prompts_per_step, Seed::new(1))
    }

    fn questions(epochs: &Epochs, step: u64) -> Vec<String> {
        epochs.step(step).unwrap().iter().map(|prompt| prompt.question().to_owned()).collect()
    }

    #[test]
    fn each_pass_deals_out_every_prompt_once() {
        let epochs = epochs(10, 4);
        // Five steps of four are two passes over ten.
        let dealt: Vec<String> = (1..=5).flat_map(|step| questions(&epochs, step)).collect();
        let (first, second) = dealt.split_at(10);
        assert_ne!(first, second);
        for pass in [first, second] {
            let mut numbers: Vec<usize> = pass.iter().map(|number| number.parse().unwrap()).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(epochs.passes(5), Some(2.0));
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before_it() {
        let one = epochs(7, 3);
        let forwards: Vec<_> = (1..=20).map(|step| questions(&one, step)).collect();
        let another = epochs(7, 3);
        let backwards: Vec<_> = (1..=20).rev().map(|step| questions(&another, step)).collect();
        assert_eq!(forwards, backwards.into_iter().rev().collect::<Vec<_>>());
    }

    #[test]
    fn more_prompts_differ_by_round_and_leave_the_steps_alone() {
        let epochs = epochs(50, 4);
        let texts = |prompts: Vec<Prompt>| prompts.iter().map(|p| p.question().to_owned()).collect::<Vec<_>>();
        let before = questions(&epochs, 3);
        let (one, two) = (texts(epochs.more(3, 1).unwrap()), texts(epochs.more(3, 2).unwrap()));
        assert!(one.len() == 4 && one != two);
        assert_eq!(texts(epochs.more(3, 1).unwrap()), one);
        assert_eq!(questions(&epochs, 3), before);
    }

    #[test]
    fn a_step_may_be_longer_than_the_data() {
        assert_eq!(questions(&epochs(2, 5), 1).len(), 5);
        assert!(epochs(0, 1).step(1).unwrap_err().is_input());
    }
}
