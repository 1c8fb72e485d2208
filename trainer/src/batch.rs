//! From scored groups to tensors: what one forward and backward pass works on.

use crate::algorithm::{Algorithm, ZeroCredit};
use crate::objective::{Denominator, Rows};
use crate::{Error, Result};
use model::packed::{Packed, Sequences};
use schema::{Sample, ScoredGroup, Seed};
use tch::{Device, Tensor};

/// One sample with its credit.
#[derive(Debug, Clone, Copy)]
struct Item {
    group: usize,
    sample: usize,
    advantage: f64,
}

/// The tensors of one micro-batch; every `[token]` runs over the scored completion tokens of its sequences.
#[derive(Debug)]
pub struct Batch {
    /// The tokens themselves, prompts once per group.
    pub packed: Packed,
    /// Which token belongs to which sequence and is trained on.
    pub rows: Rows,
    /// `[token]` f32: the credit of each token's sample.
    pub advantages: Tensor,
    /// `[token]` f32: log-probabilities under the policy that drew the tokens, as stored.
    pub behaviour_logprobs: Tensor,
    /// `[token]` f32: log-probabilities at the start of the step; absent where a step has a single update, whose own
    /// log-probabilities they are.
    pub proximal_logprobs: Option<Tensor>,
    /// `[token]` f32: log-probabilities under the reference policy, where the algorithm needs them.
    pub reference_logprobs: Option<Tensor>,
    /// What sums of token losses are divided by, counted over the whole optimizer batch.
    pub denominator: Denominator,
}

/// The micro-batches of one optimizer update.
#[derive(Debug)]
pub struct MiniBatch {
    /// One forward and backward pass each.
    pub micro_batches: Vec<Batch>,
    /// Tokens in the loss, computed or not.
    pub trained_tokens: i64,
}

/// How batches are cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Tokens of one forward pass at most; a single longer sequence still goes in one pass.
    pub micro_batch_tokens: usize,
    /// Tokens in the model's vocabulary.
    pub vocab: i64,
    /// Where the tensors go.
    pub device: Device,
}

/// Cuts scored groups into optimizer batches and those into micro-batches. Whole groups stay in one optimizer batch;
/// `seed` decides which.
pub fn mini_batches(
    groups: &[ScoredGroup],
    algorithm: &dyn Algorithm,
    cut: Cut,
    seed: &Seed,
) -> Result<Vec<MiniBatch>> {
    let needs = algorithm.needs();
    let credit = algorithm.credit(groups);
    let order = if needs.minibatches > 1 { seed.permutation(groups.len()) } else { (0..groups.len()).collect() };
    let share = order.len().div_ceil(needs.minibatches).max(1);
    order
        .chunks(share)
        .map(|part| {
            let items = items(part, groups, &credit, algorithm);
            let trained: Vec<i64> = items.iter().map(|item| trained_tokens(sample(groups, item))).collect();
            let denominator = algorithm.denominator(&trained);
            let computed: Vec<Item> = items
                .into_iter()
                .filter(|item| needs.zero_credit == ZeroCredit::Compute || item.advantage != 0.0)
                .collect();
            let micro_batches = micro_batches(groups, &computed, cut.micro_batch_tokens)
                .iter()
                .map(|items| Batch::new(groups, items, denominator, cut))
                .collect::<Result<_>>()?;
            Ok(MiniBatch { micro_batches, trained_tokens: trained.iter().sum() })
        })
        .collect()
}

fn sample<'a>(groups: &'a [ScoredGroup], item: &Item) -> &'a Sample {
    &groups[item.group].group().samples[item.sample]
}

fn trained_tokens(sample: &Sample) -> i64 {
    sample.mask.iter().filter(|trained| **trained).count() as i64
}

/// The samples of these groups that are in the loss.
fn items(part: &[usize], groups: &[ScoredGroup], credit: &[Vec<Option<f64>>], algorithm: &dyn Algorithm) -> Vec<Item> {
    let of_group = |group: usize| {
        credit[group].iter().enumerate().filter_map(move |(sample, advantage)| {
            let advantage = (*advantage)?;
            algorithm.trains_on(&groups[group].group().samples[sample]).then_some(Item { group, sample, advantage })
        })
    };
    part.iter().flat_map(|group| of_group(*group)).collect()
}

/// Cuts items, which are sorted by group, so that each part computes at most `limit` tokens, prompts included.
fn micro_batches(groups: &[ScoredGroup], items: &[Item], limit: usize) -> Vec<Vec<Item>> {
    let mut parts: Vec<Vec<Item>> = Vec::new();
    let mut tokens = 0;
    for item in items {
        let own = sample(groups, item).len().saturating_sub(1);
        let prompt = groups[item.group].group().prompt_ids.len();
        let same_group = parts.last().and_then(|part| part.last()).is_some_and(|last| last.group == item.group);
        let added = own + if same_group { 0 } else { prompt };
        match parts.last_mut() {
            Some(part) if tokens + added <= limit => {
                part.push(*item);
                tokens += added;
            }
            _ => {
                parts.push(vec![*item]);
                tokens = own + prompt;
            }
        }
    }
    parts
}

impl Batch {
    fn new(groups: &[ScoredGroup], items: &[Item], denominator: Denominator, cut: Cut) -> Result<Self> {
        let samples = || items.iter().map(|item| (item, sample(groups, item)));
        if let Some((item, _)) = samples().find(|(_, sample)| !sample.is_consistent()) {
            return Err(Error::runtime(format!(
                "sample {} of group {} has ids, mask and log-probabilities of different lengths or a log-probability above 0",
                item.sample, item.group
            )));
        }
        let sequences: Vec<Sequences<'_>> = items
            .chunk_by(|a, b| a.group == b.group)
            .map(|part| Sequences {
                prompt: &groups[part[0].group].group().prompt_ids,
                completions: part.iter().map(|item| &sample(groups, item).ids[..]).collect(),
            })
            .collect();
        let lengths: Vec<usize> = samples().map(|(_, sample)| sample.len()).collect();
        let mask: Vec<bool> = samples().flat_map(|(_, sample)| sample.mask.iter().copied()).collect();
        let behaviour: Vec<f32> = samples().flat_map(|(_, sample)| sample.logprobs.iter().copied()).collect();
        let advantages: Vec<f32> =
            samples().flat_map(|(item, sample)| std::iter::repeat_n(item.advantage as f32, sample.len())).collect();
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).to_device(cut.device);
        Ok(Self {
            packed: Packed::new(&sequences, cut.vocab, cut.device)?,
            rows: Rows::new(&lengths, &mask, cut.device)?,
            advantages: tensor(&advantages),
            behaviour_logprobs: tensor(&behaviour),
            proximal_logprobs: None,
            reference_logprobs: None,
            denominator,
        })
    }
}

#[cfg(test)]
mod tests;
