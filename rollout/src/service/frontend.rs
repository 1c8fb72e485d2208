//! The state that the daemon's threads share: settings, served models, metrics, the queue's capacity, and the channel to
//! the thread that owns the model.

use super::config::Config;
use super::failure::Failure;
use super::messages::{Command, ModelCard, QueuedRequest, Update};
use super::metrics::Metrics;
use super::request::{CompletionRequest, Limits};
use model::tokenizer::Tokenizer;
use schema::Seed;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use tokio::sync::{Notify, Semaphore, mpsc as updates, oneshot};

/// Settings that do not change while the daemon runs.
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) limits: Limits,
    /// Name of the base model.
    pub(super) base: String,
    /// Model of requests that name none.
    pub(super) default: String,
    /// Bearer token that requests must carry; `None` if requests need none.
    pub(super) token: Option<String>,
    /// Folder below which requests may load adapters.
    pub(super) adapter_root: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Source of randomness for requests without a seed.
    pub(super) seed: Seed,
}

/// The shared state.
pub(super) struct Frontend {
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    /// Notified once, when the server is to accept no more connections.
    pub(super) closing: Notify,
    commands: mpsc::Sender<Command>,
    /// One permit for each sample that may run or wait.
    permits: Arc<Semaphore>,
    models: RwLock<Vec<ModelCard>>,
    phase: AtomicU8,
    serial: AtomicU64,
    started: u64,
}

/// The state of the daemon, as `/health` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServingPhase {
    Serving,
    /// `/pause?mode=wait` lets the running requests end.
    Pausing,
    Paused,
    Draining,
}

impl ServingPhase {
    const ALL: [Self; 4] = [Self::Serving, Self::Pausing, Self::Paused, Self::Draining];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "ok",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Draining => "draining",
        }
    }
}

impl Frontend {
    pub(super) fn new(settings: Settings, commands: mpsc::Sender<Command>) -> Self {
        Self {
            metrics: Metrics::new(&settings.base),
            permits: Arc::new(Semaphore::new(settings.capacity())),
            settings,
            closing: Notify::new(),
            commands,
            models: RwLock::default(),
            phase: AtomicU8::new(ServingPhase::Serving as u8),
            serial: AtomicU64::new(0),
            started: super::now(),
        }
    }

    /// Queues a request for the model's thread; returns the channel of its updates.
    ///
    /// # Errors
    ///
    /// A refusal if the queue is full or the daemon is shutting down.
    pub(super) fn submit(
        &self,
        request: &Arc<CompletionRequest>,
        model: String,
    ) -> Result<updates::UnboundedReceiver<Update>, Failure> {
        if self.phase() == ServingPhase::Draining {
            return Err(Failure::draining());
        }
        let samples = u32::try_from(request.total()).unwrap_or(u32::MAX);
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(samples).map_err(|_| self.busy())?;
        let seed = match request.seed {
            Some(seed) => Seed::new(seed as u64).child("request"),
            None => self.settings.seed.at(self.next_serial()),
        };
        let (sender, receiver) = updates::unbounded_channel();
        self.metrics.prompt_tokens.inc_by(request.prompts.iter().map(|ids| ids.len() as u64).sum());
        self.send(Command::Sample(QueuedRequest {
            request: Arc::clone(request),
            model,
            seed,
            updates: sender,
            permits: RefCell::new(permits),
        }))?;
        Ok(receiver)
    }

    /// The refusal of a full queue. It asks to retry when the unfinished samples are expected to have gone through the
    /// batch.
    fn busy(&self) -> Failure {
        let (unfinished, running) = (self.unfinished_samples(), self.settings.config.engine.max_running);
        let rounds = unfinished.div_ceil(running);
        let seconds = (self.metrics.mean_request().as_secs_f64() * rounds as f64).ceil().clamp(1.0, 60.0);
        Failure::busy(unfinished.saturating_sub(running), seconds as u64)
    }

    /// Number of samples that run or wait.
    pub(super) fn unfinished_samples(&self) -> usize {
        self.settings.capacity() - self.permits.available_permits()
    }

    /// Sends a command to the model's thread and waits until it is done.
    ///
    /// # Errors
    ///
    /// A refusal if the thread has ended, because the daemon is shutting down.
    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| Failure::draining())
    }

    fn send(&self, command: Command) -> Result<(), Failure> {
        self.commands.send(command).map_err(|_| Failure::draining())
    }

    /// An id for an answer, unlikely to be that of any other answer of any daemon.
    pub(super) fn answer_id(&self, prefix: &str) -> String {
        format!("{prefix}-{:x}-{:x}-{:x}", self.started, std::process::id(), self.next_serial())
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn phase(&self) -> ServingPhase {
        ServingPhase::ALL[usize::from(self.phase.load(Ordering::SeqCst)).min(3)]
    }

    pub(super) fn set_phase(&self, phase: ServingPhase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// All models that requests can name, the base first.
    pub(super) fn models(&self) -> Vec<ModelCard> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_models(&self, models: Vec<ModelCard>) {
        self.metrics.adapters.set(models.len().saturating_sub(1) as i64);
        *self.models.write().unwrap_or_else(PoisonError::into_inner) = models;
    }

    /// Names of all models that requests can name.
    pub(super) fn model_names(&self) -> Vec<String> {
        self.models().into_iter().map(|model| model.name).collect()
    }

    /// Name of the model that a request asks for; the default model if it names none.
    ///
    /// # Errors
    ///
    /// A refusal with the names of all models if this one is not served.
    pub(super) fn resolve(&self, model: Option<&str>) -> Result<String, Failure> {
        let name = model.unwrap_or(&self.settings.default);
        let known = self.model_names();
        if known.iter().any(|known| known == name) {
            return Ok(name.to_owned());
        }
        let shown: String = name.chars().take(100).collect();
        Err(Failure::no_model(&shown, &known))
    }
}

impl Settings {
    /// Number of samples that may run or wait.
    fn capacity(&self) -> usize {
        self.limits.samples.min(Semaphore::MAX_PERMITS)
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Endpoint;
    use super::*;
    use crate::EngineConfig;
    use schema::SamplerSettings;

    /// A daemon with room for three samples, and the inbox of its model's thread.
    fn frontend() -> (Frontend, mpsc::Receiver<Command>) {
        let engine = EngineConfig { max_running: 2, ..EngineConfig::default() };
        let sampler = SamplerSettings::default();
        let settings = Settings {
            config: Config { engine, max_waiting: 1, ..Config::default() },
            limits: Limits { context: 64, vocab: 259, logprobs: 5, samples: 3, prompt_logprobs: 100, sampler },
            base: "base".into(),
            default: "base".into(),
            token: None,
            adapter_root: PathBuf::new(),
            tokenizer: Arc::new(Tokenizer::bytes()),
            seed: Seed::new(0),
        };
        let (commands, inbox) = mpsc::channel();
        (Frontend::new(settings, commands), inbox)
    }

    #[test]
    fn the_queue_is_bounded_and_each_sample_frees_its_place() {
        let (frontend, inbox) = frontend();
        let request = |n: usize| {
            let body = format!("{{\"prompt\": \"a\", \"n\": {n}}}");
            let Settings { limits, tokenizer, .. } = &frontend.settings;
            Arc::new(CompletionRequest::read(Endpoint::Completions, body.as_bytes(), limits, tokenizer).ok().unwrap())
        };
        let _updates = frontend.submit(&request(3), "base".into()).ok().unwrap();
        let Ok(Command::Sample(queued)) = inbox.try_recv() else { panic!("the request is not in the inbox") };
        assert_eq!(frontend.unfinished_samples(), 3);
        let refused = frontend.submit(&request(1), "base".into()).err().unwrap();
        assert_eq!(refused.body()["error"]["code"], "rate_limit_exceeded");
        assert!(refused.body()["error"]["message"].as_str().unwrap().starts_with("1 samples wait already"));
        queued.release_one();
        assert_eq!(frontend.unfinished_samples(), 2);
        assert!(frontend.submit(&request(2), "base".into()).is_err());
        assert!(frontend.submit(&request(1), "base".into()).is_ok());
        drop((queued, inbox));
        assert_eq!(frontend.unfinished_samples(), 0);
        assert!(frontend.submit(&request(1), "base".into()).is_err(), "without a model's thread nothing is queued");
    }

    #[test]
    fn a_request_without_a_seed_gets_the_next_one() {
        let (frontend, inbox) = frontend();
        let seed = |body: &str| {
            let Settings { limits, tokenizer, .. } = &frontend.settings;
            let request = CompletionRequest::read(Endpoint::Completions, body.as_bytes(), limits, tokenizer);
            let _updates = frontend.submit(&Arc::new(request.ok().unwrap()), "base".into()).ok().unwrap();
            let Ok(Command::Sample(queued)) = inbox.try_recv() else { panic!("the request is not in the inbox") };
            queued.seed.to_hex()
        };
        let given = r#"{"prompt": "a", "seed": 7}"#;
        assert_eq!(seed(given), seed(given));
        assert_ne!(seed(r#"{"prompt": "a"}"#), seed(r#"{"prompt": "a"}"#));
    }
}
