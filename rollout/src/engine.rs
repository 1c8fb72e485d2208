//! The sampling engine: continuous batching over key/value slots.
//!
//! A prompt is prefilled once for all of its samples. Running sequences decode side by side, one token each per pass;
//! when one ends, the last running row moves into its slot and a waiting sample takes the free place, so no pass
//! computes a finished or padded row. Every draw has an address (request seed, sample, token), so neither the batch nor
//! the order of completion changes what is drawn; float rounding aside, greedy output does not depend on it either.

mod likeliest;
mod queue;
mod sampler;
mod twin;

pub use likeliest::TokenScore;
pub use queue::SampleId;

use crate::config::{EngineConfig, check_sampler};
use crate::{Error, Result};
use model::Policy;
use model::cache::{KvCache, Prefill, Prefix};
use queue::Queue;
use sampler::Draw;
use schema::{Finish, Sample, SamplerSettings, Seed, Token};
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;
use twin::Twin;

/// What to continue, how often and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt, chat template included; at least one token.
    pub prompt_ids: Vec<Token>,
    /// How many completions to draw.
    pub samples: usize,
    /// How to draw them.
    pub settings: SamplerSettings,
    /// Where their randomness comes from: sample `i` uses the branch `seed.at(i)`.
    pub seed: Seed,
}

/// What happened in one pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was drawn.
    Token {
        /// By which sample.
        id: SampleId,
        /// The token.
        token: Token,
        /// The log of its raw probability at the sampling temperature.
        logprob: f32,
    },
    /// The likeliest tokens at the place that a watched sample draws next; its [`Event::Token`] follows.
    Likeliest {
        /// Whose place.
        id: SampleId,
        /// Tokens with the log of their raw probability at the sampling temperature, likeliest first.
        tokens: Vec<(Token, f32)>,
    },
    /// A sample is complete.
    Finished {
        /// Which one.
        id: SampleId,
        /// The whole sample.
        sample: Sample,
    },
}

/// A prompt that has been prefilled and still has samples to start.
struct Prefilled {
    prefix: Prefix,
    /// The second policy's, if there is one.
    twin_prefix: Option<Prefix>,
    /// `[vocab]`, of the token after the prompt
    logits: Tensor,
}

/// A sequence that is decoding. Its row number is its slot.
struct Row {
    id: SampleId,
    seed: Seed,
    ids: Vec<Token>,
    logprobs: Vec<f32>,
    /// Tokens in the cache: the prompt and all drawn tokens but the last.
    cached: usize,
}

/// Samples from one policy.
pub struct Engine {
    policy: Policy,
    config: EngineConfig,
    requests: BTreeMap<usize, Request>,
    next_request: usize,
    queue: Queue,
    prefilled: BTreeMap<usize, Prefilled>,
    rows: Vec<Row>,
    cache: Option<KvCache>,
    twin: Option<Twin>,
    /// How many of the likeliest tokens are reported, by request.
    watched: BTreeMap<usize, usize>,
}

impl Engine {
    /// An engine that samples from this policy, following its adapter as it is trained.
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
            twin: None,
            watched: BTreeMap::new(),
        }
    }

    /// An engine that samples from the geometric mixture of two policies over one network, token by token, with the
    /// weight `share`, in [0, 1], on `other`.
    pub fn mixture(policy: &Policy, other: &Policy, share: f64, config: EngineConfig) -> Self {
        let twin = Some(Twin { policy: other.share(), share, cache: None });
        Self { twin, ..Self::new(policy, config) }
    }

    /// The policy it samples from.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Samples from this policy from now on. Nothing may be running.
    pub fn set_policy(&mut self, policy: &Policy) {
        debug_assert!(self.rows.is_empty(), "a policy is swapped between collections");
        self.policy = policy.share();
    }

    /// Adds a request; its number comes back in the events.
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

    /// Forgets a request: its waiting samples are dropped, its running rows are freed.
    pub fn cancel(&mut self, request: usize) {
        self.queue.cancel(request);
        self.prefilled.remove(&request);
        while let Some(slot) = self.rows.iter().position(|row| row.id.request == request) {
            self.free(slot);
        }
        self.requests.remove(&request);
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.queue.is_empty()
    }

    /// How many sequences are decoding.
    pub fn running(&self) -> usize {
        self.rows.len()
    }

    /// Starts waiting samples where there is room, then draws one token for every running sequence.
    pub fn step(&mut self) -> Vec<Event> {
        let _no_grad = tch::no_grad_guard();
        let mut events = Vec::new();
        self.admit(&mut events);
        self.decode(&mut events);
        let running: BTreeSet<usize> = self.rows.iter().map(|row| row.id.request).collect();
        let queue = &self.queue;
        self.requests.retain(|request, _| running.contains(request) || queue.waits(*request));
        events
    }

    /// Draws every sample of the requests; one list per request, in order. `on_event` sees each event as it happens.
    pub fn run(&mut self, requests: Vec<Request>, on_event: &mut dyn FnMut(&Event)) -> Result<Vec<Vec<Sample>>> {
        let sizes: Vec<usize> = requests.iter().map(|request| request.samples).collect();
        let numbers = requests.into_iter().map(|request| self.submit(request)).collect::<Result<Vec<_>>>()?;
        let mut finished: BTreeMap<SampleId, Sample> = BTreeMap::new();
        while !self.is_idle() {
            for event in self.step() {
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

    /// Fills free slots. A sample that ends with its first token frees its place at once, so this repeats.
    fn admit(&mut self, events: &mut Vec<Event>) {
        loop {
            self.make_room();
            let capacity = self.cache.as_ref().map_or(0, KvCache::capacity);
            let free = self.config.max_running - self.rows.len();
            let requests = &self.requests;
            let admitted =
                self.queue.admit(free, |request| requests.get(&request).is_some_and(|r| tokens(r) <= capacity));
            if admitted.is_empty() {
                return;
            }
            self.prefill(&admitted);
            self.start(&admitted, events);
            let queue = &self.queue;
            self.prefilled.retain(|request, _| queue.waits(*request));
        }
    }

    /// Allocates the cache for what waits, once nothing runs in a smaller one.
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
        if let Some(twin) = &mut self.twin {
            twin.cache = None;
            twin.cache = Some(cache());
        }
        self.cache = Some(cache());
    }

    /// Computes the prompts of admitted samples that have not been computed yet, packed, a budget of tokens at a time.
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
        let (twin_prefixes, logits) = match &self.twin {
            Some(twin) => {
                let (prefixes, other) = prefill(&twin.policy);
                (prefixes, twin.mix(&logits, &other))
            }
            None => (Vec::new(), logits),
        };
        let mut twin_prefixes = twin_prefixes.into_iter();
        for ((request, prefix), row) in batch.iter().zip(prefixes).zip(0..) {
            let prefilled = Prefilled { prefix, twin_prefix: twin_prefixes.next(), logits: logits.get(row) };
            self.prefilled.insert(*request, prefilled);
        }
    }

    /// Draws the first token of each admitted sample and gives it a slot, unless that token ends it.
    fn start(&mut self, admitted: &[SampleId], events: &mut Vec<Event>) {
        let rows: Vec<Row> = admitted
            .iter()
            .map(|&id| Row {
                id,
                seed: self.requests[&id.request].seed.at(id.sample as u64),
                ids: Vec::new(),
                logprobs: Vec::new(),
                cached: self.prefilled[&id.request].prefix.tokens(),
            })
            .collect();
        let logits: Vec<&Tensor> = admitted.iter().map(|id| &self.prefilled[&id.request].logits).collect();
        let logits = Tensor::stack(&logits, 0);
        self.report_likeliest(&logits, &rows, events);
        let drawn = self.draw(&logits, &rows);
        for (mut row, draw) in rows.into_iter().zip(drawn) {
            let Some(sample) = self.append(&mut row, draw, events) else {
                let slot = self.rows.len();
                let prefilled = &self.prefilled[&row.id.request];
                let cache = self.cache.as_mut().expect("admission made room");
                cache.insert(slot, &prefilled.prefix);
                let twin = self.twin.as_mut().and_then(|twin| twin.cache.as_mut());
                if let Some((cache, prefix)) = twin.zip(prefilled.twin_prefix.as_ref()) {
                    cache.insert(slot, prefix);
                }
                self.rows.push(row);
                continue;
            };
            events.push(Event::Finished { id: row.id, sample });
        }
    }

    /// One token for every running row.
    fn decode(&mut self, events: &mut Vec<Event>) {
        if self.rows.is_empty() {
            return;
        }
        let _span = tracing::info_span!(target: "phase", "decode", rows = self.rows.len()).entered();
        let ids: Vec<i64> = self.rows.iter().filter_map(|row| row.ids.last()).map(|id| i64::from(*id)).collect();
        let lengths: Vec<usize> = self.rows.iter().map(|row| row.cached).collect();
        let decode = |policy: &Policy, cache: &mut KvCache| {
            policy.logits(&policy.network().decode(&ids, &lengths, cache, policy.adapter()))
        };
        let mut cache = self.cache.take().expect("running rows have a cache");
        let mut logits = decode(&self.policy, &mut cache);
        if let Some((mut twin_cache, twin)) =
            self.twin.as_mut().and_then(|twin| twin.cache.take()).zip(self.twin.as_ref())
        {
            logits = twin.mix(&logits, &decode(&twin.policy, &mut twin_cache));
            if let Some(twin) = &mut self.twin {
                twin.cache = Some(twin_cache);
            }
        }
        self.cache = Some(cache);
        self.report_likeliest(&logits, &self.rows, events);
        let drawn = self.draw(&logits, &self.rows);

        let mut rows = std::mem::take(&mut self.rows);
        let mut ended = Vec::new();
        for (slot, (row, draw)) in rows.iter_mut().zip(drawn).enumerate() {
            row.cached += 1;
            if let Some(sample) = self.append(row, draw, events) {
                events.push(Event::Finished { id: row.id, sample });
                ended.push(slot);
            }
        }
        self.rows = rows;
        // From the last, so that a row that moves into a freed slot is one that goes on.
        for slot in ended.into_iter().rev() {
            self.free(slot);
        }
    }

    /// Frees a slot by moving the last running row into it.
    fn free(&mut self, slot: usize) {
        let last = self.rows.len() - 1;
        self.rows.swap_remove(slot);
        if slot < last
            && let Some(cache) = &mut self.cache
        {
            cache.relocate(last, slot, self.rows[slot].cached);
            if let Some(cache) = self.twin.as_mut().and_then(|twin| twin.cache.as_mut()) {
                cache.relocate(last, slot, self.rows[slot].cached);
            }
        }
    }

    fn draw(&self, logits: &Tensor, rows: &[Row]) -> Vec<(Token, f32)> {
        let draws: Vec<Draw<'_>> = rows
            .iter()
            .map(|row| Draw {
                settings: &self.requests[&row.id.request].settings,
                uniform: row.seed.uniform(row.ids.len() as u64),
            })
            .collect();
        sampler::draw(logits, &draws)
    }

    /// Adds a drawn token to a row; the finished sample if it was the last one.
    fn append(&self, row: &mut Row, (token, logprob): (Token, f32), events: &mut Vec<Event>) -> Option<Sample> {
        row.ids.push(token);
        // A log-probability of a drawn token is at most 0; rounding may leave a trace above it.
        let logprob = logprob.min(0.0);
        row.logprobs.push(logprob);
        events.push(Event::Token { id: row.id, token, logprob });
        let settings = &self.requests[&row.id.request].settings;
        let tokenizer = self.policy.tokenizer();
        let stopped = || {
            let text = (!settings.stop.is_empty()).then(|| tokenizer.decode(&row.ids))?;
            let end = settings.stop.iter().filter_map(|stop| text.find(stop.as_str())).min()?;
            Some(text[..end].to_owned())
        };
        let (finish, text) = if tokenizer.eos_ids().contains(&token) {
            (Finish::Eos, tokenizer.decode(&row.ids))
        } else if let Some(text) = stopped() {
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

/// The tokens that a sequence of this request may grow to.
fn tokens(request: &Request) -> usize {
    request.prompt_ids.len() + request.settings.max_new_tokens as usize
}

#[cfg(test)]
mod tests;
