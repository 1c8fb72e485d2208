//! From units to tensors: what one forward and backward pass works on.

mod logprobs;
mod signal;

pub use logprobs::SequenceLogprobs;
pub(crate) use logprobs::per_sequence;
pub use signal::{BatchSignal, Signal, Signals};
pub(crate) use signal::{advantages, side_sums, sides};

use crate::collected::{PromptSequences, Sequence, Unit};
use crate::companion::{ByRole, Role};
use crate::objective::{Denominator, Rows};
use crate::{Error, Result};
use model::packed::{Packed, Sequences};
use schema::{Seed, Token};
use std::borrow::Cow;
use std::ops::Range;
use tch::{Device, Tensor};

/// The tensors of one micro-batch; every `[token]` runs over the completion tokens of its sequences.
#[derive(Debug)]
pub struct Batch {
    /// The tokens themselves, prompts once per unit.
    pub packed: Packed,
    /// The sequence of each token, and the tokens that are trained on.
    pub rows: Rows,
    /// The sequences of each unit, in order.
    pub units: Vec<Range<usize>>,
    /// The training signal.
    pub signal: BatchSignal,
    /// `[token]` f32: log-probs under the policy that sampled the tokens, as stored; `None` for a data set.
    pub behaviour_logprobs: Option<Tensor>,
    /// `[token]` f32: log-probs at the start of the step; `None` where a step has a single update, whose own log-probs they
    /// are.
    pub proximal_logprobs: Option<Tensor>,
    /// `[token]` f32 each: log-probs under the companions that the method consults.
    pub companion_logprobs: ByRole<Tensor>,
    /// `[token]` f32: the critic's values at the start of the step; `None` without a critic.
    pub old_values: Option<Tensor>,
    /// The denominator of sums of token losses, counted over the whole optimizer batch.
    pub denominator: Denominator,
}

impl Batch {
    /// `[token]`: log-probs under a companion; `None` where the method does not consult it.
    pub fn logprobs_of(&self, role: Role) -> Option<&Tensor> {
        self.companion_logprobs.get(role)
    }

    /// `[token]`: log-probs under the policy that sampled the tokens.
    ///
    /// # Panics
    /// If the tokens are those of a data set: no method that trains on one reads them.
    pub fn behaviour(&self) -> &Tensor {
        self.behaviour_logprobs.as_ref().unwrap_or_else(|| unreachable!("a data set has no behaviour log-probs"))
    }
}

/// The micro-batches of one optimizer update.
#[derive(Debug)]
pub struct MiniBatch {
    /// One forward and backward pass each.
    pub micro_batches: Vec<Batch>,
    /// Tokens in the loss, computed or not.
    pub trained_tokens: i64,
}

/// The limits of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct MicroBatchLimits {
    /// Tokens of one forward pass at most, prompts included; a single longer sequence still goes in one pass.
    pub tokens: usize,
    /// Tokens in the model's vocabulary.
    pub vocab: i64,
    /// The device of the tensors.
    pub device: Device,
}

/// The leaves that a loss is a function of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The log-prob of every token, and the critic's value before it where there is a critic.
    Tokens,
    /// The critic's value after the last token of each sequence, and nothing else. A sequence has one more position behind
    /// its last token, and that one alone is trained on.
    SequenceEnds,
}

/// The treatment of sequences whose advantage is exactly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroAdvantage {
    /// They have no gradient, so they are counted in denominators but not computed.
    Skip,
    /// They are computed: a penalty acts on every sequence.
    Compute,
}

/// The rules by which a method's sequences become batches.
pub struct BatchRules<'a> {
    /// The leaves that the loss is a function of.
    pub reads: Reads,
    /// The treatment of sequences without a gradient.
    pub zero_advantage: ZeroAdvantage,
    /// Optimizer updates in one pass over the units.
    pub minibatches: usize,
    /// The least number of micro-batches, where there are sequences enough: as many processes compute them.
    pub shares: usize,
    /// Says if the tokens of a sequence are in the loss and its denominator.
    pub trains_on: &'a dyn Fn(&Sequence<'_>) -> bool,
    /// The denominator of an optimizer batch, from the trained tokens of each of its sequences.
    pub denominator: &'a dyn Fn(&[i64]) -> Denominator,
}

/// The units of one step with all that is known of them.
#[derive(Debug, Clone, Copy)]
pub struct StepData<'a> {
    /// The units.
    pub units: &'a [Unit<'a>],
    /// The signal of each sequence.
    pub signals: &'a [Vec<Option<Signal>>],
    /// Log-probs of each sequence, if they were computed before the signal.
    pub logprobs: Option<&'a [Vec<SequenceLogprobs>]>,
}

/// The address of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Index {
    unit: usize,
    sequence: usize,
}

impl Index {
    fn every<U: PromptSequences>(units: &[U]) -> Vec<Self> {
        let of_unit =
            |(unit, sequences): (usize, &U)| (0..sequences.count()).map(move |sequence| Self { unit, sequence });
        units.iter().enumerate().flat_map(of_unit).collect()
    }

    fn of<T>(self, table: &[Vec<T>]) -> &T {
        &table[self.unit][self.sequence]
    }

    fn sequence<U: PromptSequences>(self, units: &[U]) -> Sequence<'_> {
        units[self.unit].sequence(self.sequence)
    }
}

/// The treatment of units whose sequences must stay in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Together {
    /// Those of a pair do.
    WholeUnits,
    /// Nothing is computed across sequences.
    Never,
}

/// Cuts units into optimizer batches and those into micro-batches. A unit's sequences stay in one optimizer batch; `seed`
/// decides in which.
///
/// # Errors
/// If a sequence's tokens, mask and log-probs differ in length, or a token is outside the vocabulary.
pub fn mini_batches(
    data: &StepData<'_>,
    rules: &BatchRules<'_>,
    limits: MicroBatchLimits,
    seed: &Seed,
) -> Result<Vec<MiniBatch>> {
    let units = data.units;
    let order = if rules.minibatches > 1 { seed.permutation(units.len()) } else { (0..units.len()).collect() };
    let share = order.len().div_ceil(rules.minibatches).max(1);
    order
        .chunks(share)
        .map(|part| {
            let trained = trained(part, data, rules);
            let tokens: Vec<i64> =
                trained.iter().map(|index| trained_tokens(&index.sequence(units), rules.reads)).collect();
            let denominator = (rules.denominator)(&tokens);
            let computed: Vec<Index> = trained
                .into_iter()
                .filter(|index| {
                    rules.zero_advantage == ZeroAdvantage::Compute
                        || index.of(data.signals).as_ref().is_some_and(|signal| !signal.is_zero())
                })
                .collect();
            let limit = limits.tokens.min(total_tokens(units, &computed).div_ceil(rules.shares));
            let micro_batches = micro_batches(units, &computed, limit, rules.reads, Together::WholeUnits)
                .iter()
                .map(|part| Batch::new(data, part, rules.reads, denominator, limits))
                .collect::<Result<_>>()?;
            Ok(MiniBatch { micro_batches, trained_tokens: tokens.iter().sum() })
        })
        .collect()
}

fn trained_tokens(sequence: &Sequence<'_>, reads: Reads) -> i64 {
    match reads {
        Reads::Tokens => sequence.trained_tokens() as i64,
        Reads::SequenceEnds => 1,
    }
}

/// The sequences of these units that are in the loss.
fn trained(part: &[usize], data: &StepData<'_>, rules: &BatchRules<'_>) -> Vec<Index> {
    let of_unit = |&unit: &usize| (0..data.signals[unit].len()).map(move |sequence| Index { unit, sequence });
    part.iter()
        .flat_map(of_unit)
        .filter(|index| index.of(data.signals).is_some() && (rules.trains_on)(&index.sequence(data.units)))
        .collect()
}

/// The tokens of these sequences, each prompt counted once.
fn total_tokens<U: PromptSequences>(units: &[U], part: &[Index]) -> usize {
    let of_unit = |part: &[Index]| {
        let prompt = units[part[0].unit].prompt_ids().len();
        prompt + part.iter().map(|index| index.sequence(units).len()).sum::<usize>()
    };
    part.chunk_by(|a, b| a.unit == b.unit).map(of_unit).sum()
}

/// Cuts sequences, which are sorted by unit, so that each part computes at most `limit` tokens, prompts included.
fn micro_batches<U: PromptSequences>(
    units: &[U],
    sequences: &[Index],
    limit: usize,
    reads: Reads,
    together: Together,
) -> Vec<Vec<Index>> {
    let extra = usize::from(reads == Reads::SequenceEnds);
    let own = |index: &Index| (index.sequence(units).len() + extra).saturating_sub(1);
    let inseparable =
        |a: &Index, b: &Index| together == Together::WholeUnits && a.unit == b.unit && units[a.unit].is_whole();
    let mut parts: Vec<Vec<Index>> = Vec::new();
    let mut tokens = 0;
    for block in sequences.chunk_by(inseparable) {
        let prompt = units[block[0].unit].prompt_ids().len();
        let completions: usize = block.iter().map(own).sum();
        let same_unit = parts.last().and_then(|part| part.last()).is_some_and(|last| last.unit == block[0].unit);
        let added = completions + if same_unit { 0 } else { prompt };
        match parts.last_mut() {
            Some(part) if tokens + added <= limit => {
                part.extend(block);
                tokens += added;
            }
            _ => {
                parts.push(block.to_vec());
                tokens = completions + prompt;
            }
        }
    }
    parts
}

/// The tokens of a prompt and of its completions.
type PromptAndCompletions<'a> = (&'a [Token], Vec<Cow<'a, [Token]>>);

/// The tokens of some sequences, unit by unit.
struct PackedSequences<'a> {
    /// The sequences of each unit, by their index in the batch.
    ranges: Vec<Range<usize>>,
    /// Each unit's prompt and completions.
    units: Vec<PromptAndCompletions<'a>>,
}

fn packed_sequences<'a, U: PromptSequences>(units: &'a [U], part: &[Index]) -> PackedSequences<'a> {
    let mut start = 0;
    let of_unit = |part: &[Index]| {
        let range = start..start + part.len();
        start = range.end;
        let completions = part.iter().map(|index| index.sequence(units).ids).collect();
        (range, (units[part[0].unit].prompt_ids(), completions))
    };
    let (ranges, units) = part.chunk_by(|a, b| a.unit == b.unit).map(of_unit).unzip();
    PackedSequences { ranges, units }
}

impl PackedSequences<'_> {
    fn pack(&self, reads: Reads, limits: MicroBatchLimits) -> Result<Packed> {
        let sequences: Vec<Sequences<'_>> = self
            .units
            .iter()
            .map(|(prompt, completions)| Sequences {
                prompt,
                completions: completions.iter().map(|it| &it[..]).collect(),
            })
            .collect();
        Ok(match reads {
            Reads::Tokens => Packed::new(&sequences, limits.vocab, limits.device)?,
            Reads::SequenceEnds => Packed::for_sequence_head(&sequences, limits.vocab, limits.device)?,
        })
    }
}

impl Batch {
    fn new(
        data: &StepData<'_>,
        part: &[Index],
        reads: Reads,
        denominator: Denominator,
        limits: MicroBatchLimits,
    ) -> Result<Self> {
        if let Some(index) = part.iter().find(|index| !index.sequence(data.units).is_consistent()) {
            return Err(Error::runtime(format!(
                "sample {} of group {} has ids, mask and log-probabilities of different lengths or a log-probability above 0",
                index.sequence, index.unit
            )));
        }
        let sequences = packed_sequences(data.units, part);
        let columns = Columns::new(data, part, reads);
        let signals: Vec<&Signal> = part.iter().filter_map(|index| index.of(data.signals).as_ref()).collect();
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).to_device(limits.device);
        let known = |numbers: &[f32]| (!numbers.is_empty()).then(|| tensor(numbers));
        Ok(Self {
            packed: sequences.pack(reads, limits)?,
            rows: Rows::new(&columns.lengths, &columns.mask, limits.device)?,
            units: sequences.ranges,
            signal: BatchSignal::new(&signals, &columns.lengths, limits.device),
            behaviour_logprobs: columns.behaviour.as_deref().map(tensor),
            proximal_logprobs: known(&columns.proximal),
            companion_logprobs: columns
                .companions
                .iter()
                .filter_map(|(role, numbers)| Some((role, known(numbers)?)))
                .collect(),
            old_values: known(&columns.values),
            denominator,
        })
    }
}

/// Everything that is known of each token, end to end; what is not known stays empty.
#[derive(Default)]
struct Columns {
    lengths: Vec<usize>,
    mask: Vec<bool>,
    /// `None` for completions of a data set.
    behaviour: Option<Vec<f32>>,
    proximal: Vec<f32>,
    companions: ByRole<Vec<f32>>,
    values: Vec<f32>,
}

impl Columns {
    fn new(data: &StepData<'_>, part: &[Index], reads: Reads) -> Self {
        let mut columns = Self::default();
        for index in part {
            let sequence = index.sequence(data.units);
            match reads {
                Reads::Tokens => columns.mask.extend(sequence.mask().iter()),
                Reads::SequenceEnds => columns.mask.extend((0..=sequence.len()).map(|token| token == sequence.len())),
            }
            columns.lengths.push(sequence.len() + usize::from(reads == Reads::SequenceEnds));
            if let Some(logprobs) = sequence.behaviour_logprobs {
                columns.behaviour.get_or_insert_default().extend(logprobs);
            }
            if let Some(known) = data.logprobs.map(|logprobs| index.of(logprobs)) {
                columns.proximal.extend(&known.policy);
                columns.values.extend(&known.values);
                for (role, logprobs) in known.companions.iter() {
                    columns.companions.entry(role).extend(logprobs);
                }
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests;
