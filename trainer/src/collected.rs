//! The data of one training step, under its own name: graded groups, duels, or examples of a data set.
//!
//! A [`Unit`] is what a method makes of them to train on: the sequences of one prompt, and what is known of them before
//! any log-probability is computed. Its sequences are packed behind one copy of their prompt.

use schema::{Finish, GradedGroup, Group, Sample, Token};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Everything that one step can train on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Collected {
    /// Groups that the policy sampled in this step or an earlier one, graded.
    Groups(Vec<GradedGroup>),
    /// The policy's group of each prompt beside its opponent's.
    Duels(Vec<Duel>),
    /// Rows of a data set.
    Examples(Vec<Example>),
}

/// Two graded groups of the same prompt: the policy's own, and its opponent's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Duel {
    /// Samples of the policy that is trained.
    pub own: GradedGroup,
    /// Samples of the policy that it is compared with.
    pub opponent: GradedGroup,
}

/// Tokens of the prompt and of the completion, for each sample of these groups.
pub(crate) fn lengths<'a>(groups: impl IntoIterator<Item = &'a GradedGroup>) -> Vec<(usize, usize)> {
    let of_group = |group: &'a GradedGroup| {
        let group = group.group();
        group.samples.iter().map(|sample| (group.prompt_ids.len(), sample.len()))
    };
    groups.into_iter().flat_map(of_group).collect()
}

/// The groups of a policy and of its opponent in the order of the store: each of the policy's before its opponent's.
pub(crate) fn in_store_order<T>(own: Vec<T>, opponents: Vec<T>) -> Vec<T> {
    own.into_iter().zip(opponents).flat_map(|(own, opponent)| [own, opponent]).collect()
}

/// The policy's group and its opponent's of each prompt, out of groups in the order of the store.
pub(crate) fn duels<T>(groups: &[T]) -> impl Iterator<Item = (&T, &T)> {
    groups.chunks_exact(2).map(|two| (&two[0], &two[1]))
}

/// A row of a data set, tokenized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The prompt, chat template included.
    pub prompt_ids: Vec<Token>,
    /// The completions that it brings.
    pub completions: Completions,
}

/// The completions of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Completions {
    /// One completion.
    Demonstration {
        /// The completion.
        completion: Completion,
        /// The row's label, `true` where it has none: whether the completion is one to imitate.
        desirable: bool,
    },
    /// Two completions, of which one is preferred.
    Pair {
        /// The preferred completion.
        chosen: Completion,
        /// The other one.
        rejected: Completion,
        /// By how much the rewards of the two should differ; 0 where the row does not say.
        margin: f64,
    },
}

/// A completion of a data set: tokens that no policy sampled, so that they have no behaviour log-probs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The tokens, up to and including the end-of-sequence token unless the completion was cut.
    pub ids: Vec<Token>,
    /// `true` if it was cut at the token limit.
    pub cut: bool,
}

impl Example {
    /// Its completions, the preferred one of a pair first.
    pub fn completions(&self) -> impl Iterator<Item = &Completion> {
        let (first, second) = match &self.completions {
            Completions::Demonstration { completion, .. } => (completion, None),
            Completions::Pair { chosen, rejected, .. } => (chosen, Some(rejected)),
        };
        std::iter::once(first).chain(second)
    }
}

impl Collected {
    /// Duels out of groups in the order of the store.
    pub(crate) fn duels_of(groups: &[GradedGroup]) -> Self {
        Self::Duels(
            duels(groups).map(|(own, opponent)| Duel { own: own.clone(), opponent: opponent.clone() }).collect(),
        )
    }

    /// The groups that a policy sampled, an opponent's behind the policy's own; none for examples.
    pub fn groups(&self) -> Vec<&GradedGroup> {
        match self {
            Self::Groups(groups) => groups.iter().collect(),
            Self::Duels(duels) => duels.iter().flat_map(|duel| [&duel.own, &duel.opponent]).collect(),
            Self::Examples(_) => Vec::new(),
        }
    }

    /// The examples of a data set; none where a policy sampled.
    pub fn examples(&self) -> &[Example] {
        if let Self::Examples(examples) = self { examples } else { &[] }
    }

    /// The duels; none where nothing is compared with an opponent.
    pub fn duels(&self) -> &[Duel] {
        if let Self::Duels(duels) = self { duels } else { &[] }
    }

    /// The number of completions.
    pub fn samples(&self) -> usize {
        let sampled = self.groups().iter().map(|group| group.group().samples.len()).sum::<usize>();
        sampled + self.examples().iter().map(|example| example.completions().count()).sum::<usize>()
    }

    /// Tokens of the prompt and of the completion, for each completion.
    pub(crate) fn lengths(&self) -> Vec<(usize, usize)> {
        let of_example = |example: &Example| {
            let prompt = example.prompt_ids.len();
            example.completions().map(|completion| (prompt, completion.ids.len())).collect::<Vec<_>>()
        };
        let sampled = lengths(self.groups());
        sampled.into_iter().chain(self.examples().iter().flat_map(of_example)).collect()
    }

    /// Everything as it is: each of the policy's own groups, each demonstration, each pair.
    pub fn units(&self) -> Vec<Unit<'_>> {
        match self {
            Self::Groups(groups) => groups.iter().map(Unit::Group).collect(),
            Self::Duels(duels) => duels.iter().map(|duel| Unit::Group(&duel.own)).collect(),
            Self::Examples(examples) => examples.iter().map(Unit::of_example).collect(),
        }
    }
}

/// One completion, as training sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence<'a> {
    /// Its tokens.
    pub ids: Cow<'a, [Token]>,
    /// One flag per token, `true` for tokens that are trained on; `None` if all of them are.
    pub mask: Option<&'a [bool]>,
    /// The log-probs of the policy that sampled it, one per token; `None` for a completion of a data set.
    pub behaviour_logprobs: Option<&'a [f32]>,
    /// `true` if it was cut at the token limit.
    pub truncated: bool,
}

impl<'a> Sequence<'a> {
    /// A completion that a policy sampled.
    pub fn of_sample(sample: &'a Sample) -> Self {
        Self {
            ids: Cow::Borrowed(&sample.ids),
            mask: Some(&sample.mask),
            behaviour_logprobs: Some(&sample.logprobs),
            truncated: sample.finish == Finish::Length,
        }
    }

    /// A completion of a data set.
    pub fn of_completion(completion: &'a Completion) -> Self {
        let ids = Cow::Borrowed(&completion.ids[..]);
        Self { ids, mask: None, behaviour_logprobs: None, truncated: completion.cut }
    }

    /// Two completions of a data set, one after the other.
    pub fn joined(first: &Self, second: &Self) -> Self {
        let ids = Cow::Owned([&first.ids[..], &second.ids].concat());
        Self { ids, mask: None, behaviour_logprobs: None, truncated: second.truncated }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns `true` if it has no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns one flag per token, `true` for tokens that are trained on.
    pub fn mask(&self) -> Cow<'a, [bool]> {
        self.mask.map_or_else(|| Cow::Owned(vec![true; self.ids.len()]), Cow::Borrowed)
    }

    /// The number of tokens that are trained on.
    pub fn trained_tokens(&self) -> usize {
        self.mask.map_or(self.ids.len(), |mask| mask.iter().filter(|trained| **trained).count())
    }

    /// Returns `true` if tokens, mask and log-probs have one length, and each log-prob is finite and at most zero.
    pub fn is_consistent(&self) -> bool {
        self.mask.is_none_or(|mask| mask.len() == self.ids.len())
            && self.behaviour_logprobs.is_none_or(|logprobs| {
                logprobs.len() == self.ids.len() && logprobs.iter().all(|it| it.is_finite() && *it <= 1e-6)
            })
    }
}

/// Completions behind one prompt.
pub trait PromptSequences {
    /// The prompt's tokens.
    fn prompt_ids(&self) -> &[Token];

    /// The number of completions.
    fn count(&self) -> usize;

    /// The completion at this index, which must be below [`PromptSequences::count`].
    fn sequence(&self, index: usize) -> Sequence<'_>;

    /// Returns `true` if its sequences must go through one forward pass together.
    fn is_whole(&self) -> bool {
        false
    }
}

impl PromptSequences for Group {
    fn prompt_ids(&self) -> &[Token] {
        &self.prompt_ids
    }

    fn count(&self) -> usize {
        self.samples.len()
    }

    fn sequence(&self, index: usize) -> Sequence<'_> {
        Sequence::of_sample(&self.samples[index])
    }
}

/// The sequences of one prompt that a method trains on.
#[derive(Debug, Clone)]
pub enum Unit<'a> {
    /// The samples of a graded group.
    Group(&'a GradedGroup),
    /// A demonstration.
    Demonstration {
        /// The tokens of the prompt.
        prompt_ids: &'a [Token],
        /// The completion to imitate.
        completion: Sequence<'a>,
    },
    /// Two completions that are compared.
    Pair(Pair<'a>),
    /// Completions with labels.
    Labelled(Labelled<'a>),
}

/// Two completions of one prompt, the better one first.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair<'a> {
    /// The tokens of the prompt.
    pub prompt_ids: &'a [Token],
    /// The better completion.
    pub chosen: Side<'a>,
    /// The other one.
    pub rejected: Side<'a>,
    /// By how much the rewards of the two should differ; 0 where no source says so.
    pub margin: f64,
}

/// One completion of a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Side<'a> {
    /// The completion.
    pub sequence: Sequence<'a>,
    /// The probability that it is better: than the other one, or than whatever the method compares it with.
    pub win_rate: f32,
    /// The policy that sampled it, or the data set that it is from.
    pub origin: Origin,
}

/// The source of one completion of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A row of a data set.
    DataSet,
    /// The policy that is trained.
    Policy,
    /// Its opponent.
    Opponent,
}

/// Completions of one prompt, each desirable or not, and one of another prompt that is evaluated and not trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled<'a> {
    /// The tokens of the prompt.
    pub prompt_ids: &'a [Token],
    /// The completions, and whether each is desirable.
    pub completions: Vec<(Sequence<'a>, bool)>,
    /// A completion of another prompt.
    pub unrelated: Sequence<'a>,
}

impl<'a> Unit<'a> {
    /// A row of a data set: a demonstration, or a pair in which the chosen completion wins for certain.
    pub fn of_example(example: &'a Example) -> Self {
        let prompt_ids = &example.prompt_ids[..];
        match &example.completions {
            Completions::Demonstration { completion, .. } => {
                Self::Demonstration { prompt_ids, completion: Sequence::of_completion(completion) }
            }
            Completions::Pair { chosen, rejected, margin } => {
                let side = |completion, win_rate| Side {
                    sequence: Sequence::of_completion(completion),
                    win_rate,
                    origin: Origin::DataSet,
                };
                let (chosen, rejected) = (side(chosen, 1.0), side(rejected, 0.0));
                Self::Pair(Pair { prompt_ids, chosen, rejected, margin: *margin })
            }
        }
    }

    /// The graded group; `None` of any other unit.
    pub fn group(&self) -> Option<&'a GradedGroup> {
        if let Self::Group(group) = self { Some(group) } else { None }
    }

    /// The pair; `None` of any other unit.
    pub fn pair(&self) -> Option<&Pair<'a>> {
        if let Self::Pair(pair) = self { Some(pair) } else { None }
    }
}

impl Pair<'_> {
    /// Its completions in the order of the unit's sequences.
    pub fn sides(&self) -> [&Side<'_>; 2] {
        [&self.chosen, &self.rejected]
    }
}

impl PromptSequences for Unit<'_> {
    fn prompt_ids(&self) -> &[Token] {
        match self {
            Self::Group(group) => &group.group().prompt_ids,
            Self::Demonstration { prompt_ids, .. } => prompt_ids,
            Self::Pair(pair) => pair.prompt_ids,
            Self::Labelled(labelled) => labelled.prompt_ids,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Group(group) => group.group().samples.len(),
            Self::Demonstration { .. } => 1,
            Self::Pair(_) => 2,
            Self::Labelled(labelled) => labelled.completions.len() + 1,
        }
    }

    fn sequence(&self, index: usize) -> Sequence<'_> {
        match self {
            Self::Group(group) => Sequence::of_sample(&group.group().samples[index]),
            Self::Demonstration { completion, .. } => completion.clone(),
            Self::Pair(pair) => pair.sides()[index].sequence.clone(),
            Self::Labelled(labelled) => {
                labelled.completions.get(index).map_or(&labelled.unrelated, |(sequence, _)| sequence).clone()
            }
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self, Self::Pair(_) | Self::Labelled(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(tokens: usize) -> Completion {
        Completion { ids: vec![7; tokens], cut: false }
    }

    #[test]
    fn a_pair_of_a_data_set_has_no_behaviour_and_a_certain_winner() {
        let completions = Completions::Pair { chosen: completion(2), rejected: completion(3), margin: 0.5 };
        let collected = Collected::Examples(vec![Example { prompt_ids: vec![1], completions }]);
        assert_eq!((collected.samples(), collected.groups().len()), (2, 0));
        let units = collected.units();
        let pair = units[0].pair().unwrap();
        assert_eq!(pair.sides().map(|side| (side.sequence.len(), side.win_rate)), [(2, 1.0), (3, 0.0)]);
        assert!(pair.sides().iter().all(|side| side.sequence.behaviour_logprobs.is_none()));
        assert_eq!(units[0].sequence(1).trained_tokens(), 3);
        assert!(units[0].is_whole());
    }

    #[test]
    fn a_sequence_whose_parts_differ_in_length_is_inconsistent() {
        let (completion, mask, logprobs) = (completion(2), [true, false], [-1.0f32, 0.5]);
        let sequence = Sequence { mask: Some(&mask), ..Sequence::of_completion(&completion) };
        assert!(sequence.is_consistent() && sequence.trained_tokens() == 1);
        assert!(!Sequence { mask: Some(&mask[..1]), ..sequence.clone() }.is_consistent());
        // A log-prob above zero is none.
        assert!(!Sequence { behaviour_logprobs: Some(&logprobs), ..sequence }.is_consistent());
    }
}
