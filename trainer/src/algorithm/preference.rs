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
use serde::{Deserialize, Serialize};
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

/// What a method needs whose pairs the policy draws, in groups of at least this size.
pub(super) fn drawn_needs(group_size: usize) -> Needs {
    Needs { samples: Samples::Drawn { group_size }, ..needs(Needs::default().max_length) }
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
pub(super) fn sides(per_sequence: &Tensor) -> (Tensor, Tensor) {
    let pairs = per_sequence.reshape([-1, 2]);
    (pairs.select(1, 0), pairs.select(1, 1))
}

/// What becomes of a pair whose rewards are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// The sample that was drawn first counts as the better one, as in TRL.
    #[default]
    FirstWins,
    /// It is not learned from.
    Skip,
}

impl Ties {
    /// The pairs to learn from.
    pub(super) fn resolve(self, mut pairs: Vec<ScoredGroup>) -> Vec<ScoredGroup> {
        if self == Self::Skip {
            pairs.retain(|pair| pair.rewards()[0] != pair.rewards()[1]);
        }
        pairs
    }
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

/// Every two groups, the policy's and its opponent's on one prompt, become the policy's, whose rewards are the win rates
/// of its samples against all judged ones of the opponent.
pub(super) fn against_opponents(groups: &[ScoredGroup], temperature: f64) -> Vec<ScoredGroup> {
    let one = |two: &[ScoredGroup]| {
        let others = judged(&two[1]);
        let win_rate = |reward: Option<f32>| {
            let own = f64::from(reward.filter(|_| !others.is_empty())?);
            let wins: f64 = others.iter().map(|other| win_probability(own, other.1, temperature)).sum();
            Some(wins / others.len() as f64)
        };
        let verdicts = two[0].rewards().into_iter().map(|reward| verdict(win_rate(reward))).collect();
        ScoredGroup::new(two[0].group().clone(), verdicts).ok()
    };
    groups.chunks_exact(2).filter_map(one).collect()
}

/// Of every two groups, the policy's and its opponent's on one prompt, the n-th sample of one and of the other are a
/// pair, the better one first and the policy's first where they are equal. [`drawn_by_reference`] tells them apart.
pub(super) fn pairs_with_opponents(groups: &[ScoredGroup], temperature: f64) -> Vec<ScoredGroup> {
    let one = |two: &[ScoredGroup]| -> Vec<ScoredGroup> {
        let both = judged(&two[0]).into_iter().zip(judged(&two[1]));
        both.map(|(own, other)| {
            let mut joint = two[0].group().clone();
            joint.samples = vec![two[0].group().samples[own.0].clone(), two[1].group().samples[other.0].clone()];
            let wins = win_probability(own.1, other.1, temperature);
            let own_first = own.1 >= other.1;
            let sides = if own_first { [(0, wins), (1, 1.0 - wins)] } else { [(1, 1.0 - wins), (0, wins)] };
            let pair = pair(&joint, sides);
            let mut verdicts = pair.verdicts().to_vec();
            let mark = Part { name: BY_REFERENCE.into(), weight: 0.0, ..verdicts[0].parts[0].clone() };
            verdicts[usize::from(own_first)].parts.push(mark);
            ScoredGroup::new(pair.group().clone(), verdicts).expect("a pair has two verdicts")
        })
        .collect()
    };
    groups.chunks_exact(2).flat_map(one).collect()
}

/// The weightless part of a verdict on a sample that the reference drew.
const BY_REFERENCE: &str = "by_reference";

/// Whether the reference drew each sample of a pair.
pub(super) fn drawn_by_reference(pair: &ScoredGroup) -> impl Iterator<Item = bool> {
    pair.verdicts().iter().map(|verdict| verdict.parts.iter().any(|part| part.name == BY_REFERENCE))
}

/// The places and rewards of the samples that can be one side of a pair.
fn judged(group: &ScoredGroup) -> Vec<(usize, f64)> {
    let useful = group.judged().filter(|(_, sample, _)| has_tokens(sample));
    useful.map(|(place, _, reward)| (place, f64::from(reward))).collect()
}

/// Two samples of a group with their win rates.
fn pair(group: &Group, sides: [(usize, f64); 2]) -> ScoredGroup {
    let pair = Group {
        prompt: group.prompt.clone(),
        prompt_ids: group.prompt_ids.clone(),
        policy: group.policy.clone(),
        settings: group.settings.clone(),
        samples: sides.iter().map(|(place, _)| group.samples[*place].clone()).collect(),
    };
    let verdicts = sides.iter().map(|(_, win_rate)| verdict(Some(*win_rate))).collect();
    ScoredGroup::new(pair, verdicts).expect("a pair has two verdicts")
}

/// What a win rate is to a sample.
fn verdict(win_rate: Option<f64>) -> Verdict {
    let part = |win_rate: f64| Part {
        name: "win_rate".into(),
        version: "1".into(),
        weight: 1.0,
        value: Some(win_rate as f32),
        status: PartStatus::Judged,
    };
    Verdict { parts: win_rate.map(part).into_iter().collect() }
}

#[cfg(test)]
mod tests;
