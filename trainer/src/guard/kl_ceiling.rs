//! Alarm when two policies diverge: a KL divergence, averaged over the window, is above a ceiling.
//!
//! The two are the user's choice: the policy and the reference (`kl`), the trainer and the sampler (`mismatch_kl`), or
//! the policy after a step's updates and before them (`proximal_kl`), all in nats per token. The reported samples are
//! those with the least likely tokens under the policy that sampled them: their ratios are the furthest from 1.

use super::{Action, Finding, Guard, indexed, largest_first, mean, positive, surprise};
use crate::algorithm::Algorithm;
use crate::companion::Role;
use crate::{Error, Result};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};

/// `[guard.kl_ceiling]`: alarm on a KL divergence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlCeiling {
    /// Divergence to measure: `kl`, `mismatch_kl` or `proximal_kl`.
    pub metric: Divergence,
    /// Largest mean divergence without an alarm, in nats per token; above 0.
    pub limit: f64,
    /// Training steps that are averaged; at least 1.
    pub window: usize,
    /// Action of an alarm: `warn`, `roll_back` or `stop`.
    pub action: Action,
}

/// A divergence between two policies, by the name of its metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// Divergence of the policy from the reference.
    Kl,
    /// Divergence of the trainer's log-probabilities from the sampler's.
    #[default]
    MismatchKl,
    /// Divergence of the policy from its state at the start of the step.
    ProximalKl,
}

impl Divergence {
    fn metric(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::MismatchKl => "mismatch_kl",
            Self::ProximalKl => "proximal_kl",
        }
    }
}

impl Default for KlCeiling {
    fn default() -> Self {
        Self { metric: Divergence::MismatchKl, limit: 0.1, window: 5, action: Action::Warn }
    }
}

impl Guard for KlCeiling {
    fn action(&self) -> Action {
        self.action
    }

    fn window(&self) -> usize {
        self.window
    }

    fn check(&self, algorithm: &dyn Algorithm) -> Result<()> {
        let needs = algorithm.needs();
        let measured = match self.metric {
            Divergence::Kl => needs.companion(Role::Reference).is_some(),
            Divergence::MismatchKl => true,
            Divergence::ProximalKl => needs.signal_reads_logprobs || algorithm.schedule(1).updates() > 1,
        };
        if !measured {
            let remedy = match self.metric {
                Divergence::ProximalKl => "takes one update per step; raise its epochs or minibatches",
                _ => "does not look at the reference; raise its kl_coefficient",
            };
            return Err(Error::input(format!(
                ".metric is {}, which is never measured, because the algorithm {remedy}, or watch mismatch_kl",
                self.metric.metric()
            )));
        }
        positive("limit", self.limit)
    }

    fn measure(&self, _samples: &[GradedGroup], metrics: &mut Metrics) -> Option<Vec<f64>> {
        Some(vec![metrics.get(self.metric.metric())?])
    }

    fn check_window(&self, window: &[&[f64]], samples: &[GradedGroup]) -> Option<Finding> {
        let kl = mean(window, 0);
        (kl > self.limit).then(|| Finding {
            message: format!("{} is {kl:.4} nats per token, above the ceiling of {}", self.metric.metric(), self.limit),
            samples: largest_first(indexed(samples).map(|(index, sample)| (index, surprise(sample))).collect()),
        })
    }
}
