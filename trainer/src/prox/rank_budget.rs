//! A budget of ranks over all layers: the projection onto "at most N gates are open".
//!
//! The N largest `|g|` stay as they are and all others become zero. This hard threshold is computed anew after every
//! update, so layers compete for ranks and the total is known before the run. A closed gate still has a gradient and
//! reopens if it outgrows the smallest open one.
//!
//! At the first step gates carry no information yet, so the budget falls along the cubic curve of `AdaLoRA` (Q. Zhang
//! et al., ICLR 2023): with `x` the progress from `begin` to `end`, `b = N + (all − N)(1 − x)³`.

use super::{Prox, UpdateContext};
use crate::{Error, Result};
use model::adapter::LowRank;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[prox.rank_budget]`: a budget of open ranks over all layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankBudget {
    /// Largest number N of ranks that stay open, over all layers together; at least 1.
    pub ranks: i64,
    /// Share of the run after which the budget begins to fall, from 0 to `end`.
    #[serde(default = "default_begin")]
    pub begin: f64,
    /// Share of the run after which the budget is `ranks`, from `begin` to 1.
    #[serde(default = "default_end")]
    pub end: f64,
}

fn default_begin() -> f64 {
    0.1
}

fn default_end() -> f64 {
    0.6
}

impl RankBudget {
    pub(super) fn validate(&self) -> Result<()> {
        if self.ranks < 1 {
            return Err(Error::input(format!("`prox.rank_budget.ranks` is {}; it must be at least 1", self.ranks)));
        }
        if !(0.0 <= self.begin && self.begin <= self.end && self.end <= 1.0) {
            return Err(Error::input(format!(
                "`prox.rank_budget` begins at {} and ends at {} of the run; these must be shares in that order",
                self.begin, self.end
            )));
        }
        Ok(())
    }

    /// Returns the budget after a step, in a run that starts with `all` ranks.
    fn at(&self, context: UpdateContext, all: i64) -> i64 {
        let done = context.step as f64 / context.steps.max(1) as f64;
        let left = if done >= self.end { 0.0 } else { 1.0 - ((done - self.begin) / (self.end - self.begin)).max(0.0) };
        let all = all.max(self.ranks);
        self.ranks + ((all - self.ranks) as f64 * left.powi(3)).round() as i64
    }
}

/// The budget of a run that starts with `all` ranks.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) config: RankBudget,
    pub(super) all: i64,
}

impl Prox for Budget {
    fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let _guard = tch::no_grad_guard();
        let gates: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.gate.as_ref()).collect();
        let entries: i64 = gates.iter().map(|gate| gate.numel() as i64).sum();
        let budget = self.config.at(context, self.all);
        if entries <= budget {
            return;
        }
        let all = Tensor::cat(&gates, 0);
        // A stable order breaks ties, so exactly as many stay as the budget allows.
        let order = all.abs().argsort_stable(true, 0, true);
        let removed = order.narrow(0, budget, entries - budget);
        let kept = all.index_fill(0, &removed, 0.0);
        let sizes: Vec<i64> = gates.iter().map(|gate| gate.numel() as i64).collect();
        for (gate, kept) in gates.iter().zip(kept.split_with_sizes(&sizes[..], 0)) {
            gate.shallow_clone().copy_(&kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gates, layer};
    use super::*;

    fn budget(ranks: i64, all: i64) -> Budget {
        Budget { config: RankBudget { ranks, begin: 0.2, end: 0.7 }, all }
    }

    fn at(step: u64) -> UpdateContext {
        UpdateContext { learning_rate: 1.0, step, steps: 100 }
    }

    #[test]
    fn the_largest_gates_of_all_layers_stay_as_they_are() {
        let (first, second) = (layer(&[0.5, -0.1, 0.3]), layer(&[-0.9, 0.2]));
        budget(3, 5).apply(&[&first, &second], at(100));
        assert_eq!(gates(&[&first, &second]), [0.5, 0.0, 0.3, -0.9, 0.0]);
    }

    #[test]
    fn ties_do_not_exceed_the_budget() {
        let layer = layer(&[1.0; 6]);
        budget(2, 6).apply(&[&layer], at(100));
        assert_eq!(gates(&[&layer]).iter().filter(|gate| **gate != 0.0).count(), 2);
    }

    #[test]
    fn the_budget_falls_along_a_cubic_curve() {
        // Halfway between 0.2 and 0.7 an eighth of what is to go is left: 10 + 80/8 = 20.
        let config = budget(10, 90).config;
        let budgets = [1, 20, 45, 70, 100].map(|step| config.at(at(step), 90));
        assert_eq!(budgets, [90, 90, 20, 10, 10]);
        let sudden = RankBudget { ranks: 10, begin: 0.5, end: 0.5 };
        assert_eq!([49, 50].map(|step| sudden.at(at(step), 90)), [90, 10]);
    }

    #[test]
    fn senseless_budgets_are_refused() {
        for (ranks, begin, end) in [(0, 0.1, 0.6), (5, 0.7, 0.6), (5, -0.1, 0.6), (5, 0.0, 1.1), (5, f64::NAN, 1.0)] {
            assert!(RankBudget { ranks, begin, end }.validate().unwrap_err().is_input());
        }
    }
}
