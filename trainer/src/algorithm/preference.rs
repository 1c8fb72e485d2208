//! What the methods that learn from pairs share: which samples are a pair, its scores, its metrics.
//!
//! A pair is a group of two samples, the chosen one before the rejected one; both read their prompt once, in one forward
//! pass, and are never parted. What a sample carries to the loss as its advantage is its win rate less one half: 0.5 and
//! −0.5 where a data set or a certain judge has spoken. The metrics have TRL's names:
//!
//! | metric | mean over pairs of |
//! |---|---|
//! | `rewards/chosen`, `rewards/rejected` | the implicit reward, `β log(π / π_ref)`; without a reference `β log π` |
//! | `rewards/margins` | their difference |
//! | `rewards/accuracies` | whether it is above zero |
//! | `logps/chosen`, `logps/rejected` | `log π` of the whole completion |

use super::policy_gradient::not_negative;
use super::sft::long_enough;
use super::{Credit, Credits, Evidence, Needs, Outputs, Samples, ZeroCredit};
use crate::batch::Batch;
use crate::objective::preference::PairScores;
use crate::objective::{Aggregation, Denominator, Tally};
use crate::{Error, Result};
use schema::{Group, Part, PartStatus, Sample, ScoredGroup, Verdict};
use tch::{Kind, Tensor};

/// What a method needs that learns from the pairs of a data set.
pub(super) fn needs(max_length: usize) -> Needs {
    Needs {
        samples: Samples::Pairs,
        max_length,
        reference: true,
        zero_credit: ZeroCredit::Compute,
        whole_groups: true,
        ..Needs::default()
    }
}

/// What a method needs whose pairs the policy draws.
pub(super) fn drawn_needs() -> Needs {
    Needs { samples: Samples::Drawn { group_size: 2 }, ..needs(Needs::default().max_length) }
}

/// Refuses a limit that no pair can keep to, and a beta that would make every pair alike.
pub(super) fn checked(algorithm: &str, max_length: usize, beta: f64) -> Result<()> {
    long_enough(algorithm, max_length)?;
    positive(algorithm, "beta", beta)
}

/// Refuses a number that is not above zero.
pub(super) fn positive(algorithm: &str, key: &str, value: f64) -> Result<()> {
    not_negative(algorithm, &[(key, value)])?;
    match value {
        0.0 => Err(Error::input(format!("algorithm.{algorithm}.{key} must be above 0, but is 0"))),
        _ => Ok(()),
    }
}

/// The win rate less one half of both samples of each pair. A group is no pair if either sample has no token to train
/// on or is unjudged; further samples of a group belong to no pair.
pub(super) fn credits(evidence: &Evidence<'_>) -> Credits {
    let group = |group: &ScoredGroup| {
        let rewards = group.rewards();
        let samples = &group.group().samples;
        let whole = samples.len() >= 2 && (0..2).all(|side| rewards[side].is_some() && has_tokens(&samples[side]));
        let credit = |(place, win_rate): (usize, Option<f32>)| {
            let win_rate = win_rate.filter(|_| whole && place < 2)?;
            Some(Credit::Whole(f64::from(win_rate.clamp(0.0, 1.0)) - 0.5))
        };
        rewards.into_iter().enumerate().map(credit).collect()
    };
    evidence.groups.iter().map(group).collect()
}

fn has_tokens(sample: &Sample) -> bool {
    sample.mask.iter().any(|trained| *trained)
}

/// The number of pairs.
pub(super) fn denominator(trained_per_sequence: &[i64]) -> Denominator {
    let pairs = trained_per_sequence.len() as f64 / 2.0;
    Denominator::of(Aggregation::TokenSumOverConstant(pairs), trained_per_sequence)
}

/// The pairs of a batch.
pub(super) struct Pairs {
    pub(super) scores: PairScores,
    /// `[pair]`: the win rates of the chosen ones.
    pub(super) chosen_win_rate: Tensor,
    /// `[pair]`: the win rates of the rejected ones.
    pub(super) rejected_win_rate: Tensor,
}

impl Pairs {
    /// Sums over the sequences of each pair; the reference is zero where the batch has none.
    pub(super) fn new(batch: &Batch, outputs: Outputs<'_>) -> Self {
        Self::with_reference(batch, outputs, batch.reference_logprobs.as_ref())
    }

    /// The same beside another reference, `[token]`.
    pub(super) fn with_reference(batch: &Batch, outputs: Outputs<'_>, reference: Option<&Tensor>) -> Self {
        let rows = &batch.rows;
        let (chosen, rejected) = sides(&rows.sequence_sum(outputs.logprobs));
        let (chosen_reference, rejected_reference) = match reference {
            Some(reference) => sides(&rows.sequence_sum(reference)),
            None => (chosen.zeros_like(), rejected.zeros_like()),
        };
        let (chosen_tokens, rejected_tokens) = sides(&rows.lengths(outputs.logprobs.kind()));
        let (chosen_win_rate, rejected_win_rate) = sides(&(rows.sequence_mean(&batch.advantages) + 0.5));
        let scores =
            PairScores { chosen, rejected, chosen_reference, rejected_reference, chosen_tokens, rejected_tokens };
        Self { scores, chosen_win_rate, rejected_win_rate }
    }

    /// The mean of a loss per pair over all pairs of the optimizer batch: this batch's share of it, and the metrics.
    /// `rewards` gives the implicit rewards of both sides, each `[pair]`.
    pub(super) fn share(
        &self,
        losses: &Tensor,
        (chosen, rejected): (Tensor, Tensor),
        batch: &Batch,
        tally: &mut Tally,
    ) -> Tensor {
        let pairs = losses.numel() as f64;
        let mut add = |name: &str, values: &Tensor| tally.add(name, &values.sum(Kind::Double), pairs);
        add("rewards/chosen", &chosen);
        add("rewards/rejected", &rejected);
        add("rewards/margins", &(&chosen - &rejected));
        add("rewards/accuracies", &chosen.gt_tensor(&rejected));
        add("logps/chosen", &self.scores.chosen);
        add("logps/rejected", &self.scores.rejected);
        losses.sum(None) / batch.denominator.divisor().max(1e-9)
    }

    /// `β log(π / π_ref)` of both sides, each `[pair]`.
    pub(super) fn rewards(&self, beta: f64) -> (Tensor, Tensor) {
        (self.scores.chosen_ratio() * beta, self.scores.rejected_ratio() * beta)
    }
}

/// Every first and every second of one number per sequence.
fn sides(per_sequence: &Tensor) -> (Tensor, Tensor) {
    let pairs = per_sequence.reshape([-1, 2]);
    (pairs.select(1, 0), pairs.select(1, 1))
}

/// Whom a sample's win rate is against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The other one of its pair.
    Partner,
    /// Every sample of its group, itself included, as SPPO's code does.
    Group,
}

/// The probability that the sample with the first reward beats the other: `σ(difference / temperature)`, as a
/// Bradley-Terry reward model means it, or certainty at temperature 0, equal rewards being a draw.
pub(super) fn win_probability(reward: f64, other: f64, temperature: f64) -> f64 {
    let difference = reward - other;
    if temperature > 0.0 {
        return 1.0 / (1.0 + (-difference / temperature).exp());
    }
    if difference == 0.0 { 0.5 } else { f64::from(difference > 0.0) }
}

/// The best and the worst judged sample of each group as a pair, whose rewards are win rates. The first of equals is
/// the better one. A group in which fewer than two samples are judged gives none.
pub(super) fn best_and_worst(groups: &[ScoredGroup], temperature: f64, against: Against) -> Vec<ScoredGroup> {
    groups.iter().filter_map(|group| best_and_worst_of(group, temperature, against)).collect()
}

fn best_and_worst_of(group: &ScoredGroup, temperature: f64, against: Against) -> Option<ScoredGroup> {
    let judged = judged(group);
    let (first, rest) = judged.split_first()?;
    let best = rest.iter().fold(first, |best, next| if next.1 > best.1 { next } else { best });
    let others = judged.iter().filter(|other| other.0 != best.0);
    let worst = others.reduce(|worst, next| if next.1 <= worst.1 { next } else { worst })?;
    let rate = |own: f64, partner: f64| match against {
        Against::Partner => win_probability(own, partner, temperature),
        Against::Group => {
            let sum: f64 = judged.iter().map(|other| win_probability(own, other.1, temperature)).sum();
            sum / judged.len() as f64
        }
    };
    Some(pair(group.group(), [(best.0, rate(best.1, worst.1)), (worst.0, rate(worst.1, best.1))]))
}

/// The first and the second judged sample of each group as a pair, the third and the fourth, and so on, the better one
/// first, whose rewards are win rates against each other. No sample is in two pairs, and none is chosen for its reward.
pub(super) fn neighbours(groups: &[ScoredGroup], temperature: f64) -> Vec<ScoredGroup> {
    let of_group = |group: &ScoredGroup| -> Vec<ScoredGroup> {
        let one = |(a, b): ((usize, f64), (usize, f64))| {
            let (better, worse) = if b.1 > a.1 { (b, a) } else { (a, b) };
            let rate = win_probability(better.1, worse.1, temperature);
            pair(group.group(), [(better.0, rate), (worse.0, 1.0 - rate)])
        };
        judged(group).chunks_exact(2).map(|two| one((two[0], two[1]))).collect()
    };
    groups.iter().flat_map(of_group).collect()
}

/// The places and rewards of the samples that can be one side of a pair.
fn judged(group: &ScoredGroup) -> Vec<(usize, f64)> {
    let useful = group.judged().filter(|(_, sample, _)| has_tokens(sample));
    useful.map(|(place, _, reward)| (place, f64::from(reward))).collect()
}

/// Two samples of a group with their win rates.
fn pair(group: &Group, sides: [(usize, f64); 2]) -> ScoredGroup {
    let verdict = |win_rate: f64| Verdict {
        parts: vec![Part {
            name: "win_rate".into(),
            version: "1".into(),
            weight: 1.0,
            value: Some(win_rate as f32),
            status: PartStatus::Judged,
        }],
    };
    let pair = Group {
        prompt: group.prompt.clone(),
        prompt_ids: group.prompt_ids.clone(),
        policy: group.policy.clone(),
        settings: group.settings.clone(),
        samples: sides.iter().map(|(place, _)| group.samples[*place].clone()).collect(),
    };
    let verdicts = sides.iter().map(|(_, win_rate)| verdict(*win_rate)).collect();
    ScoredGroup::new(pair, verdicts).expect("a pair has two verdicts")
}

#[cfg(test)]
mod tests;
