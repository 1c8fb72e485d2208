//! Exploratory preference optimisation (Xie et al. 2024, XPO, arXiv 2405.21046): online DPO that looks around.
//!
//! Each pair is a sample of the policy and one of the reference, and the reference's sample is made a little less likely,
//! whoever won: an optimism bonus for what the reference would not have written.
//!
//! ```text
//! ℓ = −log σ(β h) + α log π(y_ref),   h = log(π / π_ref)(better) − log(π / π_ref)(worse),   y ∼ π, y_ref ∼ π_ref
//! ```

use super::policy_gradient::not_negative;
use super::preference::{self, Pairs, Ties};
use super::{Algorithm, Compares, Credit, Credits, Evidence, Needs, Opponent, Outputs};
use crate::Result;
use crate::batch::Batch;
use crate::objective::preference::{LabelNoise, sigmoid};
use crate::objective::{Denominator, MetricSums};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.xpo]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Xpo {
    /// How strongly the policy is held to the base model.
    pub beta: f64,
    /// Weight of the bonus.
    pub alpha: f64,
    /// What becomes of a pair whose rewards are equal; the policy's sample is the first one.
    pub ties: Ties,
}

impl Default for Xpo {
    fn default() -> Self {
        Self { beta: 0.1, alpha: 1e-5, ties: Ties::FirstWins }
    }
}

impl Xpo {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        preference::positive("xpo", "beta", self.beta)?;
        not_negative("xpo", &[("alpha", self.alpha)])?;
        Ok(self)
    }
}

impl Algorithm for Xpo {
    fn needs(&self) -> Needs {
        Needs { opponent: Some(Opponent::Reference), ..preference::drawn_needs(1, Compares::Counterparts) }
    }

    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        Some(self.ties.resolve(preference::pairs_with_opponents(groups, 0.0)))
    }

    /// As of any pair; and in the place of a return, whether it is the reference's sample.
    fn credit(&self, evidence: &Evidence<'_>, _metrics: &mut Metrics) -> Credits {
        let mut credits = preference::credits(evidence);
        for (credits, group) in credits.iter_mut().zip(evidence.groups) {
            let drawn_by = preference::drawn_by_reference(group);
            for ((credit, sample), by_reference) in credits.iter_mut().zip(&group.group().samples).zip(drawn_by) {
                if let Some(Credit::Whole(advantage)) = credit {
                    let tokens = |value: f64| vec![value as f32; sample.len()];
                    let (advantages, returns) = (tokens(*advantage), tokens(f64::from(by_reference)));
                    *credit = Some(Credit::Tokens { advantages, returns });
                }
            }
        }
        credits
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        preference::denominator(trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, tally: &mut MetricSums) -> Tensor {
        let pairs = Pairs::new(batch, outputs);
        let preferred = sigmoid(&pairs.scores.ratio_margin(), self.beta, LabelNoise::None);
        let losses = match &batch.returns {
            Some(by_reference) => {
                let (chosen, rejected) = preference::sides(&batch.rows.sequence_mean(by_reference));
                let bonus = &pairs.scores.chosen * chosen + &pairs.scores.rejected * rejected;
                preferred + bonus * self.alpha
            }
            None => preferred,
        };
        pairs.share(&losses, pairs.rewards(self.beta), batch, tally)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, build};
    use super::*;
    use crate::testing::{Losses, scored};

    #[test]
    fn the_references_sample_becomes_less_likely() {
        // The pair of the objective's tests; the reference's sample is the rejected one.
        let spread = |chosen: f64, rejected: f64| [vec![chosen / 10.0; 10], vec![rejected / 12.0; 12]].concat();
        let losses = Losses {
            reference: Some(Tensor::from_slice(&spread(-13.0, -14.5))),
            returns: Some(Tensor::from_slice(&[vec![0.0; 10], vec![1.0; 12]].concat())),
            ..Losses::at(&[10, 12], &[vec![0.5; 10], vec![-0.5; 12]].concat(), &spread(-12.0, -15.0))
        };
        let loss = losses.of(&Config::Xpo(Xpo::default()));
        assert!((loss.value - 0.620_807_047_8).abs() < 1e-9, "{loss:?}");
        assert!((loss.gradient[0] + 0.046_257_015_5).abs() < 1e-9, "{loss:?}");
        assert!((loss.gradient[10] - 0.046_267_015_5).abs() < 1e-9, "{loss:?}");
    }

    #[test]
    fn a_pair_is_one_sample_of_each_policy() {
        let algorithm = build(&Config::Xpo(Xpo::default())).unwrap();
        // Own rewards 1, 2, 0 against 1, 0, 3: a draw, a win, a defeat.
        let groups = algorithm.arrange(&scored(&[&[1.0, 2.0, 0.0], &[1.0, 0.0, 3.0]])).unwrap();
        let rates: Vec<_> = groups.iter().map(GradedGroup::rewards).collect();
        assert_eq!(rates, [[Some(0.5), Some(0.5)], [Some(1.0), Some(0.0)], [Some(1.0), Some(0.0)]]);
        let evidence = Evidence { groups: &groups, scores: None };
        let by_reference =
            algorithm.credit(&evidence, &mut Metrics::new()).into_iter().flatten().map(|credit| match credit {
                Some(Credit::Tokens { returns, .. }) => returns[0],
                _ => f32::NAN,
            });
        assert_eq!(by_reference.collect::<Vec<_>>(), [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        let skip = build(&Config::Xpo(Xpo { ties: Ties::Skip, ..Xpo::default() })).unwrap();
        assert_eq!(skip.arrange(&scored(&[&[1.0, 2.0], &[1.0, 0.0]])).unwrap().len(), 1);
    }
}
