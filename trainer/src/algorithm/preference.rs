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
use super::{Compares, Credit, Credits, Evidence, Needs, Outputs, Samples, ZeroCredit};
use crate::batch::Batch;
use crate::objective::preference::PairScores;
use crate::objective::{Aggregation, Denominator, MetricSums};
use crate::{Error, Result};
use schema::{Grade, GradedGroup, Group, RewardPart, Rival, Sample, Verdict};
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

/// What a method needs whose pairs the policy draws, in groups of at least this size, and which of them it compares.
pub(super) fn drawn_needs(group_size: usize, compares: Compares) -> Needs {
    let samples = Samples::Drawn { group_size };
    Needs { samples, compares: Some(compares), ..needs(Needs::default().max_length) }
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
    let group = |group: &GradedGroup| {
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
        tally: &mut MetricSums,
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
    pub(super) fn resolve(self, mut pairs: Vec<GradedGroup>) -> Vec<GradedGroup> {
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
fn win_probability(reward: f64, other: f64, temperature: f64) -> f64 {
    let difference = reward - other;
    if temperature > 0.0 {
        return 1.0 / (1.0 + (-difference / temperature).exp());
    }
    if difference == 0.0 { 0.5 } else { f64::from(difference > 0.0) }
}

/// A sample that can be one side of a pair: its place in its group, and how good it is by itself.
pub(super) type Entrant = (usize, f64);

/// Whether a judge has compared samples of this group; otherwise their rewards say who is better.
fn is_compared(group: &GradedGroup) -> bool {
    group.verdicts().iter().any(Verdict::is_compared)
}

/// The samples of a group that can be one side of a pair, with their win rates where a judge has compared them, and with
/// their rewards otherwise.
pub(super) fn entrants(group: &GradedGroup) -> Vec<Entrant> {
    let strength: Vec<Option<f64>> = if is_compared(group) {
        group.verdicts().iter().map(Verdict::win_rate).collect()
    } else {
        group.rewards().into_iter().map(|reward| reward.map(f64::from)).collect()
    };
    let places = strength.into_iter().zip(&group.group().samples).enumerate();
    places.filter_map(|(place, (strength, sample))| Some((place, strength.filter(|_| has_tokens(sample))?))).collect()
}

/// The probability that a sample of `group` beats another one of it; `None` where a judge was asked and could not say.
pub(super) fn beats(group: &GradedGroup, own: Entrant, other: Entrant, temperature: f64) -> Option<f64> {
    beats_rival(group, own, other, Rival::Own, temperature)
}

/// The same of another one in its own group or in its opponent's, by `rival`.
fn beats_rival(
    group: &GradedGroup,
    own: Entrant,
    other: Entrant,
    rival: fn(usize) -> Rival,
    temperature: f64,
) -> Option<f64> {
    if is_compared(group) {
        group.verdicts()[own.0].beats(rival(other.0))
    } else {
        Some(win_probability(own.1, other.1, temperature))
    }
}

/// The best and the worst sample of each group as a pair, whose rewards are win rates. The first of equals is the better
/// one. A group in which fewer than two samples are judged gives none, nor does one whose pair the judge could not
/// compare.
pub(super) fn best_and_worst(groups: &[GradedGroup], temperature: f64, against: Against) -> Vec<GradedGroup> {
    groups.iter().filter_map(|group| best_and_worst_of(group, temperature, against)).collect()
}

fn best_and_worst_of(group: &GradedGroup, temperature: f64, against: Against) -> Option<GradedGroup> {
    let entrants = entrants(group);
    let (first, rest) = entrants.split_first()?;
    let best = rest.iter().fold(first, |best, next| if next.1 > best.1 { next } else { best });
    let others = entrants.iter().filter(|other| other.0 != best.0);
    let worst = others.reduce(|worst, next| if next.1 <= worst.1 { next } else { worst })?;
    let rate = |own: Entrant, partner: Entrant| match against {
        Against::Partner => beats(group, own, partner, temperature),
        Against::Group => {
            // A sample draws with itself.
            let rate =
                |other: &Entrant| if other.0 == own.0 { Some(0.5) } else { beats(group, own, *other, temperature) };
            mean(&entrants.iter().filter_map(rate).collect::<Vec<_>>())
        }
    };
    Some(pair(group.group(), [(best.0, rate(*best, *worst)?), (worst.0, rate(*worst, *best)?)]))
}

/// The first and the second judged sample of each group as a pair, the third and the fourth, and so on, the better one
/// first, whose rewards are win rates against each other. No sample is in two pairs, and none is chosen for its reward.
/// Where a judge has compared them, places count and not judged samples.
pub(super) fn neighbours(groups: &[GradedGroup], temperature: f64) -> Vec<GradedGroup> {
    let of_group = |group: &GradedGroup| -> Vec<GradedGroup> {
        let entrants = entrants(group);
        let duos: Vec<(Entrant, Entrant)> = if is_compared(group) {
            let duos = entrants.windows(2).filter(|duo| duo[0].0.is_multiple_of(2) && duo[1].0 == duo[0].0 + 1);
            duos.map(|duo| (duo[0], duo[1])).collect()
        } else {
            entrants.chunks_exact(2).map(|duo| (duo[0], duo[1])).collect()
        };
        let one = |(a, b): (Entrant, Entrant)| {
            let wins = beats(group, a, b, temperature)?;
            let (better, worse, rate) = if wins < 0.5 { (b, a, 1.0 - wins) } else { (a, b, wins) };
            Some(pair(group.group(), [(better.0, rate), (worse.0, 1.0 - rate)]))
        };
        duos.into_iter().filter_map(one).collect()
    };
    groups.iter().flat_map(of_group).collect()
}

/// Every two groups, the policy's and its opponent's on one prompt, become the policy's, whose rewards are the win rates
/// of its samples against all judged ones of the opponent.
pub(super) fn against_opponents(groups: &[GradedGroup], temperature: f64) -> Vec<GradedGroup> {
    let one = |two: &[GradedGroup]| {
        let (own, others) = (entrants(&two[0]), entrants(&two[1]));
        let win_rate = |entrant: Entrant| {
            let rate = |other: &Entrant| beats_rival(&two[0], entrant, *other, Rival::Opponent, temperature);
            mean(&others.iter().filter_map(rate).collect::<Vec<_>>())
        };
        let rate_of = |place| own.iter().find(|entrant| entrant.0 == place).and_then(|entrant| win_rate(*entrant));
        let verdicts = (0..two[0].group().samples.len()).map(|place| verdict(rate_of(place))).collect();
        GradedGroup::new(two[0].group().clone(), verdicts).ok()
    };
    groups.chunks_exact(2).filter_map(one).collect()
}

/// Of every two groups, the policy's and its opponent's on one prompt, the n-th judged sample of one and of the other are
/// a pair, the better one first and the policy's first where they are equal. [`drawn_by_reference`] tells them apart.
pub(super) fn pairs_with_opponents(groups: &[GradedGroup], temperature: f64) -> Vec<GradedGroup> {
    let one = |two: &[GradedGroup]| -> Vec<GradedGroup> {
        let (own, others) = (entrants(&two[0]), entrants(&two[1]));
        let duos: Vec<(Entrant, Entrant)> = if is_compared(&two[0]) {
            let same = |own: Entrant| Some((own, *others.iter().find(|other| other.0 == own.0)?));
            own.into_iter().filter_map(same).collect()
        } else {
            own.into_iter().zip(others).collect()
        };
        let pair_of = |(own, other): (Entrant, Entrant)| {
            let wins = beats_rival(&two[0], own, other, Rival::Opponent, temperature)?;
            let mut joint = two[0].group().clone();
            joint.samples = vec![two[0].group().samples[own.0].clone(), two[1].group().samples[other.0].clone()];
            let own_first = wins >= 0.5;
            let sides = if own_first { [(0, wins), (1, 1.0 - wins)] } else { [(1, 1.0 - wins), (0, wins)] };
            let pair = pair(&joint, sides);
            let mut verdicts = pair.verdicts().to_vec();
            let mark = RewardPart { name: BY_REFERENCE.into(), weight: 0.0, ..verdicts[0].rewards[0].clone() };
            verdicts[usize::from(own_first)].rewards.push(mark);
            GradedGroup::new(pair.group().clone(), verdicts).ok()
        };
        duos.into_iter().filter_map(pair_of).collect()
    };
    groups.chunks_exact(2).flat_map(one).collect()
}

/// `None` of no numbers.
pub(super) fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// The weightless part of a verdict on a sample that the reference drew.
const BY_REFERENCE: &str = "by_reference";

/// Whether the reference drew each sample of a pair.
pub(super) fn drawn_by_reference(pair: &GradedGroup) -> impl Iterator<Item = bool> {
    pair.verdicts().iter().map(|verdict| verdict.rewards.iter().any(|part| part.name == BY_REFERENCE))
}

/// Two samples of a group with their win rates.
fn pair(group: &Group, sides: [(usize, f64); 2]) -> GradedGroup {
    let pair = Group {
        prompt: group.prompt.clone(),
        prompt_ids: group.prompt_ids.clone(),
        policy: group.policy.clone(),
        settings: group.settings.clone(),
        samples: sides.iter().map(|(place, _)| group.samples[*place].clone()).collect(),
    };
    let verdicts = sides.iter().map(|(_, win_rate)| verdict(Some(*win_rate))).collect();
    GradedGroup::new(pair, verdicts).expect("a pair has two verdicts")
}

/// What a win rate is to a sample.
fn verdict(win_rate: Option<f64>) -> Verdict {
    let part = |win_rate: f64| RewardPart {
        name: "win_rate".into(),
        version: "1".into(),
        weight: 1.0,
        grade: Grade::Value(win_rate as f32),
    };
    Verdict::of_rewards(win_rate.map(part).into_iter().collect())
}

#[cfg(test)]
mod tests;
