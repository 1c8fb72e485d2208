//! The samples of one prompt, before and after grading.

use crate::{PolicyVersion, Prompt, Sample, SamplerSettings, Token, Verdict};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The samples of one prompt in one step by one policy, not yet graded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The prompt.
    pub prompt: Prompt,
    /// The tokens that the samples continue: the prompt, chat template included.
    pub prompt_ids: Vec<Token>,
    /// The policy that sampled the group.
    pub policy: PolicyVersion,
    /// The settings that it sampled with.
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

/// The error of joining a group with verdicts that do not fit it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// There must be one verdict per sample.
    #[error("{verdicts} verdicts for {samples} samples; a reward must return one entry per completion")]
    VerdictCount {
        /// The number of verdicts.
        verdicts: usize,
        /// The number of samples.
        samples: usize,
    },
}

/// A group whose samples have verdicts. Only this can be stored and trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GradedGroup {
    group: Group,
    verdicts: Vec<Verdict>,
}

impl GradedGroup {
    /// Joins a group with one verdict per sample.
    ///
    /// # Errors
    ///
    /// Fails if the number of verdicts is not the number of samples.
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

    /// The total reward of each sample; `None` where it is ungraded.
    pub fn rewards(&self) -> Vec<Option<f32>> {
        self.verdicts.iter().map(Verdict::total).collect()
    }
}
