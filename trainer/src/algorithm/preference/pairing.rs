//! Pairs out of graded groups and duels: the best and the worst sample, neighbours, or samples of two policies.
//!
//! A judge's comparisons decide where there are any; otherwise the greater reward wins, for certain or, at a temperature
//! above 0, with probability `σ(difference / temperature)` as a Bradley-Terry reward model means it.

use crate::collected::{Collected, Duel, Origin, Pair, Sequence, Side};
use schema::{GradedGroup, Rival, Sample, Verdict};
use serde::{Deserialize, Serialize};

/// The treatment of a pair whose completions are equally good.
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
    pub(in crate::algorithm) fn resolve(self, mut pairs: Vec<Pair<'_>>) -> Vec<Pair<'_>> {
        if self == Self::Skip {
            pairs.retain(|pair| pair.chosen.win_rate != pair.rejected.win_rate);
        }
        pairs
    }
}

/// The samples that a win rate is against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::algorithm) enum Against {
    /// The other one of its pair.
    Partner,
    /// Every sample of its group, itself included, as SPPO's code does.
    Group,
}

/// The probability that the sample with the first reward beats the other: `σ(difference / temperature)`, or certainty at
/// temperature 0, equal rewards being a tie.
fn win_probability(reward: f64, other: f64, temperature: f64) -> f64 {
    let difference = reward - other;
    if temperature > 0.0 {
        return 1.0 / (1.0 + (-difference / temperature).exp());
    }
    if difference == 0.0 { 0.5 } else { f64::from(difference > 0.0) }
}

/// A sample that can be one side of a pair: its index in its group, and how good it is by itself.
pub(in crate::algorithm) type Candidate = (usize, f64);

/// Returns `true` if a judge has compared samples of this group; otherwise their rewards tell them apart.
fn is_compared(group: &GradedGroup) -> bool {
    group.verdicts().iter().any(Verdict::is_compared)
}

fn has_tokens(sample: &Sample) -> bool {
    sample.mask.iter().any(|trained| *trained)
}

/// The samples of a group that can be one side of a pair, with their win rates where a judge has compared them, and with
/// their rewards otherwise.
pub(in crate::algorithm) fn candidates(group: &GradedGroup) -> Vec<Candidate> {
    let strength: Vec<Option<f64>> = if is_compared(group) {
        group.verdicts().iter().map(Verdict::win_rate).collect()
    } else {
        group.rewards().into_iter().map(|reward| reward.map(f64::from)).collect()
    };
    let samples = strength.into_iter().zip(&group.group().samples).enumerate();
    samples.filter_map(|(index, (strength, sample))| Some((index, strength.filter(|_| has_tokens(sample))?))).collect()
}

/// The probability that a sample of `group` beats another one of it; `None` where a judge was asked and could not say.
pub(in crate::algorithm) fn beats(
    group: &GradedGroup,
    own: Candidate,
    other: Candidate,
    temperature: f64,
) -> Option<f64> {
    beats_rival(group, own, other, Rival::Own, temperature)
}

/// The same of another one in its own group or in its opponent's, by `rival`.
fn beats_rival(
    group: &GradedGroup,
    own: Candidate,
    other: Candidate,
    rival: fn(usize) -> Rival,
    temperature: f64,
) -> Option<f64> {
    if is_compared(group) {
        group.verdicts()[own.0].beats(rival(other.0))
    } else {
        Some(win_probability(own.1, other.1, temperature))
    }
}

fn side(group: &GradedGroup, index: usize, win_rate: f64, origin: Origin) -> Side<'_> {
    Side { sequence: Sequence::of_sample(&group.group().samples[index]), win_rate: win_rate as f32, origin }
}

/// Two samples of the policy's group with their win rates, the better one first.
fn pair(group: &GradedGroup, chosen: (usize, f64), rejected: (usize, f64)) -> Pair<'_> {
    let side = |(index, win_rate)| side(group, index, win_rate, Origin::Policy);
    Pair { prompt_ids: &group.group().prompt_ids, chosen: side(chosen), rejected: side(rejected), margin: 0.0 }
}

/// The policy's own groups.
fn own_groups(collected: &Collected) -> impl Iterator<Item = &GradedGroup> {
    let (groups, duels): (&[GradedGroup], &[Duel]) = match collected {
        Collected::Groups(groups) => (groups, &[]),
        Collected::Duels(duels) => (&[], duels),
        Collected::Examples(_) => (&[], &[]),
    };
    groups.iter().chain(duels.iter().map(|duel| &duel.own))
}

/// The best and the worst sample of each group as a pair. The first of equals is the better one. A group in which fewer
/// than two samples are graded gives none, nor does one whose pair the judge could not compare.
pub(in crate::algorithm) fn best_and_worst(collected: &Collected, temperature: f64, against: Against) -> Vec<Pair<'_>> {
    own_groups(collected).filter_map(|group| best_and_worst_of(group, temperature, against)).collect()
}

fn best_and_worst_of(group: &GradedGroup, temperature: f64, against: Against) -> Option<Pair<'_>> {
    let candidates = candidates(group);
    let (first, rest) = candidates.split_first()?;
    let best = rest.iter().fold(first, |best, next| if next.1 > best.1 { next } else { best });
    let others = candidates.iter().filter(|other| other.0 != best.0);
    let worst = others.reduce(|worst, next| if next.1 <= worst.1 { next } else { worst })?;
    let rate = |own: Candidate, partner: Candidate| match against {
        Against::Partner => beats(group, own, partner, temperature),
        Against::Group => {
            // A sample ties with itself.
            let rate =
                |other: &Candidate| if other.0 == own.0 { Some(0.5) } else { beats(group, own, *other, temperature) };
            mean(&candidates.iter().filter_map(rate).collect::<Vec<_>>())
        }
    };
    Some(pair(group, (best.0, rate(*best, *worst)?), (worst.0, rate(*worst, *best)?)))
}

/// The first and the second graded sample of each group as a pair, the third and the fourth, and so on, the better one
/// first. No sample is in two pairs, and none is chosen for its reward. Where a judge has compared them, indices in the
/// group count and not graded samples.
pub(in crate::algorithm) fn neighbours(collected: &Collected, temperature: f64) -> Vec<Pair<'_>> {
    own_groups(collected).flat_map(|group| neighbours_of(group, temperature)).collect()
}

fn neighbours_of(group: &GradedGroup, temperature: f64) -> Vec<Pair<'_>> {
    let candidates = candidates(group);
    let twos: Vec<(Candidate, Candidate)> = if is_compared(group) {
        let twos = candidates.windows(2).filter(|two| two[0].0.is_multiple_of(2) && two[1].0 == two[0].0 + 1);
        twos.map(|two| (two[0], two[1])).collect()
    } else {
        candidates.chunks_exact(2).map(|two| (two[0], two[1])).collect()
    };
    let one = |(a, b): (Candidate, Candidate)| {
        let wins = beats(group, a, b, temperature)?;
        let (better, worse, rate) = if wins < 0.5 { (b, a, 1.0 - wins) } else { (a, b, wins) };
        Some(pair(group, (better.0, rate), (worse.0, 1.0 - rate)))
    };
    twos.into_iter().filter_map(one).collect()
}

/// The win rate of each of the policy's samples against all graded ones of its opponent; `None` for a sample that cannot be
/// compared.
pub(in crate::algorithm) fn win_rates(duel: &Duel, temperature: f64) -> Vec<Option<f32>> {
    let (own, others) = (candidates(&duel.own), candidates(&duel.opponent));
    let win_rate = |candidate: Candidate| {
        let rate = |other: &Candidate| beats_rival(&duel.own, candidate, *other, Rival::Opponent, temperature);
        mean(&others.iter().filter_map(rate).collect::<Vec<_>>())
    };
    let rate_of = |index| own.iter().find(|candidate| candidate.0 == index).and_then(|candidate| win_rate(*candidate));
    (0..duel.own.group().samples.len()).map(|index| rate_of(index).map(|rate| rate as f32)).collect()
}

/// The n-th graded sample of the policy and of its opponent as a pair, the better one first and the policy's first where
/// they tie.
pub(in crate::algorithm) fn with_opponents(collected: &Collected, temperature: f64) -> Vec<Pair<'_>> {
    collected.duels().iter().flat_map(|duel| with_opponent(duel, temperature)).collect()
}

fn with_opponent(duel: &Duel, temperature: f64) -> Vec<Pair<'_>> {
    let (own, others) = (candidates(&duel.own), candidates(&duel.opponent));
    let twos: Vec<(Candidate, Candidate)> = if is_compared(&duel.own) {
        let same = |own: Candidate| Some((own, *others.iter().find(|other| other.0 == own.0)?));
        own.into_iter().filter_map(same).collect()
    } else {
        own.into_iter().zip(others).collect()
    };
    let one = |(own, other): (Candidate, Candidate)| {
        let wins = beats_rival(&duel.own, own, other, Rival::Opponent, temperature)?;
        let own_side = side(&duel.own, own.0, wins, Origin::Policy);
        let other_side = side(&duel.opponent, other.0, 1.0 - wins, Origin::Opponent);
        let (chosen, rejected) = if wins >= 0.5 { (own_side, other_side) } else { (other_side, own_side) };
        Some(Pair { prompt_ids: &duel.own.group().prompt_ids, chosen, rejected, margin: 0.0 })
    };
    twos.into_iter().filter_map(one).collect()
}

/// The mean; `None` of no numbers.
pub(in crate::algorithm) fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

#[cfg(test)]
mod tests;
