//! All constraints of a run, in the order in which they are applied: the penalty of the current stage, the budget, the
//! bound.
//!
//! The stage follows from the step's number alone, so a resumed run needs no state for it.

use super::rank_budget::Budget;
use super::{Penalty, Prox, ProxConfig, UpdateContext, gate_l1, threshold_stages};
use crate::optimizer::OptimizerConfig;
use crate::{Error, Result};
use model::adapter::LowRank;
use std::ops::Range;
use tch::Tensor;

/// Quantities of the run that the constraints depend on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunExtent {
    /// Largest learning rate of the gates.
    pub learning_rate: f64,
    /// Training steps of the whole run.
    pub steps: u64,
    /// Ranks of all layers together at the start.
    pub ranks: i64,
}

impl RunExtent {
    /// Derives the largest learning rate of the gates from the update rule.
    pub fn new(update_rule: &OptimizerConfig, steps: u64, ranks: i64) -> Self {
        let learning_rate = update_rule.rate().learning_rate * update_rule.gate_learning_rate_scale();
        Self { learning_rate, steps, ranks }
    }
}

/// The constraints of a run, built and checked.
pub struct Constraints {
    /// One penalty per stage: a single one without stages, none without a penalty.
    penalties: Vec<Box<dyn Prox>>,
    stages: Vec<Range<u64>>,
    always: Vec<Box<dyn Prox>>,
    l1_coefficient: f64,
}

impl ProxConfig {
    /// Builds the constraints.
    ///
    /// # Errors
    /// If a setting is outside its range, if there is more than one penalty or no constraint at all, or if stages have
    /// no threshold to raise.
    pub fn build(&self, run: RunExtent) -> Result<Constraints> {
        let named = [
            ("soft_threshold", self.soft_threshold.as_ref().map(|penalty| penalty as &dyn Penalty)),
            ("mcp", self.mcp.as_ref().map(|penalty| penalty as &dyn Penalty)),
            ("scad", self.scad.as_ref().map(|penalty| penalty as &dyn Penalty)),
            ("group_sparse", self.group_sparse.as_ref().map(|penalty| penalty as &dyn Penalty)),
        ];
        let given: Vec<_> = named.into_iter().filter_map(|(name, penalty)| Some((name, penalty?))).collect();
        if let [(first, _), (second, _), ..] = given[..] {
            return Err(Error::input(format!("[prox] has both `{first}` and `{second}`; keep one penalty")));
        }
        let penalty = given.first().map(|(_, penalty)| *penalty);
        let (thresholds, stages) = self.thresholds(penalty, run.steps)?;
        for threshold in &thresholds {
            penalty.map_or(Ok(()), |penalty| penalty.validate(*threshold, run.learning_rate))?;
        }
        let penalties: Vec<Box<dyn Prox>> =
            thresholds.iter().filter_map(|threshold| Some(penalty?.at(*threshold))).collect();
        let mut always: Vec<Box<dyn Prox>> = Vec::new();
        if let Some(config) = &self.rank_budget {
            config.validate()?;
            always.push(Box::new(Budget { config: config.clone(), all: run.ranks }));
        }
        if let Some(bound) = &self.norm_bound {
            bound.validate()?;
            always.push(Box::new(bound.clone()));
        }
        if penalties.is_empty() && always.is_empty() {
            return Err(Error::input(
                "[prox] names no constraint; give it one, such as [prox.soft_threshold], or drop it",
            ));
        }
        let l1_coefficient = self.soft_threshold.as_ref().map_or(0.0, |penalty| penalty.l1_coefficient);
        Ok(Constraints { penalties, stages, always, l1_coefficient })
    }

    /// Returns the threshold of each stage and its range of steps.
    fn thresholds(&self, penalty: Option<&dyn Penalty>, steps: u64) -> Result<(Vec<f64>, Vec<Range<u64>>)> {
        match (&self.stages, penalty) {
            (None, penalty) => Ok((penalty.map(Penalty::threshold).into_iter().collect(), Vec::new())),
            (Some(stages), Some(penalty)) => {
                let thresholds = threshold_stages(penalty.threshold(), stages.last, stages.count, stages.spacing)?;
                Ok((thresholds, stages.ranges(steps)?))
            }
            (Some(_), None) => Err(Error::input(
                "[prox.stages] raises the threshold of a penalty, but there is none; add [prox.soft_threshold]",
            )),
        }
    }
}

impl Constraints {
    /// Applies every constraint in place, with the penalty of the stage that the step belongs to.
    pub fn apply(&self, layers: &[&LowRank], context: UpdateContext) {
        let penalty = self.penalties.get(self.stage(context.step)).or(self.penalties.last());
        penalty.into_iter().chain(&self.always).for_each(|prox| prox.apply(layers, context));
    }

    /// Returns the L1 term that is added to the loss of each update, a scalar with gradient; `None` without an L1
    /// coefficient or without gates.
    pub fn loss(&self, layers: &[&LowRank]) -> Option<Tensor> {
        (self.l1_coefficient > 0.0).then(|| gate_l1(layers, self.l1_coefficient)).flatten()
    }

    /// Returns the range of steps that share an optimizer and a learning-rate schedule with `step`: those of its stage,
    /// or all of the run.
    pub fn stage_steps(&self, step: u64, steps: u64) -> Range<u64> {
        self.stages.get(self.stage(step)).cloned().unwrap_or(1..steps + 1)
    }

    fn stage(&self, step: u64) -> usize {
        self.stages.iter().position(|range| range.contains(&step)).unwrap_or(self.stages.len().saturating_sub(1))
    }
}
