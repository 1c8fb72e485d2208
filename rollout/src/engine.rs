//! The sampling engine: continuous batching over key/value slots.
//!
//! A prompt is prefilled once for all of its samples. Running sequences decode side by side, one token each per pass.
//! After a sequence has ended, the last running row moves into its slot and a waiting sample takes the free one, so no
//! pass computes a finished or padded row. The random number of each token depends only on the request's seed, the
//! sample and the position, so neither the batch nor the order of completion changes the sampled tokens. Float rounding
//! aside, greedy output does not depend on them either.

mod mixture;
mod queue;
mod sampler;
mod stop;
mod top_logprobs;

pub use queue::SampleId;
pub use top_logprobs::PromptLogprob;

use crate::config::{EngineConfig, check_sampler};
use crate::{Error, Result};
use mixture::SecondPolicy;
use model::Policy;
use model::cache::{KvCache, Prefill, Prefix};
use queue::Queue;
use sampler::RowSampler;
use schema::{Finish, Sample, SamplerSettings, Seed, Token};
use std::collections::{BTreeMap, BTreeSet};
use stop::StopSearch;
use tch::Tensor;

/// A prompt to continue, with the number of samples and their settings.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt, chat template included; at least one token.
    pub prompt_ids: Vec<Token>,
    /// Number of completions to sample.
    pub samples: usize,
    /// Temperature, truncation, length and stop strings of the samples.
    pub settings: SamplerSettings,
    /// Source of randomness; sample `i` uses the branch `seed.at(i)`.
    pub seed: Seed,
    /// Number of most likely tokens to report with each sampled one; 0 for none.
    pub top_logprobs: usize,
}

impl Request {
    /// The uniform number of a sample's token, in [0, 1); `own` is the sample's seed.
    ///
    /// The first `settings.stratify` tokens are drawn by systematic sampling (W. G. and L. H. Madow 1944): sample `i` of
    /// `n` has `u = (place of i in a random order + U) / n`, with one `U` for all. Each `u` alone is uniform and
    /// independent of the sample's other tokens, so every sample is distributed as ever; together they hit an interval of
    /// probability p `n p` times, rounded down or up.
    fn uniform(&self, sample: usize, token: u32, own: &Seed) -> f64 {
        if token >= self.settings.stratify || self.samples < 2 {
            return own.uniform(u64::from(token));
        }
        let shared = self.seed.child("stratify").at(u64::from(token));
        let place = shared.child("order").permutation(self.samples)[sample];
        (place as f64 + shared.uniform(0)) / self.samples as f64
    }
}

/// An event of one pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was sampled.
    Token {
        /// The sample that it belongs to.
        id: SampleId,
        /// The token.
        token: SampledToken,
    },
    /// A sample is complete.
    Finished {
        /// The sample's id.
        id: SampleId,
        /// The whole sample.
        sample: Sample,
    },
}

/// A sampled token with its log-probabilities, which are those of the raw softmax at the sampling temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token id.
    pub id: Token,
    /// Log-probability of the token.
    pub logprob: f32,
    /// The most likely tokens at this position with their log-probabilities, most likely first; as many as the request
    /// asks for.
    pub top_logprobs: Vec<(Token, f32)>,
}

/// A prompt that has been prefilled and still has samples to start.
struct Prefilled {
    prefix: Prefix,
    /// Prefix of the second policy of a mixture.
    second_prefix: Option<Prefix>,
    /// `[vocab]`, logits of the first token after the prompt.
    logits: Tensor,
}

/// A sequence that is decoding. Its row number is its slot.
struct Row {
    id: SampleId,
    seed: Seed,
    ids: Vec<Token>,
    logprobs: Vec<f32>,
    /// Tokens in the cache: the prompt and all sampled tokens but the last.
    cached: usize,
    /// Search for a stop string in the text so far.
    stop: StopSearch,
}

/// A sampler of one policy, or of a mixture of two, with continuous batching.
pub struct Engine {
    policy: Policy,
    config: EngineConfig,
    requests: BTreeMap<usize, Request>,
    next_request: usize,
    queue: Queue,
    prefilled: BTreeMap<usize, Prefilled>,
    rows: Vec<Row>,
    cache: Option<KvCache>,
    /// The second policy of a mixture.
    second: Option<SecondPolicy>,
}

impl Engine {
    /// Creates an engine that samples from this policy and follows its adapter as it is trained.
    pub fn new(policy: &Policy, config: EngineConfig) -> Self {
        Self {
            policy: policy.share(),
            config,
            requests: BTreeMap::new(),
            next_request: 0,
            queue: Queue::default(),
            prefilled: BTreeMap::new(),
            rows: Vec::new(),
            cache: None,
            second: None,
        }
    }

    /// Creates an engine that samples from the geometric mixture of two policies over one network, token by token.
    /// `weight`, in [0, 1], is that of `second`.
    pub fn mixture(policy: &Policy, second: &Policy, weight: f64, config: EngineConfig) -> Self {
        let second = Some(SecondPolicy { policy: second.share(), weight, cache: None });
        Self { second, ..Self::new(policy, config) }
    }

    /// The policy that the engine samples from; the first one of a mixture.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Replaces the policy. No sequence may be running.
    pub fn set_policy(&mut self, policy: &Policy) {
        debug_assert!(self.rows.is_empty(), "a policy is swapped between collections");
        self.policy = policy.share();
    }

    /// Adds a request to the queue and returns its number, which the events refer to.
    ///
    /// # Errors
    ///
    /// An input error if the prompt is empty, holds a token outside the vocabulary, or exceeds the model's context
    /// together with `max_new_tokens`; or if a sampler setting is out of range.
    pub fn submit(&mut self, request: Request) -> Result<usize> {
        check_sampler(&request.settings)?;
        let dimensions = self.policy.network().dimensions();
        let tokens = request.prompt_ids.len() + request.settings.max_new_tokens as usize;
        if request.prompt_ids.is_empty() {
            return Err(Error::input("a prompt has no tokens; give it text"));
        }
        if tokens > dimensions.max_position as usize {
            return Err(Error::input(format!(
                "a prompt of {} tokens and max_new_tokens = {} exceed the model's context of {} tokens; shorten one of them",
                request.prompt_ids.len(),
                request.settings.max_new_tokens,
                dimensions.max_position
            )));
        }
        if let Some(id) = request.prompt_ids.iter().find(|id| i64::from(**id) >= dimensions.vocab) {
            return Err(Error::input(format!(
                "the tokenizer gives token {id}, but the model's vocabulary has {}; do they belong together?",
                dimensions.vocab
            )));
        }
        let number = self.next_request;
        self.next_request += 1;
        self.queue.push(number, request.samples);
        self.requests.insert(number, request);
        Ok(number)
    }

    /// Drops a request: its waiting samples leave the queue, its running rows are freed.
    pub fn cancel(&mut self, request: usize) {
        self.queue.cancel(request);
        self.prefilled.remove(&request);
        while let Some(slot) = self.rows.iter().position(|row| row.id.request == request) {
            self.free(slot);
        }
        self.requests.remove(&request);
    }

    /// True if no sample is running or waiting.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.queue.is_empty()
    }

    /// Number of sequences that are decoding.
    pub fn running(&self) -> usize {
        self.rows.len()
    }

    /// Starts waiting samples in free slots, then samples one token for every running sequence.
    ///
    /// # Errors
    ///
    /// A runtime error if the network's outputs are not finite. The engine cannot go on then.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let _no_grad = tch::no_grad_guard();
        let mut events = Vec::new();
        self.admit(&mut events)?;
        self.decode(&mut events)?;
        let running: BTreeSet<usize> = self.rows.iter().map(|row| row.id.request).collect();
        let queue = &self.queue;
        self.requests.retain(|request, _| running.contains(request) || queue.waits(*request));
        Ok(events)
    }

    /// Samples all requests to their end and returns one list of samples per request, in order. `on_event` sees each
    /// event as it happens.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`step`](Self::step).
    pub fn run(&mut self, requests: Vec<Request>, on_event: &mut dyn FnMut(&Event)) -> Result<Vec<Vec<Sample>>> {
        let sizes: Vec<usize> = requests.iter().map(|request| request.samples).collect();
        let numbers = requests.into_iter().map(|request| self.submit(request)).collect::<Result<Vec<_>>>()?;
        let mut finished: BTreeMap<SampleId, Sample> = BTreeMap::new();
        while !self.is_idle() {
            for event in self.step()? {
                on_event(&event);
                if let Event::Finished { id, sample } = event {
                    finished.insert(id, sample);
                }
            }
        }
        let mut sample = |request: usize, sample: usize| finished.remove(&SampleId { request, sample });
        let groups = numbers
            .iter()
            .zip(&sizes)
            .map(|(request, size)| (0..*size).map_while(|index| sample(*request, index)).collect());
        Ok(groups.collect())
    }

    /// Fills free slots. A sample that ends with its first token frees its slot at once, so this repeats.
    fn admit(&mut self, events: &mut Vec<Event>) -> Result<()> {
        loop {
            self.make_room();
            let capacity = self.cache.as_ref().map_or(0, KvCache::capacity);
            let free = self.config.max_running - self.rows.len();
            let requests = &self.requests;
            let admitted =
                self.queue.admit(free, |request| requests.get(&request).is_some_and(|r| tokens(r) <= capacity));
            if admitted.is_empty() {
                return Ok(());
            }
            self.prefill(&admitted);
            self.start(&admitted, events)?;
            let queue = &self.queue;
            self.prefilled.retain(|request, _| queue.waits(*request));
        }
    }

    /// Allocates a larger cache if the front of the queue needs it and no sequence is running.
    fn make_room(&mut self) {
        let Some(front) = self.queue.front() else { return };
        let needed = self.requests.get(&front).map_or(0, tokens);
        let enough = self.cache.as_ref().is_some_and(|cache| cache.capacity() >= needed);
        if enough || !self.rows.is_empty() {
            return;
        }
        let longest = self.requests.values().map(tokens).max().unwrap_or(needed);
        // Multiples of 64 tokens, so that a slightly longer prompt does not allocate anew.
        let capacity = longest.next_multiple_of(64);
        let slots = self.config.max_running;
        self.cache = None;
        let dimensions = self.policy.network().dimensions();
        let cache = || KvCache::new(dimensions, slots, capacity, self.policy.device(), self.policy.kind());
        if let Some(second) = &mut self.second {
            second.cache = None;
            second.cache = Some(cache());
        }
        self.cache = Some(cache());
    }

    /// Prefills the prompts of admitted samples that have not been prefilled yet, packed, one token budget at a time.
    fn prefill(&mut self, admitted: &[SampleId]) {
        let mut new: Vec<usize> = admitted.iter().map(|id| id.request).collect();
        new.dedup();
        new.retain(|request| !self.prefilled.contains_key(request));
        let mut rest = &new[..];
        while !rest.is_empty() {
            let mut budget = self.config.prefill_tokens;
            let fits = |request: &usize| {
                let tokens = self.requests[request].prompt_ids.len();
                let fits = tokens <= budget;
                budget = budget.saturating_sub(tokens);
                fits
            };
            let count = rest
                .iter()
                .position({
                    let mut fits = fits;
                    move |request| !fits(request)
                })
                .unwrap_or(rest.len());
            let (batch, later) = rest.split_at(count.max(1));
            self.prefill_batch(batch);
            rest = later;
        }
    }

    fn prefill_batch(&mut self, batch: &[usize]) {
        let _span = tracing::info_span!(target: "phase", "prefill").entered();
        let prompts: Vec<&[Token]> = batch.iter().map(|request| &self.requests[request].prompt_ids[..]).collect();
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let ids: Vec<i64> = prompts.iter().flat_map(|prompt| prompt.iter().map(|id| i64::from(*id))).collect();
        let positions: Vec<i64> = lengths.iter().flat_map(|length| 0..*length as i64).collect();
        let last: Vec<i64> = lengths
            .iter()
            .scan(-1, |end, length| {
                *end += *length as i64;
                Some(*end)
            })
            .collect();

        let last = self.tensor(&last);
        let prefill = |policy: &Policy| {
            let mut attention = Prefill::new(&lengths);
            let hidden = self.forward(policy, &ids, &positions, &mut attention).index_select(0, &last);
            (attention.into_prefixes(), policy.logits(&hidden))
        };
        let (prefixes, logits) = prefill(&self.policy);
        let (second_prefixes, logits) = match &self.second {
            Some(second) => {
                let (prefixes, second_logits) = prefill(&second.policy);
                (prefixes, second.mix(&logits, &second_logits))
            }
            None => (Vec::new(), logits),
        };
        let mut second_prefixes = second_prefixes.into_iter();
        for ((request, prefix), row) in batch.iter().zip(prefixes).zip(0..) {
            let prefilled = Prefilled { prefix, second_prefix: second_prefixes.next(), logits: logits.get(row) };
            self.prefilled.insert(*request, prefilled);
        }
    }

    /// Samples the first token of each admitted sample and gives it a slot, unless that token ends it.
    fn start(&mut self, admitted: &[SampleId], events: &mut Vec<Event>) -> Result<()> {
        let rows: Vec<Row> = admitted
            .iter()
            .map(|&id| Row {
                id,
                seed: self.requests[&id.request].seed.at(id.sample as u64),
                ids: Vec::new(),
                logprobs: Vec::new(),
                cached: self.prefilled[&id.request].prefix.tokens(),
                stop: StopSearch::default(),
            })
            .collect();
        let logits: Vec<&Tensor> = admitted.iter().map(|id| &self.prefilled[&id.request].logits).collect();
        let logits = Tensor::stack(&logits, 0);
        let sampled = self.sample(&logits, &rows)?;
        for (mut row, token) in rows.into_iter().zip(sampled) {
            let Some(sample) = self.append(&mut row, token, events) else {
                let slot = self.rows.len();
                let prefilled = &self.prefilled[&row.id.request];
                let cache = self.cache.as_mut().expect("admission made room");
                cache.insert(slot, &prefilled.prefix);
                let second = self.second.as_mut().and_then(|second| second.cache.as_mut());
                if let Some((cache, prefix)) = second.zip(prefilled.second_prefix.as_ref()) {
                    cache.insert(slot, prefix);
                }
                self.rows.push(row);
                continue;
            };
            events.push(Event::Finished { id: row.id, sample });
        }
        Ok(())
    }

    /// Samples one token for every running row.
    fn decode(&mut self, events: &mut Vec<Event>) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let _span = tracing::info_span!(target: "phase", "decode", rows = self.rows.len()).entered();
        let ids: Vec<i64> = self.rows.iter().filter_map(|row| row.ids.last()).map(|id| i64::from(*id)).collect();
        let lengths: Vec<usize> = self.rows.iter().map(|row| row.cached).collect();
        let decode = |policy: &Policy, cache: &mut KvCache| {
            policy.logits(&policy.network().decode(&ids, &lengths, cache, policy.adapter()))
        };
        let mut cache = self.cache.take().expect("running rows have a cache");
        let mut logits = decode(&self.policy, &mut cache);
        if let Some(second) = &mut self.second {
            let cache = second.cache.as_mut().expect("running rows have a second cache");
            let second_logits = decode(&second.policy, cache);
            logits = second.mix(&logits, &second_logits);
        }
        self.cache = Some(cache);
        let sampled = self.sample(&logits, &self.rows)?;

        let mut rows = std::mem::take(&mut self.rows);
        let mut ended = Vec::new();
        for (slot, (row, token)) in rows.iter_mut().zip(sampled).enumerate() {
            row.cached += 1;
            if let Some(sample) = self.append(row, token, events) {
                events.push(Event::Finished { id: row.id, sample });
                ended.push(slot);
            }
        }
        self.rows = rows;
        // From the last, so that a row that moves into a freed slot is one that goes on.
        for slot in ended.into_iter().rev() {
            self.free(slot);
        }
        Ok(())
    }

    /// Frees a slot by moving the last running row into it.
    fn free(&mut self, slot: usize) {
        let last = self.rows.len() - 1;
        self.rows.swap_remove(slot);
        if slot < last
            && let Some(cache) = &mut self.cache
        {
            cache.relocate(last, slot, self.rows[slot].cached);
            if let Some(cache) = self.second.as_mut().and_then(|second| second.cache.as_mut()) {
                cache.relocate(last, slot, self.rows[slot].cached);
            }
        }
    }

    /// Samples the next token of each row from `logits`, `[row, vocab]`.
    fn sample(&self, logits: &Tensor, rows: &[Row]) -> Result<Vec<SampledToken>> {
        let samplers: Vec<RowSampler<'_>> = rows
            .iter()
            .map(|row| RowSampler {
                settings: &self.requests[&row.id.request].settings,
                uniform: self.requests[&row.id.request].uniform(row.id.sample, row.ids.len() as u32, &row.seed),
            })
            .collect();
        let tops = self.top_logprobs(logits, rows);
        let sampled = sampler::sample(logits, &samplers)?.into_iter().zip(tops);
        let tokens = sampled.map(|((id, logprob), mut top_logprobs)| {
            // A log-probability is at most 0; rounding may leave a trace above it.
            let logprob = logprob.min(0.0);
            // Summed in another order, the same log-probability may differ in its last digits.
            top_logprobs.iter_mut().filter(|(token, _)| *token == id).for_each(|(_, own)| *own = logprob);
            SampledToken { id, logprob, top_logprobs }
        });
        Ok(tokens.collect())
    }

    /// Appends a token to a row; returns the sample if it is complete now.
    fn append(&self, row: &mut Row, token: SampledToken, events: &mut Vec<Event>) -> Option<Sample> {
        let id = token.id;
        row.ids.push(id);
        row.logprobs.push(token.logprob);
        events.push(Event::Token { id: row.id, token });
        let settings = &self.requests[&row.id.request].settings;
        let tokenizer = self.policy.tokenizer();
        let (finish, text) = if tokenizer.eos_ids().contains(&id) {
            (Finish::Eos, tokenizer.decode(&row.ids))
        } else if let Some(text) = row.stop.text_before(tokenizer, &row.ids, &settings.stop) {
            (Finish::Stop, text)
        } else if row.ids.len() >= settings.max_new_tokens as usize {
            (Finish::Length, tokenizer.decode(&row.ids))
        } else {
            return None;
        };
        let ids = std::mem::take(&mut row.ids);
        Some(Sample { mask: vec![true; ids.len()], logprobs: std::mem::take(&mut row.logprobs), ids, finish, text })
    }

    fn forward(
        &self,
        policy: &Policy,
        ids: &[i64],
        positions: &[i64],
        attention: &mut dyn model::attention::Attention,
    ) -> Tensor {
        policy.network().forward(&self.tensor(ids), &self.tensor(positions), attention, policy.adapter())
    }

    fn tensor(&self, numbers: &[i64]) -> Tensor {
        Tensor::from_slice(numbers).to_device(self.policy.device())
    }
}

/// Maximum length of a sequence of this request, in tokens.
fn tokens(request: &Request) -> usize {
    request.prompt_ids.len() + request.settings.max_new_tokens as usize
}

#[cfg(test)]
mod tests;
