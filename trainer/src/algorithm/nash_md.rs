//! Nash-MD by policy gradient (Munos et al. 2024, arXiv 2312.00886): against a mixture of oneself and the reference.
//!
//! The opponent draws from the geometric mixture of policy and reference, token by token; the policy learns from how its
//! own samples fare:
//!
//! ```text
//! y ∼ π,   y′ ∼ π^(1−c) π_ref^c,   p = P(y ≻ y′),   k_t = log(π / π_ref)(y_t)           all held but log π
//! paper           ℓ = −[p − ½ − β Σ_s k_s] Σ_t log π(y_t)                              (13)
//! reward_to_go    ℓ = −Σ_t [p − ½ − β Σ_{s≥t} k_s] log π(y_t)
//! library         ℓ = −Σ_t [p − ½ − β k_t] log π(y_t)
//! ```
//!
//! The first two have the same expectation, the second less variance. The third is what TRL's trainer computed: each
//! token pays for its own log-ratio alone, which biases the KL gradient. The paper found c between 0.125 and 0.375 best;
//! TRL's default was 0.5. Exact steps on tables are in the [laboratory](crate::lab::Rule::NashMd).

use super::family;
use super::policy_gradient::not_negative;
use super::preference;
use super::{Algorithm, Compares, Credit, Credits, Evidence, Needs, Opponent, Outputs, SampleScores};
use crate::batch::Batch;
use crate::objective::{Aggregation, Denominator, MetricSums};
use crate::{Error, Result};
use schema::{GradedGroup, Metrics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.nash_md]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NashMd {
    /// Weight of the KL penalty towards the base model in the game; the paper's τ.
    #[serde(alias = "tau")]
    pub beta: f64,
    /// The weight of the base model in the opponent, from 0, self-play, to 1, the base model itself.
    #[serde(alias = "mixture_coef")]
    pub mixture_coefficient: f64,
    /// What a token's advantage is.
    pub form: NashMdForm,
    /// A difference of rewards of this size wins with σ(1) = 73 %; 0: the greater reward wins for certain.
    pub judge_temperature: f64,
}

/// What a token's advantage is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NashMdForm {
    /// That of the whole sample.
    #[default]
    Paper,
    /// The penalty of this and later tokens.
    RewardToGo,
    /// The penalty of this token alone, as in TRL.
    #[serde(alias = "trl")]
    Library,
}

impl Default for NashMd {
    fn default() -> Self {
        Self { beta: 0.1, mixture_coefficient: 0.125, form: NashMdForm::Paper, judge_temperature: 0.0 }
    }
}

impl NashMd {
    /// The settings, if they make sense.
    pub(super) fn checked(self) -> Result<Self> {
        not_negative("nash_md", &[("beta", self.beta), ("judge_temperature", self.judge_temperature)])?;
        if !(0.0..=1.0).contains(&self.mixture_coefficient) {
            return Err(Error::input(format!(
                "algorithm.nash_md.mixture_coefficient must be from 0 to 1 (0.125 to 0.375 are the paper's), but is {}",
                self.mixture_coefficient
            )));
        }
        Ok(self)
    }

    /// The advantages of a sample's tokens.
    fn credit_of(&self, win_rate: f64, score: &SampleScores) -> Credit {
        let ratios = family::k1(score);
        let whole: f64 = ratios.iter().sum();
        let mut rest = whole;
        let advantage = |ratio: &f64| {
            let penalty = match self.form {
                NashMdForm::Paper => whole,
                NashMdForm::RewardToGo => rest,
                NashMdForm::Library => *ratio,
            };
            rest -= ratio;
            (win_rate - 0.5 - self.beta * penalty) as f32
        };
        Credit::Tokens { advantages: ratios.iter().map(advantage).collect(), returns: Vec::new() }
    }
}

impl Algorithm for NashMd {
    fn needs(&self) -> Needs {
        Needs {
            opponent: Some(Opponent::Mixture { reference: self.mixture_coefficient }),
            scored_credit: true,
            whole_groups: false,
            ..preference::drawn_needs(1, Compares::Opponents)
        }
    }

    fn arrange(&self, groups: &[GradedGroup]) -> Option<Vec<GradedGroup>> {
        Some(preference::against_opponents(groups, self.judge_temperature))
    }

    /// Metrics have TRL's names: `rewards/probabilities`, `objective/kl`.
    fn credit(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Credits {
        let Some(scores) = evidence.scores else { return Vec::new() };
        let rates: Vec<f64> = evidence.groups.iter().flat_map(GradedGroup::rewards).flatten().map(f64::from).collect();
        metrics.set("rewards/probabilities", rates.iter().sum::<f64>() / rates.len().max(1) as f64);
        let every = || scores.iter().flatten();
        let kl: f64 = every().map(|score| family::k1(score).iter().sum::<f64>()).sum();
        metrics.set("objective/kl", kl / every().count().max(1) as f64);
        let group = |(group, scores): (&GradedGroup, &Vec<SampleScores>)| {
            let credit = |(rate, score): (Option<f32>, &SampleScores)| Some(self.credit_of(f64::from(rate?), score));
            group.rewards().into_iter().zip(scores).map(credit).collect()
        };
        evidence.groups.iter().zip(scores).map(group).collect()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(Aggregation::SequenceMeanTokenSum, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, _tally: &mut MetricSums) -> Tensor {
        batch.denominator.aggregate(&-(outputs.logprobs * &batch.advantages), &batch.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, build};
    use super::*;
    use crate::testing::{Losses, scored};

    /// The advantages of one sample with log-probabilities −1, −0.5, −2 beside −1.2, −0.7, −1.5, and a win rate of 0.7.
    fn advantages(form: NashMdForm) -> Vec<f64> {
        let score = SampleScores {
            logprobs: vec![-1.0, -0.5, -2.0],
            reference: vec![-1.2, -0.7, -1.5],
            ..SampleScores::default()
        };
        let Credit::Tokens { advantages, .. } = NashMd { form, ..NashMd::default() }.credit_of(0.7, &score) else {
            panic!("credit is per token")
        };
        advantages.into_iter().map(f64::from).collect()
    }

    #[test]
    fn the_three_forms_are_those_worked_out() {
        for (form, expected) in [
            (NashMdForm::Paper, [0.21, 0.21, 0.21]),
            (NashMdForm::RewardToGo, [0.21, 0.23, 0.25]),
            (NashMdForm::Library, [0.18, 0.18, 0.25]),
        ] {
            let found = advantages(form);
            assert!(found.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-6), "{form:?}: {found:?}");
        }
        // TRL's loss: 0.1 · (0.2 · −1 + 0.2 · −0.5 + −0.5 · −2) − 0.2 · −3.5 = 0.77.
        let losses = Losses::at(&[3], &advantages(NashMdForm::Library), &[-1.0, -0.5, -2.0]);
        let loss = losses.of(&Config::NashMd(NashMd::default()));
        assert!((loss.value - 0.77).abs() < 1e-6, "{loss:?}");
        assert!(loss.gradient.iter().zip([-0.18, -0.18, -0.25]).all(|(g, e)| (g - e).abs() < 1e-6), "{loss:?}");
    }

    #[test]
    fn samples_play_against_those_of_the_opponent_alone() {
        let algorithm = build(&Config::NashMd(NashMd::default())).unwrap();
        // Own rewards 2 and 1 against 1, 0 and one unjudged.
        let groups = algorithm.arrange(&scored(&[&[2.0, 1.0], &[1.0, 0.0, f32::NAN]])).unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].rewards(), [Some(1.0), Some(0.75)]);
        let nobody = algorithm.arrange(&scored(&[&[2.0, f32::NAN], &[f32::NAN]])).unwrap();
        assert_eq!(nobody[0].rewards(), [None, None]);
    }
}
