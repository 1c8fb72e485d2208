//! Accelerated preference optimisation (He, Yuan and Gu 2024, APO, arXiv 2410.06293), and with α = 0 iterative DPO.
//!
//! Training goes in iterations of `steps_per_iteration` steps. In each, the policy samples pairs and learns from them
//! with the iteration's first policy, `π_t`, as the reference: a proximal-point step to `p̂_{t+1}`. The next iteration
//! starts extrapolated, as in Nesterov's method:
//!
//! ```text
//! π_{t+1} ∝ p̂_{t+1} (p̂_{t+1} / p̂_t)^α          here:  ΔW_{t+1} = ΔŴ_{t+1} + α (ΔŴ_{t+1} − ΔŴ_t)
//! ```
//!
//! This is exact if logits are linear in the parameters, and the paper's own approximation otherwise. `ΔW` is the
//! product of the adapter's factors; it is extrapolated by concatenation and truncated to the working rank, and the
//! truncation error is reported (`apo/truncation_error`). The last iteration is not extrapolated, so a run ends with a
//! proximal iterate `p̂`, as in the paper; for a checkpoint between two iterations, too, the proximal iterate is
//! evaluated and exported. The optimizer restarts with each iteration. With α = 0 the factors are made anew as well: Adam
//! depends on them, and iterations without acceleration would otherwise differ from those with a small α.
//!
//! A safeguard compares the loss of the extrapolated policy with that of the proximal iterate on the iteration's last
//! pairs and halves α, for this time, while it is worse by more than `max_loss_increase`. The laboratory's
//! [recursion](crate::lab::iterations) shows the gain of α for known rewards.

use super::pair_loss::{self, PairBatch, PairLoss, Pairwise};
use super::pairing::{self, Against, Ties};
use super::sppo::{self, SppoForm};
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Compares, Needs, RunShape, StepChanges, StepEnd};
use crate::collected::{Collected, Pair};
use crate::companion::{Companion, Consults, Renewal, Role, Start};
use crate::objective::MetricSums;
use crate::objective::preference::{LabelNoise, sigmoid, squared};
use crate::{Error, Result};
use model::adapter::Adapter;
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// After this many halvings the extrapolation is given up.
const HALVINGS: u32 = 4;

/// `[algorithm.apo]`: accelerated preference optimisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apo {
    /// Loss of each iteration: `sigmoid`, `ipo` or `sppo`.
    pub loss: ApoLoss,
    /// Weight β of the pull towards the start of the iteration: the larger, the closer the policy stays to it.
    pub beta: f64,
    /// Extrapolation α, as a share of the last iteration's movement; 0 is iterative preference optimisation without
    /// acceleration.
    pub alpha: f64,
    /// Training steps of one iteration.
    pub steps_per_iteration: u64,
    /// Largest increase of the loss by extrapolation before α is halved; 0 for no comparison.
    pub max_loss_increase: f64,
    /// Temperature of rewards in `P = σ(difference / temperature)`: a difference of this size wins with probability
    /// 0.73. 0: the greater reward wins for certain. Unused with a judge.
    pub judge_temperature: f64,
    /// Treatment of a pair with equal rewards: `first_wins` or `skip`.
    pub ties: Ties,
}

/// Loss of an iteration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApoLoss {
    /// `−log σ(β h)`
    #[default]
    Dpo,
    /// `(h − (P − ½)/β)²`
    Ipo,
    /// SPPO's soft form, with win rates within the group.
    Sppo,
}

impl Default for Apo {
    fn default() -> Self {
        Self {
            loss: ApoLoss::Dpo,
            beta: 0.1,
            alpha: 0.3,
            steps_per_iteration: 10,
            max_loss_increase: 0.1,
            judge_temperature: 0.0,
            ties: Ties::FirstWins,
        }
    }
}

impl Apo {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Pairwise<Self>> {
        pair_loss::positive("apo", "beta", self.beta)?;
        let numbers = [("max_loss_increase", self.max_loss_increase), ("judge_temperature", self.judge_temperature)];
        not_negative("apo", &numbers)?;
        if !(0.0..1.0).contains(&self.alpha) {
            return Err(Error::input(format!(
                "algorithm.apo.alpha must be at least 0 and below 1 (0.3 is the paper's), but is {}",
                self.alpha
            )));
        }
        if self.steps_per_iteration == 0 {
            return Err(Error::input("algorithm.apo.steps_per_iteration must be at least 1, but is 0"));
        }
        Ok(Pairwise(self))
    }
}

impl PairLoss for Apo {
    fn needs(&self) -> Needs {
        let kept = |role, consults| Companion { role, start: Start::Policy, renewal: Renewal::ByMethod, consults };
        Needs {
            companions: vec![kept(Role::Reference, Consults::Loss), kept(Role::IterationEnd, Consults::Nothing)],
            ..pair_loss::sampled_needs(2, Compares::Group, None)
        }
    }

    fn check(&self, run: &RunShape) -> Result<()> {
        if self.alpha > 0.0 && run.gates {
            return Err(Error::input(
                "algorithm.apo extrapolates the adapter's product, in which SoRA's gates would be lost; use [model.adapter.lora], or alpha = 0",
            ));
        }
        pair_loss::no_pruning("apo", run)
    }

    fn pairs<'a>(&self, collected: &'a Collected) -> Vec<Pair<'a>> {
        let against = if self.loss == ApoLoss::Sppo { Against::Group } else { Against::Partner };
        self.ties.resolve(pairing::best_and_worst(collected, self.judge_temperature, against))
    }

    fn losses(&self, pairs: &PairBatch, _sums: &mut MetricSums) -> Tensor {
        let h = pairs.logprobs.ratio_margin();
        match self.loss {
            ApoLoss::Dpo => sigmoid(&h, self.beta, LabelNoise::None),
            ApoLoss::Ipo => squared(&h, &pairs.chosen_win_rate, self.beta),
            ApoLoss::Sppo => sppo::losses(pairs, self.beta, SppoForm::Soft),
        }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    /// At the end of an iteration that is not the last: finds the beginning of the next one, which becomes the reference.
    fn end_step(&self, end: &StepEnd<'_>) -> Result<StepChanges> {
        if !end.step.is_multiple_of(self.steps_per_iteration) || end.step >= end.last_step {
            return Ok(StepChanges::default());
        }
        let finished = end.policy.adapter().copy();
        // A product of factors has no gates.
        let gated = finished.layers().any(|layer| layer.gate.is_some());
        let metrics = if gated { Metrics::new() } else { self.extrapolate(&finished, end)? };
        let beginning = end.policy.adapter().copy();
        Ok(StepChanges {
            companions: vec![(Role::Reference, beginning), (Role::IterationEnd, finished)],
            restart_optimizer: true,
            metrics,
        })
    }
}

impl Apo {
    /// Moves the policy beyond `finished`, the end of the iteration; less far while its loss is too much worse for it.
    fn extrapolate(&self, finished: &Adapter, end: &StepEnd<'_>) -> Result<Metrics> {
        let before = end.companions.get(Role::IterationEnd).ok_or_else(|| Error::runtime("no iteration has begun"))?;
        let guarded = self.max_loss_increase > 0.0 && self.alpha > 0.0;
        let loss_before = if guarded { (end.loss)()? } else { 0.0 };
        let rank = finished.layers().map(|layer| layer.a.size()[0]).max().unwrap_or_default();
        let mut metrics = Metrics::new();
        for halvings in 0..=HALVINGS {
            let alpha = self.alpha * 0.5f64.powi(halvings as i32);
            let (beginning, error) = finished.extrapolated(before, alpha)?.compressed(rank)?;
            end.policy.adapter().overwrite(&beginning)?;
            let increase = if guarded { (end.loss)()? - loss_before } else { 0.0 };
            metrics.set("apo/alpha", alpha);
            metrics.set("apo/truncation_error", error);
            if guarded {
                metrics.set("apo/loss_increase", increase);
            }
            if increase <= self.max_loss_increase || !guarded {
                return Ok(metrics);
            }
        }
        let (beginning, error) = finished.compressed(rank)?;
        end.policy.adapter().overwrite(&beginning)?;
        metrics.set("apo/alpha", 0.0);
        metrics.set("apo/truncation_error", error);
        Ok(metrics)
    }
}
