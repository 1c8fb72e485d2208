//! Nash-MD by policy gradient (Munos et al. 2024, arXiv 2312.00886): against a mixture of the policy and the reference.
//!
//! The opponent samples from the geometric mixture of policy and reference, token by token; the policy learns from the
//! win rates of its own samples:
//!
//! ```text
//! y ∼ π,   y′ ∼ π^(1−c) π_ref^c,   p = P(y ≻ y′),   k_t = log(π / π_ref)(y_t)           all held but log π
//! paper           ℓ = −[p − ½ − β Σ_s k_s] Σ_t log π(y_t)                              (13)
//! reward_to_go    ℓ = −Σ_t [p − ½ − β Σ_{s≥t} k_s] log π(y_t)
//! library         ℓ = −Σ_t [p − ½ − β k_t] log π(y_t)
//! ```
//!
//! The first two have the same expectation, the second less variance. The third was computed by TRL's trainer: each
//! token carries its own log-ratio alone, which biases the KL gradient. The paper found c between 0.125 and 0.375 best;
//! TRL's default was 0.5. Exact steps on tables are in the [laboratory](crate::lab::Rule::NashMd).

use super::{pair_loss, pairing};
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Algorithm, Compares, Evidence, Needs, Opponent, Outputs};
use crate::batch::{Batch, SequenceLogprobs, Signal, Signals};
use crate::companion::{Companion, Consults, Role};
use crate::objective::{Aggregation, Denominator, MetricSums};
use crate::{Error, Result};
use schema::Metrics;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.nash_md]`: Nash-MD by policy gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NashMd {
    /// Weight β of the KL penalty towards the base model in the game; the paper's τ.
    #[serde(alias = "tau")]
    pub beta: f64,
    /// Weight c of the base model in the opponent, from 0, self-play, to 1, the base model itself.
    #[serde(alias = "mixture_coef")]
    pub mixture_coefficient: f64,
    /// Form of the token advantages: `paper`, `reward_to_go` or `library`.
    pub form: NashMdForm,
    /// Temperature of rewards in `P = σ(difference / temperature)`: a difference of this size wins with probability
    /// 0.73. 0: the greater reward wins for certain. Unused with a judge.
    pub judge_temperature: f64,
}

/// Form of the token advantages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NashMdForm {
    /// Advantage of the whole sample.
    #[default]
    Paper,
    /// Win rate minus the penalty of this and later tokens.
    RewardToGo,
    /// Win rate minus the penalty of this token alone, as in TRL.
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
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        not_negative("nash_md", &[("beta", self.beta), ("judge_temperature", self.judge_temperature)])?;
        if !(0.0..=1.0).contains(&self.mixture_coefficient) {
            return Err(Error::input(format!(
                "algorithm.nash_md.mixture_coefficient must be from 0 to 1 (0.125 to 0.375 are the paper's), but is {}",
                self.mixture_coefficient
            )));
        }
        Ok(self)
    }

    /// Computes the advantages of a sample's tokens.
    fn signal_of(&self, win_rate: f64, logprobs: &SequenceLogprobs) -> Signal {
        let ratios = logprobs.log_ratios_to(Role::Reference);
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
        Signal::TokenAdvantages { advantages: ratios.iter().map(advantage).collect(), returns: Vec::new() }
    }
}

impl Algorithm for NashMd {
    fn needs(&self) -> Needs {
        let opponent = Opponent::Mixture { reference: self.mixture_coefficient };
        Needs {
            companions: vec![Companion::reference(Consults::Signal)],
            signal_reads_logprobs: true,
            ..pair_loss::sampled_needs(1, Compares::Opponents, Some(opponent))
        }
    }

    /// Metrics have TRL's names: `rewards/probabilities`, `objective/kl`.
    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let Some(logprobs) = evidence.logprobs else { return Vec::new() };
        let duels = evidence.collected.duels();
        let win_rates: Vec<Vec<Option<f32>>> =
            duels.iter().map(|duel| pairing::win_rates(duel, self.judge_temperature)).collect();
        let known: Vec<f64> = win_rates.iter().flatten().flatten().map(|rate| f64::from(*rate)).collect();
        metrics.set("rewards/probabilities", known.iter().sum::<f64>() / known.len().max(1) as f64);
        let every = || logprobs.iter().flatten();
        let kl: f64 = every().map(|it| it.log_ratios_to(Role::Reference).iter().sum::<f64>()).sum();
        metrics.set("objective/kl", kl / every().count().max(1) as f64);
        let of_unit = |(win_rates, logprobs): (Vec<Option<f32>>, &Vec<SequenceLogprobs>)| {
            let signal = |(rate, logprobs): (Option<f32>, _)| Some(self.signal_of(f64::from(rate?), logprobs));
            win_rates.into_iter().zip(logprobs).map(signal).collect()
        };
        win_rates.into_iter().zip(logprobs).map(of_unit).collect()
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        Denominator::of(Aggregation::SequenceMeanTokenSum, trained_per_sequence)
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, _sums: &mut MetricSums) -> Tensor {
        batch.denominator.aggregate(&-(outputs.logprobs * batch.signal.advantages()), &batch.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::Config;
    use crate::testing::{Losses, duel};

    /// The advantages of one sample with log-probabilities −1, −0.5, −2 beside −1.2, −0.7, −1.5, and a win rate of 0.7.
    fn advantages(form: NashMdForm) -> Vec<f64> {
        let logprobs = SequenceLogprobs {
            policy: vec![-1.0, -0.5, -2.0],
            companions: std::iter::once((Role::Reference, vec![-1.2, -0.7, -1.5])).collect(),
            ..SequenceLogprobs::default()
        };
        let signal = NashMd { form, ..NashMd::default() }.signal_of(0.7, &logprobs);
        let Signal::TokenAdvantages { advantages, .. } = signal else { panic!("advantages are per token") };
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
        let logprobs = SequenceLogprobs {
            policy: vec![-1.0, -1.0, -1.0],
            companions: std::iter::once((Role::Reference, vec![-1.3, -0.8, -1.4])).collect(),
            ..SequenceLogprobs::default()
        };
        for (form, expected) in [
            (NashMdForm::Paper, [0.05, 0.05, 0.05]),
            (NashMdForm::RewardToGo, [0.05, 0.11, 0.07]),
            (NashMdForm::Library, [0.09, 0.19, 0.07]),
        ] {
            let signal = NashMd { form, beta: 0.2, ..NashMd::default() }.signal_of(0.65, &logprobs);
            let Signal::TokenAdvantages { advantages: found, .. } = signal else { panic!("advantages are per token") };
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
        let win_rates = |collected: crate::collected::Collected| pairing::win_rates(&collected.duels()[0], 0.0);
        // Own rewards 2 and 1 against 1, 0 and one without a reward.
        assert_eq!(win_rates(duel(&[2.0, 1.0], &[1.0, 0.0, f32::NAN])), [Some(1.0), Some(0.75)]);
        assert_eq!(win_rates(duel(&[2.0, f32::NAN], &[f32::NAN])), [None, None]);
    }
}
