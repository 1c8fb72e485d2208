//! What the daemon's threads share: the names that are served, the limits, the counters, and the way to the thread that
//! owns the model.
//!
//! Nothing here holds a tensor. Requests travel to the model's thread as plain records, and what is drawn travels back
//! through a channel of each request; a closed channel is a client that went away.

use super::config::Config;
use super::failure::Failure;
use super::meter::Meter;
use super::request::{Call, Limits};
use crate::engine::TokenScore;
use model::tokenizer::Tokenizer;
use schema::{Sample, SamplerSettings, Seed, Token};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use tokio::sync::{Notify, mpsc as updates, oneshot};

/// What every thread may see.
pub(super) struct Desk {
    pub(super) config: Config,
    pub(super) limits: Limits,
    /// What requests call the base.
    pub(super) base: String,
    /// The model of requests that name none.
    pub(super) default: String,
    /// What requests must carry; nothing if anybody may ask.
    pub(super) token: Option<String>,
    /// The folder below which requests may load adapters.
    pub(super) adapter_root: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) meter: Meter,
    /// The way to the thread that owns the model.
    pub(super) commands: mpsc::Sender<Command>,
    /// Told once, when no new connections are to be taken.
    pub(super) closing: Notify,
    /// Where the draws of requests without a seed come from.
    seed: Seed,
    cards: RwLock<Vec<Card>>,
    phase: AtomicU8,
    serial: AtomicU64,
    started: u64,
}

/// A model that requests can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) name: String,
    /// The adapter's folder; nothing for the base.
    pub(super) path: Option<PathBuf>,
    /// The content hash of its policy.
    pub(super) policy: String,
    /// Seconds since 1970.
    pub(super) created: u64,
}

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// `/pause?mode=wait` lets the running requests end.
    Pausing,
    Paused,
    Draining,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Serving, Self::Pausing, Self::Paused, Self::Draining];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Serving => "ok",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Draining => "draining",
        }
    }
}

/// What the model's thread is asked to do.
pub(super) enum Command {
    Draw(Draw),
    Load { name: String, path: PathBuf, replace: bool, reply: oneshot::Sender<Result<Card, Failure>> },
    Unload { name: String, reply: oneshot::Sender<Result<(), Failure>> },
    Pause { mode: PauseMode, reply: oneshot::Sender<()> },
    Resume { reply: oneshot::Sender<()> },
}

/// What `/pause` does to requests that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PauseMode {
    /// They keep their places and go on after `/resume`.
    Keep,
    /// They run to their end first.
    Wait,
    /// They end with an error.
    Abort,
}

/// The samples of one request.
pub(super) struct Draw {
    pub(super) model: String,
    pub(super) prompts: Vec<Vec<Token>>,
    /// Of each prompt.
    pub(super) samples: usize,
    pub(super) settings: SamplerSettings,
    pub(super) seed: Seed,
    pub(super) likeliest: usize,
    pub(super) prompt_scores: Option<usize>,
    pub(super) updates: updates::UnboundedSender<Update>,
    pub(super) ticket: Ticket,
}

/// What became of a request, as it happens. A choice is a sample, numbered over all prompts of the request.
pub(super) enum Update {
    /// It has been taken up by the policy of this content hash.
    Begun { policy: String },
    /// Scores of the tokens of a prompt but its first.
    Scored { prompt: usize, scores: Vec<TokenScore> },
    /// A token was drawn.
    Drawn { choice: usize, token: DrawnToken },
    /// A sample is complete.
    Finished { choice: usize, sample: Sample },
    /// Nothing more will come.
    Failed(Failure),
}

/// A token with its log-probability and the likeliest tokens of its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DrawnToken {
    pub(super) token: Token,
    pub(super) logprob: f32,
    pub(super) likeliest: Vec<(Token, f32)>,
}

/// A place in the queue for each sample of a request, given back sample by sample, and at the latest with the request.
pub(super) struct Ticket {
    desk: Arc<Desk>,
    samples: Cell<u64>,
}

impl Ticket {
    /// One of the samples is complete.
    pub(super) fn done(&self) {
        if let Some(left) = self.samples.get().checked_sub(1) {
            self.samples.set(left);
            self.desk.meter.samples.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.desk.meter.samples.fetch_sub(self.samples.get(), Ordering::Relaxed);
    }
}

/// What a desk is made of.
pub(super) struct Opening {
    pub(super) config: Config,
    pub(super) limits: Limits,
    pub(super) base: String,
    pub(super) default: String,
    pub(super) token: Option<String>,
    pub(super) adapter_root: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) seed: Seed,
}

impl Desk {
    pub(super) fn open(opening: Opening) -> Arc<Self> {
        let Opening { config, limits, base, default, token, adapter_root, tokenizer, commands, seed } = opening;
        Arc::new(Self {
            config,
            limits,
            base,
            default,
            token,
            adapter_root,
            tokenizer,
            commands,
            seed,
            meter: Meter::default(),
            closing: Notify::new(),
            cards: RwLock::default(),
            phase: AtomicU8::new(Phase::Serving as u8),
            serial: AtomicU64::new(0),
            started: super::now(),
        })
    }

    /// Takes places in the queue for a request, or says when to ask again.
    pub(super) fn admit(self: &Arc<Self>, samples: usize) -> Result<Ticket, Failure> {
        if self.phase() == Phase::Draining {
            return Err(Failure::draining());
        }
        let (running, waiting) = (self.config.engine.max_running as u64, self.config.max_waiting as u64);
        let samples = samples as u64;
        let taken = self.meter.samples.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            (before + samples <= running + waiting).then_some(before + samples)
        });
        match taken {
            Ok(_) => Ok(Ticket { desk: Arc::clone(self), samples: Cell::new(samples) }),
            Err(before) => {
                // By then a batch of those that run has ended, as far as can be said.
                let rounds = before.div_ceil(running);
                let seconds = (self.meter.mean_call().as_secs_f64() * rounds as f64).ceil().clamp(1.0, 60.0);
                Err(Failure::busy(before.saturating_sub(running) as usize, seconds as u64))
            }
        }
    }

    /// The record of a request for the model's thread, and where its updates will come.
    pub(super) fn draw(
        &self,
        call: &Call,
        model: String,
        ticket: Ticket,
    ) -> (Draw, updates::UnboundedReceiver<Update>) {
        let (sender, receiver) = updates::unbounded_channel();
        let seed = match call.seed {
            Some(seed) => Seed::new(seed as u64).child("request"),
            None => self.seed.at(self.serial.fetch_add(1, Ordering::Relaxed)),
        };
        let draw = Draw {
            model,
            prompts: call.prompts.clone(),
            samples: call.samples,
            settings: call.settings.clone(),
            seed,
            likeliest: call.likeliest.unwrap_or(0),
            prompt_scores: call.prompt_scores,
            updates: sender,
            ticket,
        };
        (draw, receiver)
    }

    /// A name for an answer that no other answer of any daemon is likely to have.
    pub(super) fn answer_id(&self, prefix: &str) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:x}-{:x}-{serial:x}", self.started, std::process::id())
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::SeqCst)).min(3)]
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Every model that can be named.
    pub(super) fn cards(&self) -> Vec<Card> {
        self.cards.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_cards(&self, cards: Vec<Card>) {
        self.meter.adapters.store(cards.len().saturating_sub(1) as u64, Ordering::Relaxed);
        *self.cards.write().unwrap_or_else(PoisonError::into_inner) = cards;
    }

    /// The name of a served model that a request means.
    pub(super) fn resolve(&self, model: Option<&str>) -> Result<String, Failure> {
        let name = model.unwrap_or(&self.default);
        let cards = self.cards.read().unwrap_or_else(PoisonError::into_inner);
        if cards.iter().any(|card| card.name == name) {
            return Ok(name.to_owned());
        }
        let known: Vec<String> = cards.iter().map(|card| card.name.clone()).collect();
        let shown: String = name.chars().take(100).collect();
        Err(Failure::no_model(&shown, &known))
    }
}
