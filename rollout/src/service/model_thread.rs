//! The thread that owns the model: it adds requests to the batch, samples, and sends the samples back.
//!
//! Each adapter has an engine of its own over the one base, and the engines step in turn. A request whose client has
//! disconnected leaves its engine before the next step. An adapter that is unloaded or replaced accepts no more requests,
//! and its engine is dropped when the last of them has ended.

use super::failure::Failure;
use super::frontend::{Frontend, ServingPhase};
use super::messages::{Command, ModelCard, PauseMode, QueuedRequest, Update};
use super::metrics::Metrics;
use super::reply::reason;
use super::request::CompletionRequest;
use super::{AdapterLoader, now};
use crate::engine::{Engine, Event, Request};
use crate::{Error, Result};
use model::Policy;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Interval at which an idle thread looks for a stop signal and for clients that have disconnected.
const IDLE: Duration = Duration::from_millis(50);

/// The state of the thread.
pub(super) struct ModelThread<'a> {
    base: &'a Policy,
    load: &'a AdapterLoader<'a>,
    frontend: Arc<Frontend>,
    commands: mpsc::Receiver<Command>,
    /// The base first.
    served: Vec<ServedModel>,
    /// Requests that arrived during a pause.
    held: VecDeque<QueuedRequest>,
    /// Replies to pauses that wait for the running requests to end.
    pausing: Vec<oneshot::Sender<()>>,
    /// End of the time for running requests, while the daemon shuts down.
    deadline: Option<Instant>,
}

/// A model with its batch.
struct ServedModel {
    card: ModelCard,
    engine: Engine,
    running: BTreeMap<usize, Running>,
    retired: bool,
}

/// One prompt of a request.
struct Running {
    queued: Rc<QueuedRequest>,
    prompt: usize,
    /// Samples that are not complete.
    unfinished: usize,
}

impl<'a> ModelThread<'a> {
    /// Creates the thread's state, with the base and the adapters of the config served.
    ///
    /// # Errors
    ///
    /// An error if an adapter cannot be loaded; an input error if it has the name of the base.
    pub(super) fn new(
        base: &'a Policy,
        load: &'a AdapterLoader<'a>,
        frontend: Arc<Frontend>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self> {
        let name = frontend.settings.base.clone();
        let card = ModelCard { name, path: None, policy: base.version().hash.clone(), created: now() };
        let engine = Engine::new(base, frontend.settings.config.engine.clone());
        let served = vec![ServedModel { card, engine, running: BTreeMap::new(), retired: false }];
        let mut thread =
            Self { base, load, frontend, commands, served, held: VecDeque::new(), pausing: Vec::new(), deadline: None };
        for (name, path) in thread.frontend.settings.config.adapters.clone() {
            if name == thread.frontend.settings.base {
                return Err(Error::input(format!(
                    "serve.adapters: `{name}` is what the base model is called; give one of them another name (serve.name)"
                )));
            }
            thread.serve(name, &path)?;
        }
        thread.publish_models();
        Ok(thread)
    }

    /// Runs until `stop` is raised and the running requests have ended.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        loop {
            self.receive();
            if stop.load(Ordering::SeqCst) && self.deadline.is_none() {
                self.drain();
            }
            self.sweep();
            if self.frontend.phase() != ServingPhase::Paused {
                self.step();
            }
            let running: usize = self.served.iter().map(|served| served.engine.running()).sum();
            self.frontend.metrics.running_samples.set(running as i64);
            if self.frontend.phase() == ServingPhase::Pausing && self.is_idle() {
                self.frontend.set_phase(ServingPhase::Paused);
                self.end_wait();
            }
            if let Some(deadline) = self.deadline
                && (self.is_idle() || Instant::now() >= deadline)
            {
                self.fail_all(&Failure::draining());
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.served.iter().all(|served| served.engine.is_idle())
    }

    /// Handles all pending commands; waits for one if there is nothing else to do.
    fn receive(&mut self) {
        let works = self.frontend.phase() != ServingPhase::Paused && !self.is_idle();
        if !works && let Ok(command) = self.commands.recv_timeout(IDLE) {
            self.handle(command);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Sample(queued) => match self.frontend.phase() {
                ServingPhase::Serving | ServingPhase::Draining => self.submit(queued),
                ServingPhase::Pausing | ServingPhase::Paused => self.held.push_back(queued),
            },
            Command::Load { name, path, replace, reply } => {
                let card = self.load(name, &path, replace);
                let _ = reply.send(card);
            }
            Command::Unload { name, reply } => {
                let _ = reply.send(self.unload(&name));
            }
            Command::Pause { mode, reply } => self.pause(mode, reply),
            Command::Resume { reply } => {
                self.resume();
                let _ = reply.send(());
            }
        }
    }

    /// Hands a request to the engine of its model.
    fn submit(&mut self, queued: QueuedRequest) {
        let serves = |served: &&mut ServedModel| !served.retired && served.card.name == queued.model;
        let Some(served) = self.served.iter_mut().find(serves) else {
            let failure = Failure::no_model(&queued.model, &self.frontend.model_names());
            let _ = queued.updates.send(Update::Failed(failure));
            return;
        };
        if queued.updates.is_closed() {
            return;
        }
        if let Err(failure) = served.submit(&Rc::new(queued)) {
            tracing::warn!("a request was refused by the engine: {}", failure.body());
        }
    }

    /// Drops the requests of clients that have disconnected.
    fn sweep(&mut self) {
        let metrics = &self.frontend.metrics;
        self.held.retain(|queued| {
            let stays = !queued.updates.is_closed();
            if !stays {
                metrics.cancelled_requests.inc();
                metrics.finished("abort", queued.request.total());
            }
            stays
        });
        for ServedModel { engine, running, .. } in &mut self.served {
            running.retain(|number, prompt| {
                let stays = !prompt.queued.updates.is_closed();
                if !stays {
                    engine.cancel(*number);
                    // A request of several prompts is counted with the last of them.
                    metrics.cancelled_requests.inc_by(u64::from(Rc::strong_count(&prompt.queued) == 1));
                    metrics.finished("abort", prompt.unfinished);
                }
                stays
            });
        }
    }

    /// Runs one step of every engine that is not idle.
    fn step(&mut self) {
        for served in &mut self.served {
            if served.engine.is_idle() {
                continue;
            }
            let started = Instant::now();
            // A pass that fails, for want of memory say, costs its requests and not the daemon.
            let failure = match catch_unwind(AssertUnwindSafe(|| served.engine.step())) {
                Ok(Ok(events)) => {
                    self.frontend.metrics.stepped(started.elapsed());
                    served.deliver(events, &self.frontend.metrics);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the model failed in the middle of this request; see the daemon's log".to_owned(),
            };
            served.fail(&Failure::fault(failure));
            served.engine = Engine::new(served.engine.policy(), self.frontend.settings.config.engine.clone());
        }
        self.served.retain(|served| !(served.retired && served.engine.is_idle()));
    }

    fn load(&mut self, name: String, path: &Path, replace: bool) -> std::result::Result<ModelCard, Failure> {
        if name == self.frontend.settings.base {
            return Err(Failure::parameter("lora_name", format!("`{name}` is the base model; choose another name")));
        }
        let known = self.served.iter().any(|served| !served.retired && served.card.name == name);
        if known && !replace {
            return Err(Failure::parameter(
                "lora_name",
                format!("`{name}` is loaded already; unload it first, or set \"load_inplace\": true"),
            ));
        }
        let adapters = self.served.iter().filter(|served| !served.retired).count() - 1;
        if !known && adapters >= self.frontend.settings.config.max_adapters {
            return Err(Failure::invalid(format!(
                "{adapters} adapters are loaded, which is serve.max_adapters; unload one"
            )));
        }
        let card = self.serve(name, path)?;
        self.publish_models();
        Ok(card)
    }

    /// Loads an adapter and serves it under this name, instead of any earlier one.
    fn serve(&mut self, name: String, path: &Path) -> Result<ModelCard> {
        // libtorch may throw at a file that pretends to be what it is not.
        let policy = catch_unwind(AssertUnwindSafe(|| (self.load)(self.base, path)))
            .unwrap_or_else(|_| Err(Error::input(format!("{} cannot be read as an adapter", path.display()))))?;
        self.retire(&name);
        let card =
            ModelCard { name, path: Some(PathBuf::from(path)), policy: policy.version().hash.clone(), created: now() };
        let engine = Engine::new(&policy, self.frontend.settings.config.engine.clone());
        self.served.push(ServedModel { card: card.clone(), engine, running: BTreeMap::new(), retired: false });
        Ok(card)
    }

    fn unload(&mut self, name: &str) -> std::result::Result<(), Failure> {
        if name == self.frontend.settings.base {
            return Err(Failure::parameter("lora_name", format!("`{name}` is the base model, which stays")));
        }
        if !self.retire(name) {
            return Err(Failure::no_model(name, &self.frontend.model_names()));
        }
        self.publish_models();
        Ok(())
    }

    /// Stops new requests to the adapter of this name; false if there is none.
    fn retire(&mut self, name: &str) -> bool {
        let old = self.served.iter_mut().find(|served| !served.retired && served.card.name == name);
        old.map(|served| served.retired = true).is_some()
    }

    /// Publishes the list of models, and drops retired ones that are idle.
    fn publish_models(&mut self) {
        self.served.retain(|served| !(served.retired && served.engine.is_idle()));
        let cards = self.served.iter().filter(|served| !served.retired).map(|served| served.card.clone());
        self.frontend.set_models(cards.collect());
    }

    fn pause(&mut self, mode: PauseMode, reply: oneshot::Sender<()>) {
        if self.deadline.is_some() {
            // The daemon is shutting down already.
            return;
        }
        match mode {
            PauseMode::Wait if !self.is_idle() && self.frontend.phase() != ServingPhase::Paused => {
                self.frontend.set_phase(ServingPhase::Pausing);
                self.pausing.push(reply);
                return;
            }
            PauseMode::Abort => self.fail_all(&Failure::aborted()),
            PauseMode::Keep | PauseMode::Wait => {}
        }
        self.frontend.set_phase(ServingPhase::Paused);
        self.pausing.push(reply);
        self.end_wait();
    }

    /// Replies to the pauses that are waiting.
    fn end_wait(&mut self) {
        for reply in self.pausing.drain(..) {
            let _ = reply.send(());
        }
    }

    fn resume(&mut self) {
        if self.deadline.is_none() {
            self.frontend.set_phase(ServingPhase::Serving);
        }
        self.end_wait();
        for queued in std::mem::take(&mut self.held) {
            self.submit(queued);
        }
    }

    /// Begins to shut down: no new requests are accepted, and the present ones may end.
    fn drain(&mut self) {
        self.deadline = Some(Instant::now() + Duration::from_secs_f64(self.frontend.settings.config.drain_s));
        self.frontend.set_phase(ServingPhase::Draining);
        self.frontend.closing.notify_one();
        self.resume();
    }

    fn fail_all(&mut self, failure: &Failure) {
        for queued in self.held.drain(..) {
            let _ = queued.updates.send(Update::Failed(failure.clone()));
        }
        self.served.iter_mut().for_each(|served| served.fail(failure));
    }
}

impl ServedModel {
    /// Adds a request to the batch.
    fn submit(&mut self, queued: &Rc<QueuedRequest>) -> std::result::Result<(), Failure> {
        let _ = queued.updates.send(Update::Begun { policy: self.card.policy.clone() });
        let mut numbers = Vec::new();
        let submitted = self.submit_prompts(queued, &mut numbers);
        if let Err(failure) = &submitted {
            for number in numbers {
                self.engine.cancel(number);
                self.running.remove(&number);
            }
            let _ = queued.updates.send(Update::Failed(failure.clone()));
        }
        submitted
    }

    fn submit_prompts(
        &mut self,
        queued: &Rc<QueuedRequest>,
        numbers: &mut Vec<usize>,
    ) -> std::result::Result<(), Failure> {
        let CompletionRequest { prompts, samples, settings, top_logprobs, prompt_logprobs, .. } = &*queued.request;
        for (prompt, prompt_ids) in prompts.iter().enumerate() {
            // A long list of prompts takes seconds to score, and its client may have left meanwhile.
            if queued.updates.is_closed() {
                break;
            }
            if let Some(count) = prompt_logprobs {
                let temperature = settings.logprob_temperature();
                let engine = &self.engine;
                let logprobs =
                    catch_unwind(AssertUnwindSafe(|| engine.prompt_logprobs(prompt_ids, temperature, *count)))
                        .map_err(|_| Failure::fault("the prompt could not be scored; see the daemon's log"))?;
                let _ = queued.updates.send(Update::PromptLogprobs { prompt, logprobs });
            }
            let number = self.engine.submit(Request {
                prompt_ids: prompt_ids.clone(),
                samples: *samples,
                settings: settings.clone(),
                seed: queued.seed.at(prompt as u64),
                top_logprobs: top_logprobs.unwrap_or(0),
            })?;
            self.running.insert(number, Running { queued: Rc::clone(queued), prompt, unfinished: *samples });
            numbers.push(number);
        }
        Ok(())
    }

    /// Sends the events of a step to the requests that they belong to.
    fn deliver(&mut self, events: Vec<Event>, metrics: &Metrics) {
        for event in events {
            let (Event::Token { id, .. } | Event::Finished { id, .. }) = &event;
            let number = id.request;
            let Some(running) = self.running.get_mut(&number) else { continue };
            let Running { queued, prompt, unfinished } = running;
            let choice = *prompt * queued.request.samples + id.sample;
            // A closed channel is found by the next sweep.
            match event {
                Event::Token { token, .. } => {
                    metrics.generated_tokens.inc();
                    let _ = queued.updates.send(Update::Token { choice, token });
                }
                Event::Finished { sample, .. } => {
                    metrics.finished(reason(sample.finish), 1);
                    // Before the client can know, so that its next request finds the slot free.
                    queued.release_one();
                    let _ = queued.updates.send(Update::Finished { choice, sample });
                    *unfinished -= 1;
                    if *unfinished == 0 {
                        self.running.remove(&number);
                    }
                }
            }
        }
    }

    /// Ends every request with this failure.
    fn fail(&mut self, failure: &Failure) {
        for (number, running) in std::mem::take(&mut self.running) {
            self.engine.cancel(number);
            let _ = running.queued.updates.send(Update::Failed(failure.clone()));
        }
    }
}
