//! From scored groups to tensors: what one forward and backward pass works on.

use crate::algorithm::{Algorithm, Credit, Needs, Reads, SampleScores, Samples, Schedule, ZeroCredit};
use crate::objective::{Denominator, Rows};
use crate::{Error, Result};
use model::packed::{Packed, Sequences};
use schema::{GradedGroup, Sample, Seed};
use std::ops::Range;
use tch::{Device, Tensor};

/// The tensors of one micro-batch; every `[token]` runs over the scored completion tokens of its sequences.
#[derive(Debug)]
pub struct Batch {
    /// The tokens themselves, prompts once per group.
    pub packed: Packed,
    /// Which token belongs to which sequence and is trained on.
    pub rows: Rows,
    /// The sequences of each group, in order.
    pub groups: Vec<Range<usize>>,
    /// `[token]` f32: the credit of each token.
    pub advantages: Tensor,
    /// `[token]` f32: what the critic is fitted to, where there is one.
    pub returns: Option<Tensor>,
    /// `[token]` f32: log-probabilities under the policy that drew the tokens, as stored.
    pub behaviour_logprobs: Tensor,
    /// `[token]` f32: log-probabilities at the start of the step; absent where a step has a single update, whose own
    /// log-probabilities they are.
    pub proximal_logprobs: Option<Tensor>,
    /// `[token]` f32: log-probabilities under the reference policy, where the algorithm needs them.
    pub reference_logprobs: Option<Tensor>,
    /// `[token]` f32: log-probabilities under the moving average of the policy, where the algorithm needs them.
    pub anchor_logprobs: Option<Tensor>,
    /// `[token]` f32: log-probabilities under the policy of one step earlier, where the schedule asks for them.
    pub previous_logprobs: Option<Tensor>,
    /// `[token]` f32: the critic's values at the start of the step, where there is one.
    pub old_values: Option<Tensor>,
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

/// The samples of one step with all that is known of them.
#[derive(Debug, Clone, Copy)]
pub struct Material<'a> {
    /// The samples.
    pub groups: &'a [GradedGroup],
    /// What each is worth.
    pub credits: &'a [Vec<Option<Credit>>],
    /// What the policies say of each, if they were scored before credit was given.
    pub scores: Option<&'a [Vec<SampleScores>]>,
}

/// Where a sample stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    group: usize,
    sample: usize,
}

impl Place {
    fn of<T>(self, table: &[Vec<T>]) -> &T {
        &table[self.group][self.sample]
    }

    fn sample(self, groups: &[GradedGroup]) -> &Sample {
        &groups[self.group].group().samples[self.sample]
    }
}

/// Cuts scored groups into optimizer batches and those into micro-batches. Whole groups stay in one optimizer batch;
/// `seed` decides which. There are at least `shares` micro-batches, where there are samples enough: as many processes will
/// compute them.
pub fn mini_batches(
    material: &Material<'_>,
    algorithm: &dyn Algorithm,
    schedule: &Schedule,
    cut: Cut,
    shares: usize,
    seed: &Seed,
) -> Result<Vec<MiniBatch>> {
    let needs = algorithm.needs();
    let groups = material.groups;
    let order = if schedule.minibatches > 1 { seed.permutation(groups.len()) } else { (0..groups.len()).collect() };
    let share = order.len().div_ceil(schedule.minibatches).max(1);
    order
        .chunks(share)
        .map(|part| {
            let places = credited(part, material, algorithm);
            let trained: Vec<i64> =
                places.iter().map(|place| trained_tokens(place.sample(groups), needs.reads)).collect();
            let denominator = algorithm.denominator(&trained);
            let computed: Vec<Place> = places
                .into_iter()
                .filter(|place| {
                    needs.zero_credit == ZeroCredit::Compute
                        || place.of(material.credits).as_ref().is_some_and(|credit| !credit.is_zero())
                })
                .collect();
            let limit = cut.micro_batch_tokens.min(tokens(groups, &computed).div_ceil(shares));
            let micro_batches = micro_batches(groups, &computed, limit, &needs)
                .iter()
                .map(|places| Batch::new(material, places, &needs, denominator, cut))
                .collect::<Result<_>>()?;
            Ok(MiniBatch { micro_batches, trained_tokens: trained.iter().sum() })
        })
        .collect()
}

/// Every sample in packed passes, in order; `score` gives any number of `[token]` tensors for a pass, which come back
/// sample by sample: one list per tensor.
pub(crate) fn score_samples(
    groups: &[GradedGroup],
    cut: Cut,
    mut score: impl FnMut(&Packed) -> Vec<Tensor>,
) -> Result<Vec<Vec<Vec<Vec<f32>>>>> {
    let every: Vec<Place> = groups
        .iter()
        .enumerate()
        .flat_map(|(group, scored)| (0..scored.group().samples.len()).map(move |sample| Place { group, sample }))
        .collect();
    let mut scores: Vec<Vec<Vec<Vec<f32>>>> =
        groups.iter().map(|scored| Vec::with_capacity(scored.group().samples.len())).collect();
    for places in micro_batches(groups, &every, cut.micro_batch_tokens, &Needs::default()) {
        let packed = Packed::new(&sequences(groups, &places).1, cut.vocab, cut.device)?;
        let columns =
            score(&packed).iter().map(|column| Ok(Vec::<f32>::try_from(column)?)).collect::<Result<Vec<_>>>()?;
        let mut start = 0;
        for place in &places {
            let tokens = start..start + place.sample(groups).len();
            start = tokens.end;
            scores[place.group].push(columns.iter().map(|column| column[tokens.clone()].to_vec()).collect());
        }
    }
    Ok(scores)
}

fn trained_tokens(sample: &Sample, reads: Reads) -> i64 {
    match reads {
        Reads::Tokens => sample.mask.iter().filter(|trained| **trained).count() as i64,
        Reads::Ends => 1,
    }
}

/// The samples of these groups that are in the loss.
fn credited(part: &[usize], material: &Material<'_>, algorithm: &dyn Algorithm) -> Vec<Place> {
    let of_group = |&group: &usize| (0..material.credits[group].len()).map(move |sample| Place { group, sample });
    part.iter()
        .flat_map(of_group)
        .filter(|place| place.of(material.credits).is_some() && algorithm.trains_on(place.sample(material.groups)))
        .collect()
}

/// The tokens of these samples, each prompt counted once.
fn tokens(groups: &[GradedGroup], places: &[Place]) -> usize {
    let of_group = |part: &[Place]| {
        let prompt = groups[part[0].group].group().prompt_ids.len();
        prompt + part.iter().map(|place| place.sample(groups).len()).sum::<usize>()
    };
    places.chunk_by(|a, b| a.group == b.group).map(of_group).sum()
}

/// Cuts samples, which are sorted by group, so that each part computes at most `limit` tokens, prompts included.
/// Pairs stay together.
fn micro_batches(groups: &[GradedGroup], places: &[Place], limit: usize, needs: &Needs) -> Vec<Vec<Place>> {
    let whole_groups = needs.whole_groups || needs.samples == Samples::Pairs;
    let extra = usize::from(needs.reads == Reads::Ends);
    let own = |place: &Place| (place.sample(groups).len() + extra).saturating_sub(1);
    let units = places.chunk_by(|a, b| whole_groups && a.group == b.group);
    let mut parts: Vec<Vec<Place>> = Vec::new();
    let mut tokens = 0;
    for unit in units {
        let prompt = groups[unit[0].group].group().prompt_ids.len();
        let completions: usize = unit.iter().map(own).sum();
        let same_group = parts.last().and_then(|part| part.last()).is_some_and(|last| last.group == unit[0].group);
        let added = completions + if same_group { 0 } else { prompt };
        match parts.last_mut() {
            Some(part) if tokens + added <= limit => {
                part.extend(unit);
                tokens += added;
            }
            _ => {
                parts.push(unit.to_vec());
                tokens = completions + prompt;
            }
        }
    }
    parts
}

/// The tokens of each group's samples, and the range of samples of each group.
fn sequences<'a>(groups: &'a [GradedGroup], places: &[Place]) -> (Vec<Range<usize>>, Vec<Sequences<'a>>) {
    let mut start = 0;
    places
        .chunk_by(|a, b| a.group == b.group)
        .map(|part| {
            let range = start..start + part.len();
            start = range.end;
            let prompt = &groups[part[0].group].group().prompt_ids;
            (range, Sequences { prompt, completions: part.iter().map(|place| &place.sample(groups).ids[..]).collect() })
        })
        .unzip()
}

impl Batch {
    fn new(
        material: &Material<'_>,
        places: &[Place],
        needs: &Needs,
        denominator: Denominator,
        cut: Cut,
    ) -> Result<Self> {
        let groups = material.groups;
        if let Some(place) = places.iter().find(|place| !place.sample(groups).is_consistent()) {
            return Err(Error::runtime(format!(
                "sample {} of group {} has ids, mask and log-probabilities of different lengths or a log-probability above 0",
                place.sample, place.group
            )));
        }
        let (ranges, sequences) = sequences(groups, places);
        let columns = Columns::new(material, places, needs.reads);
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).to_device(cut.device);
        let known = |numbers: &[f32]| (!numbers.is_empty()).then(|| tensor(numbers));
        Ok(Self {
            packed: match needs.reads {
                Reads::Tokens => Packed::new(&sequences, cut.vocab, cut.device)?,
                Reads::Ends => Packed::with_ends(&sequences, cut.vocab, cut.device)?,
            },
            rows: Rows::new(&columns.lengths, &columns.mask, cut.device)?,
            groups: ranges,
            advantages: tensor(&columns.advantages),
            returns: known(&columns.returns),
            behaviour_logprobs: tensor(&columns.behaviour),
            proximal_logprobs: known(&columns.proximal),
            reference_logprobs: known(&columns.reference),
            anchor_logprobs: known(&columns.anchor),
            previous_logprobs: None,
            old_values: known(&columns.values),
            denominator,
        })
    }
}

/// What is known of each token, end to end; what is not known stays empty.
#[derive(Default)]
struct Columns {
    lengths: Vec<usize>,
    mask: Vec<bool>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
    behaviour: Vec<f32>,
    proximal: Vec<f32>,
    reference: Vec<f32>,
    anchor: Vec<f32>,
    values: Vec<f32>,
}

impl Columns {
    fn new(material: &Material<'_>, places: &[Place], reads: Reads) -> Self {
        let mut columns = Self::default();
        for place in places {
            let sample = place.sample(material.groups);
            let length = sample.len() + usize::from(reads == Reads::Ends);
            columns.lengths.push(length);
            match reads {
                Reads::Tokens => columns.mask.extend(&sample.mask),
                Reads::Ends => columns.mask.extend((1..=length).map(|place| place == length)),
            }
            columns.behaviour.extend(&sample.logprobs);
            columns.behaviour.resize(columns.mask.len(), 0.0);
            match place.of(material.credits) {
                Some(Credit::Whole(advantage)) => columns.advantages.resize(columns.mask.len(), *advantage as f32),
                Some(Credit::Tokens { advantages, returns }) => {
                    columns.advantages.extend(advantages);
                    columns.returns.extend(returns);
                }
                None => columns.advantages.resize(columns.mask.len(), 0.0),
            }
            if let Some(scores) = material.scores.map(|scores| place.of(scores)) {
                columns.proximal.extend(&scores.logprobs);
                columns.reference.extend(&scores.reference);
                columns.anchor.extend(&scores.anchor);
                columns.values.extend(&scores.values);
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests;
