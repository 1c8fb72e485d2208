//! The thread that owns the model: takes requests into the batch, draws, and hands out what was drawn.
//!
//! Each adapter has an engine of its own over the one base, and the engines take their steps in turn. A request whose
//! client has gone leaves its engine before the next step. An adapter that is unloaded or replaced takes no more
//! requests, and its engine goes when the last of them has ended.

use super::desk::{Card, Command, Desk, Draw, DrawnToken, PauseMode, Phase, Update};
use super::failure::Failure;
use super::{Load, now};
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

/// How often an idle worker looks whether it should stop, or whether a client that waits has gone.
const IDLE: Duration = Duration::from_millis(50);

pub(super) struct Worker<'a> {
    base: &'a Policy,
    load: &'a Load<'a>,
    desk: Arc<Desk>,
    commands: mpsc::Receiver<Command>,
    /// The base first.
    served: Vec<Served>,
    /// Requests that came in a pause.
    held: VecDeque<Draw>,
    /// Who waits for the running requests to end.
    pausing: Vec<oneshot::Sender<()>>,
    /// When a drain gives up.
    deadline: Option<Instant>,
}

/// A model with its batch.
struct Served {
    card: Card,
    engine: Engine,
    running: BTreeMap<usize, Running>,
    retired: bool,
}

/// One prompt of a request.
struct Running {
    call: Rc<Draw>,
    prompt: usize,
    left: usize,
    /// By sample, until the token that belongs to it is drawn.
    likeliest: BTreeMap<usize, Vec<(schema::Token, f32)>>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        base: &'a Policy,
        load: &'a Load<'a>,
        desk: Arc<Desk>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self> {
        let card = Card { name: desk.base.clone(), path: None, policy: base.version().hash.clone(), created: now() };
        let engine = Engine::new(base, desk.config.engine.clone());
        let served = vec![Served { card, engine, running: BTreeMap::new(), retired: false }];
        let mut worker =
            Self { base, load, desk, commands, served, held: VecDeque::new(), pausing: Vec::new(), deadline: None };
        for (name, path) in worker.desk.config.adapters.clone() {
            if name == worker.desk.base {
                return Err(Error::input(format!(
                    "serve.adapters: `{name}` is what the base model is called; give one of them another name (serve.name)"
                )));
            }
            worker.serve(name, &path)?;
        }
        worker.show();
        Ok(worker)
    }

    /// Works until `stop` is raised and what runs then has ended.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        loop {
            self.receive();
            if stop.load(Ordering::SeqCst) && self.deadline.is_none() {
                self.drain();
            }
            self.sweep();
            if self.desk.phase() != Phase::Paused {
                self.step();
            }
            let running = self.served.iter().map(|served| served.engine.running() as u64).sum();
            self.desk.meter.running.store(running, Ordering::Relaxed);
            if self.desk.phase() == Phase::Pausing && self.is_idle() {
                self.desk.set_phase(Phase::Paused);
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

    /// Takes every command that is there; waits for one if there is nothing else to do.
    fn receive(&mut self) {
        let works = self.desk.phase() != Phase::Paused && !self.is_idle();
        if !works && let Ok(command) = self.commands.recv_timeout(IDLE) {
            self.handle(command);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Draw(draw) => match self.desk.phase() {
                Phase::Serving | Phase::Draining => self.submit(draw),
                Phase::Pausing | Phase::Paused => self.held.push_back(draw),
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

    /// Gives a request to its model's engine.
    fn submit(&mut self, draw: Draw) {
        let serves = |served: &&mut Served| !served.retired && served.card.name == draw.model;
        let Some(served) = self.served.iter_mut().find(serves) else {
            let known: Vec<String> = self.desk.cards().into_iter().map(|card| card.name).collect();
            let _ = draw.updates.send(Update::Failed(Failure::no_model(&draw.model, &known)));
            return;
        };
        if draw.updates.is_closed() {
            return;
        }
        if let Err(failure) = served.submit(&Rc::new(draw)) {
            tracing::warn!("a request was refused by the engine: {}", failure.body());
        }
    }

    /// Leaves out what nobody waits for any more.
    fn sweep(&mut self) {
        let mut gone = 0;
        self.held.retain(|draw| {
            let stays = !draw.updates.is_closed();
            gone += u64::from(!stays);
            stays
        });
        for Served { engine, running, .. } in &mut self.served {
            running.retain(|number, request| {
                let stays = !request.call.updates.is_closed();
                if !stays {
                    engine.cancel(*number);
                    // A request of several prompts is counted with the last of them.
                    gone += u64::from(Rc::strong_count(&request.call) == 1);
                }
                stays
            });
        }
        self.desk.meter.cancelled.fetch_add(gone, Ordering::Relaxed);
    }

    /// One step of every engine that has something to do.
    fn step(&mut self) {
        for served in &mut self.served {
            if served.engine.is_idle() {
                continue;
            }
            let started = Instant::now();
            // A pass that fails, for want of memory say, costs its requests and not the daemon.
            if let Ok(events) = catch_unwind(AssertUnwindSafe(|| served.engine.step())) {
                self.desk.meter.stepped(started.elapsed());
                let tokens = served.deliver(events);
                self.desk.meter.generated_tokens.fetch_add(tokens, Ordering::Relaxed);
            } else {
                served.fail(&Failure::fault("the model failed in the middle of this request; see the daemon's log"));
                served.engine = Engine::new(served.engine.policy(), self.desk.config.engine.clone());
            }
        }
        self.served.retain(|served| !(served.retired && served.engine.is_idle()));
    }

    fn load(&mut self, name: String, path: &Path, replace: bool) -> std::result::Result<Card, Failure> {
        if name == self.desk.base {
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
        if !known && adapters >= self.desk.config.max_adapters {
            return Err(Failure::invalid(format!(
                "{adapters} adapters are loaded, which is serve.max_adapters; unload one"
            )));
        }
        let card = self.serve(name, path)?;
        self.show();
        Ok(card)
    }

    /// Serves an adapter by this name from now on.
    fn serve(&mut self, name: String, path: &Path) -> Result<Card> {
        // libtorch may throw at a file that pretends to be what it is not.
        let policy = catch_unwind(AssertUnwindSafe(|| (self.load)(self.base, path)))
            .unwrap_or_else(|_| Err(Error::input(format!("{} cannot be read as an adapter", path.display()))))?;
        self.retire(&name);
        let card =
            Card { name, path: Some(PathBuf::from(path)), policy: policy.version().hash.clone(), created: now() };
        let engine = Engine::new(&policy, self.desk.config.engine.clone());
        self.served.push(Served { card: card.clone(), engine, running: BTreeMap::new(), retired: false });
        Ok(card)
    }

    fn unload(&mut self, name: &str) -> std::result::Result<(), Failure> {
        if name == self.desk.base {
            return Err(Failure::parameter("lora_name", format!("`{name}` is the base model, which stays")));
        }
        if !self.retire(name) {
            let known: Vec<String> = self.desk.cards().into_iter().map(|card| card.name).collect();
            return Err(Failure::no_model(name, &known));
        }
        self.show();
        Ok(())
    }

    /// The adapter of this name takes no more requests.
    fn retire(&mut self, name: &str) -> bool {
        let old = self.served.iter_mut().find(|served| !served.retired && served.card.name == name);
        old.map(|served| served.retired = true).is_some()
    }

    /// Tells everybody which names there are.
    fn show(&mut self) {
        self.served.retain(|served| !(served.retired && served.engine.is_idle()));
        let cards = self.served.iter().filter(|served| !served.retired).map(|served| served.card.clone());
        self.desk.set_cards(cards.collect());
    }

    fn pause(&mut self, mode: PauseMode, reply: oneshot::Sender<()>) {
        if self.deadline.is_some() {
            // What runs is about to end anyway.
            return;
        }
        match mode {
            PauseMode::Wait if !self.is_idle() && self.desk.phase() != Phase::Paused => {
                self.desk.set_phase(Phase::Pausing);
                self.pausing.push(reply);
                return;
            }
            PauseMode::Abort => self.fail_all(&Failure::aborted()),
            PauseMode::Keep | PauseMode::Wait => {}
        }
        self.desk.set_phase(Phase::Paused);
        self.pausing.push(reply);
        self.end_wait();
    }

    /// Answers those who wait for the pause.
    fn end_wait(&mut self) {
        for reply in self.pausing.drain(..) {
            let _ = reply.send(());
        }
    }

    fn resume(&mut self) {
        if self.deadline.is_none() {
            self.desk.set_phase(Phase::Serving);
        }
        self.end_wait();
        for draw in std::mem::take(&mut self.held) {
            self.submit(draw);
        }
    }

    /// Takes no new requests; those that are there may end.
    fn drain(&mut self) {
        self.deadline = Some(Instant::now() + Duration::from_secs_f64(self.desk.config.drain_s));
        self.desk.set_phase(Phase::Draining);
        self.desk.closing.notify_one();
        self.resume();
    }

    fn fail_all(&mut self, failure: &Failure) {
        for draw in self.held.drain(..) {
            let _ = draw.updates.send(Update::Failed(failure.clone()));
        }
        self.served.iter_mut().for_each(|served| served.fail(failure));
    }
}

impl Served {
    /// Takes a request into the batch.
    fn submit(&mut self, call: &Rc<Draw>) -> std::result::Result<(), Failure> {
        let _ = call.updates.send(Update::Begun { policy: self.card.policy.clone() });
        let mut numbers = Vec::new();
        let submitted = self.submit_prompts(call, &mut numbers);
        if let Err(failure) = &submitted {
            for number in numbers {
                self.engine.cancel(number);
                self.running.remove(&number);
            }
            let _ = call.updates.send(Update::Failed(failure.clone()));
        }
        submitted
    }

    fn submit_prompts(&mut self, call: &Rc<Draw>, numbers: &mut Vec<usize>) -> std::result::Result<(), Failure> {
        for (prompt, prompt_ids) in call.prompts.iter().enumerate() {
            if let Some(count) = call.prompt_scores {
                let temperature = call.settings.logprob_temperature();
                let scores = catch_unwind(AssertUnwindSafe(|| self.engine.score(prompt_ids, temperature, count)))
                    .map_err(|_| Failure::fault("the prompt could not be scored; see the daemon's log"))?;
                let _ = call.updates.send(Update::Scored { prompt, scores });
            }
            let number = self.engine.submit(Request {
                prompt_ids: prompt_ids.clone(),
                samples: call.samples,
                settings: call.settings.clone(),
                seed: call.seed.at(prompt as u64),
            })?;
            self.engine.watch(number, call.likeliest);
            let running = Running { call: Rc::clone(call), prompt, left: call.samples, likeliest: BTreeMap::new() };
            self.running.insert(number, running);
            numbers.push(number);
        }
        Ok(())
    }

    /// Hands out what a step drew; returns how many tokens that was.
    fn deliver(&mut self, events: Vec<Event>) -> u64 {
        let mut tokens = 0;
        for event in events {
            let (Event::Token { id, .. } | Event::Likeliest { id, .. } | Event::Finished { id, .. }) = &event;
            let (request, place) = (id.request, id.sample);
            let Some(running) = self.running.get_mut(&request) else { continue };
            let choice = running.prompt * running.call.samples + place;
            // A closed channel is found by the next sweep.
            match event {
                Event::Likeliest { tokens, .. } => {
                    running.likeliest.insert(place, tokens);
                }
                Event::Token { token, logprob, .. } => {
                    tokens += 1;
                    let mut likeliest = running.likeliest.remove(&place).unwrap_or_default();
                    // Summed in another order, the two differ in the last digits.
                    likeliest.iter_mut().filter(|(other, _)| *other == token).for_each(|(_, own)| *own = logprob);
                    let token = DrawnToken { token, logprob, likeliest };
                    let _ = running.call.updates.send(Update::Drawn { choice, token });
                }
                Event::Finished { sample, .. } => {
                    // Before the client can know, so that a place is free when it asks for the next.
                    running.call.ticket.done();
                    let _ = running.call.updates.send(Update::Finished { choice, sample });
                    running.left -= 1;
                    if running.left == 0 {
                        self.running.remove(&request);
                    }
                }
            }
        }
        tokens
    }

    /// Ends every request with this failure.
    fn fail(&mut self, failure: &Failure) {
        for (number, running) in std::mem::take(&mut self.running) {
            self.engine.cancel(number);
            let _ = running.call.updates.send(Update::Failed(failure.clone()));
        }
    }
}
