//! All constraints of a run, in the order in which they act: the penalty of the present stage, the budget, the bound.
//!
//! Which stage a step belongs to follows from its number alone, so a resumed run needs no state of its own for it.

use super::rank_budget::Budget;
use super::{Moment, Penalty, Prox, ProxConfig, gate_l1, threshold_stages};
use crate::optimizer::OptimizerConfig;
use crate::{Error, Result};
use model::adapter::LowRank;
use std::ops::Range;
use tch::Tensor;

/// What of the rest of the run the constraints depend on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// The gates' largest learning rate.
    pub learning_rate: f64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Ranks of all layers together at the start.
    pub ranks: i64,
}

impl Setting {
    /// That of a run with this update rule.
    pub fn new(update_rule: &OptimizerConfig, steps: u64, ranks: i64) -> Self {
        let learning_rate = update_rule.rate().learning_rate * update_rule.gate_learning_rate_scale();
        Self { learning_rate, steps, ranks }
    }
}

/// The constraints of a run.
pub struct Constraints {
    /// The penalty of each stage; one stage if the threshold does not rise, none if there is no penalty.
    penalties: Vec<Box<dyn Prox>>,
    stages: Vec<Range<u64>>,
    always: Vec<Box<dyn Prox>>,
    l1_coefficient: f64,
}

impl ProxConfig {
    /// The constraints, checked.
    ///
    /// # Errors
    /// If a setting is out of its range, if there is more than one penalty or nothing at all, or if stages have no
    /// threshold to raise.
    pub fn build(&self, setting: Setting) -> Result<Constraints> {
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
        let (thresholds, stages) = self.thresholds(penalty, setting.steps)?;
        for threshold in &thresholds {
            penalty.map_or(Ok(()), |penalty| penalty.validate(*threshold, setting.learning_rate))?;
        }
        let penalties: Vec<Box<dyn Prox>> =
            thresholds.iter().filter_map(|threshold| Some(penalty?.at(*threshold))).collect();
        let mut always: Vec<Box<dyn Prox>> = Vec::new();
        if let Some(config) = &self.rank_budget {
            config.validate()?;
            always.push(Box::new(Budget { config: config.clone(), all: setting.ranks }));
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

    /// The threshold of each stage and the steps that it lasts.
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
    /// Applies every constraint of this moment, in place.
    pub fn apply(&self, layers: &[&LowRank], moment: Moment) {
        let penalty = self.penalties.get(self.stage(moment.step)).or(self.penalties.last());
        penalty.into_iter().chain(&self.always).for_each(|prox| prox.apply(layers, moment));
    }

    /// What is added to the loss of each update: a scalar with gradient, if there is anything.
    pub fn loss(&self, layers: &[&LowRank]) -> Option<Tensor> {
        (self.l1_coefficient > 0.0).then(|| gate_l1(layers, self.l1_coefficient)).flatten()
    }

    /// The steps that share an optimizer and a learning-rate schedule with this one: those of its stage, or all.
    pub fn stage_steps(&self, step: u64, steps: u64) -> Range<u64> {
        self.stages.get(self.stage(step)).cloned().unwrap_or(1..steps + 1)
    }

    fn stage(&self, step: u64) -> usize {
        self.stages.iter().position(|range| range.contains(&step)).unwrap_or(self.stages.len().saturating_sub(1))
    }
}
