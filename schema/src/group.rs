//! The samples of one prompt, before and after judgement.

use crate::{PolicyVersion, Prompt, Sample, SamplerSettings, Token, Verdict};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The samples drawn for one prompt in one step by one policy. Nobody has judged them yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What was asked.
    pub prompt: Prompt,
    /// The prompt as tokens, chat template included: what the samples continue.
    pub prompt_ids: Vec<Token>,
    /// The policy that drew every sample of the group.
    pub policy: PolicyVersion,
    /// How it drew them.
    pub settings: SamplerSettings,
    /// The completions.
    pub samples: Vec<Sample>,
}

impl Group {
    /// Prompt tokens, counted once, and the tokens of every sample.
    pub fn total_tokens(&self) -> usize {
        self.prompt_ids.len() + self.samples.iter().map(Sample::len).sum::<usize>()
    }
}

/// Why a group could not be judged as a whole.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// There must be one verdict per sample.
    #[error("{verdicts} verdicts for {samples} samples; a reward must return one entry per completion")]
    VerdictCount {
        /// How many verdicts came.
        verdicts: usize,
        /// How many samples there are.
        samples: usize,
    },
}

/// A group whose samples have verdicts. Only this can be stored and trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredGroup {
    group: Group,
    verdicts: Vec<Verdict>,
}

impl ScoredGroup {
    /// Joins a group with one verdict per sample.
    pub fn new(group: Group, verdicts: Vec<Verdict>) -> Result<Self, GroupError> {
        if verdicts.len() != group.samples.len() {
            return Err(GroupError::VerdictCount { verdicts: verdicts.len(), samples: group.samples.len() });
        }
        Ok(Self { group, verdicts })
    }

    /// The group without its verdicts.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// One verdict per sample, in order.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// The total reward of each sample; `None` where it could not be judged.
    pub fn rewards(&self) -> Vec<Option<f32>> {
        self.verdicts.iter().map(Verdict::total).collect()
    }

    /// The samples that could be judged, each with its reward and its place in the group.
    pub fn judged(&self) -> impl Iterator<Item = (usize, &Sample, f32)> {
        self.group
            .samples
            .iter()
            .zip(&self.verdicts)
            .enumerate()
            .filter_map(|(place, (sample, verdict))| verdict.total().map(|reward| (place, sample, reward)))
    }
}
