//! Accelerated preference optimisation (He, Yuan and Gu 2024, APO, arXiv 2410.06293), and with α = 0 iterative DPO.
//!
//! Training goes in iterations of `steps_per_iteration` steps. In each the policy draws pairs and learns from them with
//! its own beginning, `π_t`, as the reference: a proximal-point step to `p̂_{t+1}`. The next iteration begins a little
//! further on, as Nesterov's method does:
//!
//! ```text
//! π_{t+1} ∝ p̂_{t+1} (p̂_{t+1} / p̂_t)^α          here:  ΔW_{t+1} = ΔŴ_{t+1} + α (ΔŴ_{t+1} − ΔŴ_t)
//! ```
//!
//! which is exact where logits are linear in the parameters, and the paper's own approximation elsewhere. `ΔW` is the
//! product of the adapter's factors; it is extrapolated by concatenation and cut back to the working rank, and what the
//! cut lost is measured (`apo/truncation_error`). The last iteration is not extrapolated, so what a run ends with is a hat
//! iterate, as the paper returns; of a checkpoint between two iterations, too, the hat iterate is what is evaluated and
//! exported. The optimizer begins afresh with each iteration.
//!
//! A guard compares the loss of the extrapolated policy with that of the hat iterate on the iteration's last pairs and
//! halves α, for this time, while it is worse by more than `max_loss_increase`. The laboratory's
//! [recursion](crate::lab::iterations) shows what α gains where rewards are known.

use super::policy_gradient::not_negative;
use super::preference::{self, Against, Pairs, Ties};
use super::sppo::{self, SppoForm};
use super::{Algorithm, Compares, Credits, Evidence, Iterations, Needs, Outputs};
use crate::batch::Batch;
use crate::objective::preference::{LabelNoise, sigmoid, squared};
use crate::objective::{Denominator, MetricSums};
use crate::{Error, Result};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.apo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apo {
    /// What each iteration minimises.
    pub loss: ApoLoss,
    /// How strongly the policy is held to the beginning of the iteration.
    pub beta: f64,
    /// How far the next iteration begins beyond the last one's end, in its steps; 0 is iterative preference
    /// optimisation without acceleration.
    pub alpha: f64,
    /// Training steps of one iteration.
    pub steps_per_iteration: u64,
    /// How much larger the loss of the extrapolated policy may be before α is halved; 0 does not compare them.
    pub max_loss_increase: f64,
    /// A difference of rewards of this size wins with σ(1) = 73 %; 0: the greater reward wins for certain.
    pub judge_temperature: f64,
    /// What becomes of a pair whose rewards are equal.
    pub ties: Ties,
}

/// What an iteration minimises.
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
    pub(super) fn checked(self) -> Result<Self> {
        preference::positive("apo", "beta", self.beta)?;
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
        Ok(self)
    }
}

impl Algorithm for Apo {
    fn needs(&self) -> Needs {
        let iterations = Iterations {
            steps: self.steps_per_iteration,
            alpha: self.alpha,
            max_loss_increase: self.max_loss_increase,
        };
        Needs { iterations: Some(iterations), ..preference::drawn_needs(2, Compares::Group) }
    }

    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        let against = if self.loss == ApoLoss::Sppo { Against::Group } else { Against::Partner };
        Some(self.ties.resolve(preference::best_and_worst(groups, self.judge_temperature, against)))
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let h = pairs.scores.ratio_margin();
        let losses = match self.loss {
            ApoLoss::Dpo => sigmoid(&h, self.beta, LabelNoise::None),
            ApoLoss::Ipo => squared(&h, &pairs.chosen_win_rate, self.beta),
            ApoLoss::Sppo => sppo::losses(&pairs, self.beta, SppoForm::Soft),
        };
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}
