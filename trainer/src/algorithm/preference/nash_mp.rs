//! Nash-MP for networks (Tiapkin et al. 2025, arXiv 2505.19731): the policy that no other is preferred to.
//!
//! The exact method takes two proximal steps per iteration (see the [laboratory](crate::lab)). A network takes gradient
//! steps of self-play instead, with KL penalties towards the base model and a slowly moving average (EMA) of its own
//! past:
//!
//! ```text
//! p   = P(y ≻ y′),   y, y′ ∼ π                                         the judge's; of both samples one learns from the other
//! k_t = Σ_{s≥t} β log(π / π_ref)(y_s) + (β/η) log(π / π̄)(y_s)         penalty of a sample from its token t on
//! b_t = mean of k_t over the other samples of the batch                zero for those that end before t
//! adv = p − ½ − (k_t − b_t)                                            all held
//! ℓ   = −mean Σ_t adv_t · log π(y_t)                                   policy_gradient
//! ℓ   = ( log(π/m)(y) − log(π/m)(y′) − (p − ½)/β′ )²                   contrastive: online IPO inside a proximal scheme
//!       log m = (η log π_ref + log π̄)/(1 + η),   β′ = β (1 + 1/η)
//! π̄   ← (1 − κ) π̄ + κ π                                               after every `ema_every` steps
//! ```
//!
//! The second version of the paper (2026) calls the method Nash Prox: self-play, of which online IPO is one form,
//! inside a proximal-point scheme, `π_{k+1} ≈ argmax_π P_β(π ≻ sg(π)) − (β/η) KL(π ‖ π_k)`, in which the opponent sg(π)
//! is the same policy, held. That is `form = "contrastive"` with `κ = 1`, each `ema_every` steps being an approximate solution of one such problem; κ below 1 moves the
//! average smoothly instead.
//!
//! The penalties of earlier tokens and of other samples do not depend on token t: leaving out the former and
//! subtracting the latter lowers the variance and keeps the expectation. So the two losses have the same gradient in
//! expectation, up to 4/β′. The practical form follows from the method's proximal step, not from the paper's text on
//! it; its choices (the opponent is the current policy, `η = 2β`, `κ = 0.1`) are those that converge in the laboratory.
//! The average is one of the adapter's factors and not of their product; its distance from the policy is reported
//! (`objective/ema_kl`).

use super::pair_loss::{self, PairBatch};
use super::pairing::{self, Candidate};
use crate::algorithm::policy_gradient::surrogate_loss::not_negative;
use crate::algorithm::{Algorithm, Compares, Evidence, Needs, Outputs, RunShape};
use crate::batch::{Batch, SequenceLogprobs, Signal, Signals};
use crate::collected::{Collected, Unit};
use crate::companion::{Companion, Consults, Renewal, Role, Start};
use crate::objective::preference::squared;
use crate::objective::{Aggregation, Denominator, MetricSums, leave_one_out, reward_to_go};
use crate::{Error, Result};
use schema::{GradedGroup, Metrics, Sample};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// `[algorithm.nash_mp]`: Nash-MP for networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NashMp {
    /// Weight β of the KL penalty towards the base model in the game.
    pub beta: f64,
    /// Proximal step size η: the penalty towards the moving average has the weight β/η; convergence is proved up to 2β.
    pub eta: f64,
    /// Rate κ of the moving average: the share of the policy that it takes over at a time.
    pub kappa: f64,
    /// Interval in steps between renewals of the moving average. With `kappa = 1` these are the steps of one proximal
    /// point.
    #[serde(alias = "anchor_every")]
    pub ema_every: u64,
    /// Form of the proximal step: `policy_gradient` or `contrastive`.
    pub form: NashForm,
    /// Temperature of rewards in `P = σ(difference / temperature)`: a difference of this size wins with probability
    /// 0.73. 0: the greater reward wins for certain. Unused with a judge.
    pub judge_temperature: f64,
}

/// Form of the approximate proximal step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NashForm {
    /// Policy gradient.
    #[default]
    PolicyGradient,
    /// Online IPO against the mixed reference.
    Contrastive,
}

impl Default for NashMp {
    fn default() -> Self {
        Self { beta: 0.1, eta: 0.2, kappa: 0.1, ema_every: 1, form: NashForm::PolicyGradient, judge_temperature: 0.0 }
    }
}

impl NashMp {
    /// The settings, if they make sense.
    pub(in crate::algorithm) fn checked(self) -> Result<Self> {
        pair_loss::positive("nash_mp", "beta", self.beta)?;
        pair_loss::positive("nash_mp", "eta", self.eta)?;
        not_negative("nash_mp", &[("judge_temperature", self.judge_temperature)])?;
        if self.ema_every == 0 {
            return Err(Error::input("algorithm.nash_mp.ema_every must be at least 1, but is 0"));
        }
        if !(self.kappa > 0.0 && self.kappa <= 1.0) {
            return Err(Error::input(format!(
                "algorithm.nash_mp.kappa must be above 0 and at most 1 (0.1 is usual), but is {}",
                self.kappa
            )));
        }
        Ok(self)
    }

    /// Returns the win rate of each graded sample of a group against every other one, minus ½.
    fn wins(&self, group: &GradedGroup) -> Vec<Option<f64>> {
        let candidates = pairing::candidates(group);
        let mut wins = vec![None; group.group().samples.len()];
        for own in &candidates {
            let game = |other: &Candidate| Some(pairing::beats(group, *own, *other, self.judge_temperature)? - 0.5);
            let games = candidates.iter().filter(|other| other.0 != own.0).filter_map(game);
            wins[own.0] = pairing::mean(&games.collect::<Vec<_>>());
        }
        wins
    }

    /// Returns the penalty of a sample from each of its tokens on, `[token]`.
    fn payments(&self, sample: &Sample, logprobs: &SequenceLogprobs) -> Vec<f64> {
        let ratios = logprobs.log_ratios_to(Role::Reference).into_iter().zip(logprobs.log_ratios_to(Role::Ema));
        let each: Vec<f64> =
            ratios.map(|(reference, ema)| self.beta * reference + self.beta / self.eta * ema).collect();
        reward_to_go(&each, &sample.mask, 1.0)
    }

    /// Computes the advantages of every token: win rate, minus the excess of the penalty over the mean of the other
    /// samples of the batch.
    fn advantages(&self, groups: &[&GradedGroup], logprobs: &[Vec<SequenceLogprobs>]) -> Signals {
        let wins: Vec<Vec<Option<f64>>> = groups.iter().map(|group| self.wins(group)).collect();
        let samples = groups.iter().flat_map(|group| &group.group().samples).zip(logprobs.iter().flatten());
        let paid: Vec<Option<Vec<f64>>> = wins
            .iter()
            .flatten()
            .zip(samples)
            .map(|(wins, (sample, logprobs))| wins.map(|_| self.payments(sample, logprobs)))
            .collect();
        let longest = paid.iter().flatten().map(Vec::len).max().unwrap_or_default();
        let from = |paid: &Vec<f64>, token: usize| paid.get(token).copied().unwrap_or_default();
        let above: Vec<Vec<Option<f64>>> = (0..longest)
            .map(|token| paid.iter().map(|paid| paid.as_ref().map(|paid| from(paid, token))).collect::<Vec<_>>())
            .map(|paid| leave_one_out(&paid))
            .collect();
        let mut indices = 0..paid.len();
        let mut signal = |wins: &Option<f64>| {
            let index = indices.next()?;
            let (wins, paid) = (*wins).zip(paid[index].as_ref())?;
            // NaN must not look like a sample with the mean penalty.
            let advantage = |above: &Vec<Option<f64>>| (wins - above[index].unwrap_or(f64::NAN)) as f32;
            let advantages = above[..paid.len()].iter().map(advantage).collect();
            Some(Signal::TokenAdvantages { advantages, returns: Vec::new() })
        };
        wins.iter().map(|wins| wins.iter().map(&mut signal).collect()).collect()
    }
}

impl Algorithm for NashMp {
    fn needs(&self) -> Needs {
        let compares = match self.form {
            NashForm::Contrastive => Compares::Neighbours,
            NashForm::PolicyGradient => Compares::Group,
        };
        let ema = Companion {
            role: Role::Ema,
            start: Start::Policy,
            renewal: Renewal::Average { share: self.kappa, every: self.ema_every },
            consults: Consults::Signal,
        };
        Needs {
            companions: vec![Companion::reference(Consults::Signal), ema],
            signal_reads_logprobs: true,
            ..pair_loss::sampled_needs(2, compares, None)
        }
    }

    fn check(&self, run: &RunShape) -> Result<()> {
        pair_loss::no_pruning("nash_mp", run)
    }

    fn units<'a>(&self, collected: &'a Collected) -> Vec<Unit<'a>> {
        match self.form {
            NashForm::Contrastive => {
                pairing::neighbours(collected, self.judge_temperature).into_iter().map(Unit::Pair).collect()
            }
            NashForm::PolicyGradient => collected.units(),
        }
    }

    fn signals(&self, evidence: &Evidence<'_>, metrics: &mut Metrics) -> Signals {
        let Some(logprobs) = evidence.logprobs else { return Vec::new() };
        let mean = |role| {
            let count = logprobs.iter().flatten().count().max(1) as f64;
            let of_sequence = |it: &SequenceLogprobs| it.log_ratios_to(role).iter().sum::<f64>();
            logprobs.iter().flatten().map(of_sequence).sum::<f64>() / count
        };
        metrics.set("objective/kl", mean(Role::Reference));
        let ema_kl = mean(Role::Ema);
        metrics.set("objective/ema_kl", ema_kl);
        // The name of older programs.
        metrics.set("objective/anchor_kl", ema_kl);
        match self.form {
            NashForm::Contrastive => pair_loss::signals(evidence),
            NashForm::PolicyGradient => self.advantages(&evidence.groups(), logprobs),
        }
    }

    fn denominator(&self, trained_per_sequence: &[i64]) -> Denominator {
        match self.form {
            NashForm::Contrastive => pair_loss::denominator(trained_per_sequence),
            NashForm::PolicyGradient => Denominator::of(Aggregation::SequenceMeanTokenSum, trained_per_sequence),
        }
    }

    fn loss(&self, batch: &Batch, outputs: Outputs<'_>, sums: &mut MetricSums) -> Tensor {
        match self.form {
            NashForm::PolicyGradient => {
                batch.denominator.aggregate(&-(outputs.logprobs * batch.signal.advantages()), &batch.rows)
            }
            NashForm::Contrastive => {
                let mixed = batch
                    .logprobs_of(Role::Reference)
                    .zip(batch.logprobs_of(Role::Ema))
                    .map(|(reference, ema)| (reference * self.eta + ema) / (1.0 + self.eta));
                let pairs = PairBatch::new(batch, outputs, mixed.as_ref());
                let beta = self.beta * (1.0 + 1.0 / self.eta);
                let losses = squared(&pairs.logprobs.ratio_margin(), &pairs.chosen_win_rate, beta);
                pairs.share(&losses, pairs.rewards(beta), batch, sums)
            }
        }
    }
}

#[cfg(test)]
mod tests;
