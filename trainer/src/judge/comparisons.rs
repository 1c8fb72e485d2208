//! Comparisons of drawn samples: which are made, what becomes of them, and what is known about them.
//!
//! A judge's word on a pair becomes a comparison in both samples' verdicts: so comparisons are committed to the store
//! with the samples, before anything is learned from them, and a resumed run finds them there and asks the judge nothing
//! twice. A comparison that failed has a reason instead of a probability.
//!
//! The judge also acts as a reward function, `win_rate`: it grades each compared sample by the mean of its comparisons
//! that succeeded. The grade has weight 1 where there is no `[[reward]]`, and weight 0 otherwise.

use crate::algorithm::Compares;
use crate::collected::duels;
use crate::config::WIN_RATE;
use crate::{Error, Result};
use reward::judge::{Contestant, Fair, Judge};
use schema::{Comparison, Grade, GradedGroup, Group, Metrics, RewardPart, Rival, Verdict};

/// A judge, and which samples of a step it compares.
pub(crate) struct PairComparer {
    judge: Fair,
    compares: Compares,
    /// The weight of the win rate in a sample's reward.
    weight: f64,
}

/// A sample of a step: its group and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SamplePosition {
    group: usize,
    place: usize,
}

impl SamplePosition {
    fn sees(self, other: Self) -> Rival {
        if self.group == other.group { Rival::Own(other.place) } else { Rival::Opponent(other.place) }
    }
}

impl PairComparer {
    /// A judge whose win rates are rewards with this weight: 1 where nothing else is a reward.
    pub(crate) fn new(judge: Fair, compares: Compares, weight: f64) -> Self {
        Self { judge, compares, weight }
    }

    /// Compares the samples of a step and adds to each verdict how its sample fared.
    pub(crate) fn compare_step(&mut self, groups: Vec<GradedGroup>) -> Result<Vec<GradedGroup>> {
        let pairings = pairings(self.compares, &groups);
        let at = |position: SamplePosition| Contestant { group: groups[position.group].group(), index: position.place };
        let pairs: Vec<_> = pairings.iter().map(|(a, b)| (at(*a), at(*b))).collect();
        let said = self.compare(&pairs)?;
        let mut verdicts: Vec<Vec<Verdict>> = groups.iter().map(|group| group.verdicts().to_vec()).collect();
        let (judge, version) = (self.judge.name(), self.judge.version());
        for ((a, b), win) in pairings.into_iter().zip(said) {
            let (there, back) = match win {
                Grade::Value(win) => (Grade::Value(win), Grade::Value(1.0 - win)),
                failed @ Grade::Missing(_) => (failed.clone(), failed),
            };
            for (own, other, win) in [(a, b, there), (b, a, back)] {
                let comparison =
                    Comparison { judge: judge.to_owned(), version: version.clone(), rival: own.sees(other), win };
                verdicts[own.group][own.place].comparisons.push(comparison);
            }
        }
        for verdict in verdicts.iter_mut().flatten().filter(|verdict| verdict.is_compared()) {
            let grade = win_rate(verdict);
            let (name, version) = (WIN_RATE.to_owned(), version.clone());
            verdict.rewards.push(RewardPart { name, version, weight: self.weight, grade });
        }
        let joined = groups.into_iter().zip(verdicts).map(|(group, verdicts)| {
            let group = group.group().clone();
            GradedGroup::new(group, verdicts).map_err(reward::Error::from)
        });
        Ok(joined.collect::<std::result::Result<_, _>>()?)
    }

    /// Compares the n-th sample of each group with the n-th of the same group of `others`, which answer the same prompts.
    pub(crate) fn counterparts(&mut self, groups: &[Group], others: &[Group]) -> Result<Vec<Grade>> {
        let pairs: Vec<_> = groups
            .iter()
            .zip(others)
            .flat_map(|(group, other)| {
                let indices = 0..group.samples.len().min(other.samples.len());
                indices.map(move |index| (Contestant { group, index }, Contestant { group: other, index }))
            })
            .collect();
        self.compare(&pairs)
    }

    fn compare(&mut self, pairs: &[reward::judge::Matchup<'_>]) -> Result<Vec<Grade>> {
        let said = self.judge.compare(pairs);
        if said.len() != pairs.len() {
            return Err(Error::runtime(format!("the judge `{}` must say one thing of each pair", self.judge.name())));
        }
        let failed = said.iter().filter(|judgement| judgement.value().is_none()).count();
        if failed == said.len()
            && let Some(Grade::Missing(reason)) = said.first()
        {
            tracing::warn!(pairs = failed, reason, "the judge compared nothing");
        }
        Ok(said)
    }
}

/// The grade that a sample's comparisons give it.
fn win_rate(verdict: &Verdict) -> Grade {
    verdict.win_rate().map_or(Grade::missing("no comparison succeeded"), |rate| Grade::of(rate as f32))
}

/// The pairs to compare, each once.
fn pairings(compares: Compares, groups: &[GradedGroup]) -> Vec<(SamplePosition, SamplePosition)> {
    let size = |group: usize| groups[group].group().samples.len();
    let indices: Vec<usize> = (0..groups.len()).collect();
    let duels = duels(&indices).map(|(own, other)| (*own, *other));
    let position = |group, place| SamplePosition { group, place };
    match compares {
        Compares::Group => (0..groups.len())
            .flat_map(|group| {
                (0..size(group)).flat_map(move |a| (0..a).map(move |b| (position(group, b), position(group, a))))
            })
            .collect(),
        Compares::Neighbours => (0..groups.len())
            .flat_map(|group| {
                (0..size(group) / 2).map(move |two| (position(group, 2 * two), position(group, 2 * two + 1)))
            })
            .collect(),
        Compares::Opponents => duels
            .flat_map(|(own, other)| {
                (0..size(own)).flat_map(move |a| (0..size(other)).map(move |b| (position(own, a), position(other, b))))
            })
            .collect(),
        Compares::Counterparts => duels
            .flat_map(|(own, other)| {
                (0..size(own).min(size(other))).map(move |place| (position(own, place), position(other, place)))
            })
            .collect(),
    }
}

/// Metrics of a step's comparisons; none without a judge.
///
/// | metric | meaning |
/// |---|---|
/// | `judge/comparisons` | pairs that were compared with success |
/// | `judge/unjudged_fraction` | share of pairs of which the judge could not say who is better |
/// | `judge/ties` (also `judge/draws`) | share of ties among the successful ones |
pub(crate) fn metrics(groups: &[GradedGroup]) -> Metrics {
    let mut metrics = Metrics::new();
    let verdicts = groups.iter().flat_map(GradedGroup::verdicts);
    let values: Vec<Option<f32>> =
        verdicts.flat_map(|verdict| &verdict.comparisons).map(|comparison| comparison.win.value()).collect();
    if values.is_empty() {
        return metrics;
    }
    let known: Vec<f32> = values.iter().copied().flatten().collect();
    let ties = known.iter().filter(|value| **value == 0.5).count();
    // Each pair is in the verdicts of both sides.
    metrics.set("judge/comparisons", known.len() as f64 / 2.0);
    metrics.set("judge/unjudged_fraction", (values.len() - known.len()) as f64 / values.len() as f64);
    let share = ties as f64 / known.len().max(1) as f64;
    metrics.set("judge/ties", share);
    // The name of older programs.
    metrics.set("judge/draws", share);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::scored;
    use reward::judge::Matchup;

    /// A judge by which the answer with more tokens wins with 0.75; three tokens are beyond it.
    struct Longer;

    impl Judge for Longer {
        fn name(&self) -> &'static str {
            "longer"
        }
        fn version(&self) -> String {
            "1".into()
        }
        fn is_symmetric(&self) -> bool {
            true
        }
        fn compare(&mut self, pairs: &[Matchup<'_>]) -> Vec<Grade> {
            let one = |(a, b): &Matchup<'_>| match (a.sample().len(), b.sample().len()) {
                (3, _) | (_, 3) => Grade::missing("three"),
                (a, b) => Grade::Value(if a > b { 0.75 } else { 0.25 }),
            };
            pairs.iter().map(one).collect()
        }
    }

    /// Groups whose samples differ in text, as drawn ones do.
    fn drawn(rewards: &[&[f32]]) -> Vec<GradedGroup> {
        let named = |group: GradedGroup| {
            let mut own = group.group().clone();
            own.samples.iter_mut().for_each(|sample| sample.text = sample.len().to_string());
            GradedGroup::new(own, group.verdicts().to_vec()).unwrap()
        };
        scored(rewards).into_iter().map(named).collect()
    }

    fn heard(compares: Compares, rewards: &[&[f32]]) -> Vec<GradedGroup> {
        PairComparer::new(Fair::new(Box::new(Longer), true), compares, 0.0).compare_step(drawn(rewards)).unwrap()
    }

    #[test]
    fn each_sample_of_a_group_meets_every_other_one() {
        // Sample i has i + 1 tokens.
        let groups = heard(Compares::Group, &[&[0.0; 4]]);
        let verdicts = groups[0].verdicts();
        let beats = |own: usize, other| verdicts[own].beats(Rival::Own(other));
        assert_eq!(
            (beats(0, 1), beats(1, 0), beats(3, 0), beats(0, 3)),
            (Some(0.25), Some(0.75), Some(0.75), Some(0.25))
        );
        assert_eq!((beats(0, 2), beats(2, 0), beats(0, 0)), (None, None, None));
        let rate = |own: usize| &verdicts[own].rewards.iter().find(|part| part.name == WIN_RATE).unwrap().grade;
        assert_eq!([rate(0), rate(1), rate(3)].map(Grade::value), [Some(0.25), Some(0.5), Some(0.75)]);
        assert_eq!(rate(2), &Grade::missing("no comparison succeeded"));
        // The made-up reward is still what the samples are worth.
        assert_eq!(groups[0].rewards(), [Some(0.0); 4]);
        // Of six pairs three have the one with three tokens.
        let metrics = metrics(&groups);
        assert_eq!(metrics.get("judge/comparisons"), Some(3.0));
        assert_eq!(metrics.get("judge/unjudged_fraction"), Some(0.5));
        assert_eq!(metrics.get("judge/draws"), Some(0.0));
        assert_eq!(super::metrics(&scored(&[&[0.0]])).iter().count(), 0);
    }

    #[test]
    fn neighbours_opponents_and_counterparts_meet_as_they_should() {
        let neighbours = heard(Compares::Neighbours, &[&[0.0; 5]]);
        let comparisons = |verdict: &Verdict| verdict.comparisons.len();
        assert_eq!(neighbours[0].verdicts().iter().map(comparisons).collect::<Vec<_>>(), [1, 1, 1, 1, 0]);
        let opponents = heard(Compares::Opponents, &[&[0.0; 2], &[0.0; 2]]);
        let beats = |group: usize, own: usize, other| opponents[group].verdicts()[own].beats(Rival::Opponent(other));
        assert_eq!((beats(0, 1, 0), beats(1, 0, 1), beats(0, 0, 1)), (Some(0.75), Some(0.25), Some(0.25)));
        // One text draws with itself.
        assert_eq!(beats(0, 0, 0), Some(0.5));
        assert_eq!(metrics(&opponents).get("judge/ties"), Some(0.5));
        let counterparts = heard(Compares::Counterparts, &[&[0.0; 2], &[0.0; 3]]);
        assert_eq!(counterparts[1].verdicts().iter().map(comparisons).collect::<Vec<_>>(), [1, 1, 0]);
    }

    #[test]
    fn win_rates_are_rewards_where_nothing_else_is() {
        let bare = drawn(&[&[0.0; 2]]).remove(0);
        let bare = GradedGroup::new(bare.group().clone(), vec![Verdict::default(); 2]).unwrap();
        let heard = PairComparer::new(Fair::new(Box::new(Longer), true), Compares::Group, 1.0)
            .compare_step(vec![bare])
            .unwrap();
        assert_eq!(heard[0].rewards(), [Some(0.25), Some(0.75)]);
    }
}
