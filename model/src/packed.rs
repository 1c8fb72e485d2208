//! Sequences laid end to end: no padding, one copy of each prompt.
//!
//! A group is packed as its prompt followed by its completions, so the prompt's hidden states are computed once for all
//! of them. The last token of a completion predicts nothing and is left out of the input. The log-probability of a
//! completion token comes from the hidden state *before* it, which is the last prompt token's for the first one.

use crate::attention::GroupAttention;
use crate::{Error, Result};
use schema::Token;
use tch::{Device, Kind, Tensor};

/// A prompt and the completions to evaluate after it.
#[derive(Debug, Clone)]
pub struct Sequences<'a> {
    /// At least one token.
    pub prompt: &'a [Token],
    /// Completions, each of which may be empty.
    pub completions: Vec<&'a [Token]>,
}

impl Sequences<'_> {
    /// The number of tokens in a forward pass over this group.
    pub fn input_tokens(&self) -> usize {
        self.prompt.len() + self.completions.iter().map(|completion| completion.len().saturating_sub(1)).sum::<usize>()
    }
}

/// Packed sequences, as tensors on a device.
#[derive(Debug)]
pub struct Packed {
    /// `[input]` i64: token ids.
    pub(crate) ids: Tensor,
    /// `[input]` i64: the position of each token in its sequence.
    pub(crate) positions: Tensor,
    /// `[target]` i64: the index of the input token whose hidden state predicts each completion token.
    pub(crate) predictors: Tensor,
    /// `[target]` i64: the completion tokens.
    pub(crate) targets: Tensor,
    /// The index of each target token's completion, counted through all groups.
    sequence_of_token: Vec<i64>,
    sequences: usize,
    layout: Vec<(usize, Vec<usize>)>,
    device: Device,
}

impl Packed {
    /// Packs groups for a network with `vocab` tokens.
    ///
    /// # Errors
    /// If a prompt is empty, or a token id is not below `vocab`.
    pub fn new(groups: &[Sequences<'_>], vocab: i64, device: Device) -> Result<Self> {
        Self::pack(groups, vocab, device, 0)
    }

    /// [`Packed::new`] with one more entry after each completion: the hidden state *after* its last token, which a
    /// sequence head reads. The target of such an entry is meaningless.
    ///
    /// # Errors
    /// If a prompt is empty, or a token id is not below `vocab`.
    pub fn for_sequence_head(groups: &[Sequences<'_>], vocab: i64, device: Device) -> Result<Self> {
        Self::pack(groups, vocab, device, 1)
    }

    fn pack(groups: &[Sequences<'_>], vocab: i64, device: Device, ends: usize) -> Result<Self> {
        let (mut ids, mut positions, mut predictors, mut targets) = (vec![], vec![], vec![], vec![]);
        let (mut sequence_of_token, mut layout) = (vec![], vec![]);
        let mut sequences = 0;
        for group in groups {
            if group.prompt.is_empty() {
                return Err(Error::input(
                    "a prompt has no tokens; give it text, or a model whose tokenizer adds a BOS token",
                ));
            }
            let prompt = group.prompt.len();
            ids.extend(group.prompt.iter().map(|id| i64::from(*id)));
            positions.extend(0..prompt as i64);
            let last_of_prompt = ids.len() as i64 - 1;
            let mut lengths = Vec::with_capacity(group.completions.len());
            for completion in &group.completions {
                let count = completion.len() + ends;
                let inputs = count.saturating_sub(1);
                let start = ids.len() as i64;
                predictors
                    .extend((0..count as i64).map(|index| if index == 0 { last_of_prompt } else { start + index - 1 }));
                targets.extend(completion.iter().map(|id| i64::from(*id)));
                targets.extend(std::iter::repeat_n(0, ends));
                sequence_of_token.extend(std::iter::repeat_n(sequences as i64, count));
                ids.extend(completion[..inputs].iter().map(|id| i64::from(*id)));
                positions.extend((0..inputs).map(|index| (prompt + index) as i64));
                lengths.push(inputs);
                sequences += 1;
            }
            layout.push((prompt, lengths));
        }
        if let Some(id) = ids.iter().chain(&targets).find(|id| **id >= vocab) {
            return Err(Error::input(format!(
                "token id {id} is outside the model's vocabulary of {vocab}; were these samples drawn with another model?"
            )));
        }
        let tensor = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        Ok(Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            predictors: tensor(&predictors),
            targets: tensor(&targets),
            sequence_of_token,
            sequences,
            layout,
            device,
        })
    }

    /// The number of completion tokens, sequence ends included.
    pub fn target_tokens(&self) -> usize {
        self.sequence_of_token.len()
    }

    /// The number of completions, empty ones included.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// The index of each target token's completion, counted through all groups.
    pub fn sequence_of_token(&self) -> &[i64] {
        &self.sequence_of_token
    }

    /// The attention rule of these groups, for activations of `kind`.
    pub(crate) fn attention(&self, kind: Kind) -> GroupAttention {
        GroupAttention::new(&self.layout, self.device, kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    #[test]
    fn a_group_shares_its_prompt_and_drops_last_tokens() {
        let group = Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5], &[6], &[]] };
        assert_eq!(group.input_tokens(), 4);
        let packed = Packed::new(&[group], 10, HOST).unwrap();
        let numbers = |x: &Tensor| Vec::<i64>::try_from(x).unwrap();
        assert_eq!(numbers(&packed.ids), [1, 2, 3, 4]);
        assert_eq!(numbers(&packed.positions), [0, 1, 2, 3]);
        assert_eq!(numbers(&packed.targets), [4, 5, 6]);
        assert_eq!(numbers(&packed.predictors), [2, 3, 2]);
        assert_eq!(packed.sequence_of_token(), [0, 0, 1]);
        assert_eq!(packed.sequences(), 3);
    }

    #[test]
    fn an_end_reads_the_state_after_the_last_token() {
        let group = Sequences { prompt: &[1, 2, 3], completions: vec![&[4, 5], &[]] };
        let packed = Packed::for_sequence_head(&[group], 10, HOST).unwrap();
        let numbers = |x: &Tensor| Vec::<i64>::try_from(x).unwrap();
        assert_eq!(numbers(&packed.ids), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&packed.predictors), [2, 3, 4, 2]);
        assert_eq!(packed.sequence_of_token(), [0, 0, 0, 1]);
    }

    #[test]
    fn foreign_tokens_and_empty_prompts_are_refused() {
        let foreign = Sequences { prompt: &[1], completions: vec![&[99]] };
        assert!(Packed::new(&[foreign], 10, HOST).unwrap_err().to_string().contains("token id 99"));
        let empty = Sequences { prompt: &[], completions: vec![&[1]] };
        assert!(Packed::new(&[empty], 10, HOST).unwrap_err().is_input());
    }
}
