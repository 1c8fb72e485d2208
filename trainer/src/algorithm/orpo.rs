//! Odds ratio preference optimisation (Hong et al. 2024, ORPO, arXiv 2403.07691): imitation and preference in one run.
//!
//! ```text
//! ℓ = −a_c − λ log σ(log odds a_c − log odds a_r),   a = log π / L,   log odds a = a − log(1 − e^a)
//! ```
//!
//! The first term imitates the chosen completion, the second one pushes the odds apart; there is no reference and no
//! warm-up run. The likelihood is that of the completion alone; TRL's code also counts the tokens of the prompt.

use super::preference::{self, Pairs};
use super::{Algorithm, Credits, Evidence, Needs, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::{log_odds_ratio, odds_ratio};
use crate::objective::{Denominator, MetricSums};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// `[algorithm.orpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orpo {
    /// Weight of the odds ratio beside the likelihood; the paper's λ.
    #[serde(alias = "lambda")]
    pub beta: f64,
    /// A pair is left out if its prompt and either answer have more tokens than this.
    pub max_length: usize,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { beta: 0.1, max_length: 1024 }
    }
}

impl Orpo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::checked("orpo", self.max_length, self.beta)?;
        Ok(self)
    }
}

impl Algorithm for Orpo {
    fn needs(&self) -> Needs {
        Needs { reference: false, ..preference::needs(self.max_length) }
    }

    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        preference::credits(evidence)
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let (chosen, rejected) = (pairs.scores.chosen_mean(), pairs.scores.rejected_mean());
        let ratio = log_odds_ratio(&chosen.detach(), &rejected.detach());
        let count = chosen.numel() as f64;
        tally.add("log_odds_chosen", &ratio.sum(Kind::Double), count);
        tally.add("nll_loss", &-chosen.sum(Kind::Double), count);
        let losses = odds_ratio(&chosen, &rejected) * self.beta - &chosen;
        pairs.share(&losses, (chosen * self.beta, rejected * self.beta), batch, tally)
    }
}
