//! `/v1/completions` and `/v1/chat/completions`: from a body to an answer, whole or as server-sent events.

use super::body::{json_response, read_json};
use super::choice::Choice;
use super::failure::Failure;
use super::frontend::Frontend;
use super::messages::Update;
use super::now;
use super::reply::Reply;
use super::request::{CompletionRequest, Delivery, Endpoint};
use crate::engine::PromptLogprob;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

/// Bodies of more bytes than this are tokenized on a thread of their own.
const LARGE_BODY: usize = 16 << 10;

/// Events buffered for a slow client before its stream waits for it.
const BUFFERED_EVENTS: usize = 16;

pub(super) async fn completions(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
    answer(frontend, request, Endpoint::Completions).await.unwrap_or_else(Failure::into_response)
}

pub(super) async fn chat(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
    answer(frontend, request, Endpoint::Chat).await.unwrap_or_else(Failure::into_response)
}

async fn answer(frontend: Arc<Frontend>, request: Request, endpoint: Endpoint) -> Result<Response<Body>, Failure> {
    let arrived = Instant::now();
    let body = read_json(&frontend, request).await?;
    let read = {
        let frontend = Arc::clone(&frontend);
        let large = body.len() > LARGE_BODY;
        let read = move || {
            let settings = &frontend.settings;
            CompletionRequest::read(endpoint, &body, &settings.limits, &settings.tokenizer)
        };
        if large {
            let read = tokio::task::spawn_blocking(read).await;
            read.map_err(|_| Failure::fault("the request could not be read"))?
        } else {
            read()
        }
    };
    let request = Arc::new(read?);
    let model = frontend.resolve(request.model.as_deref())?;
    let mut updates = frontend.submit(&request, model.clone())?;
    if request.delivery == Delivery::Whole {
        let mut answer = Answer::new(&frontend, &request, &model, arrived);
        while answer.unfinished > 0 {
            answer.take(updates.recv().await.ok_or_else(Failure::draining)?)?;
        }
        return Ok(json_response(answer.whole()));
    }

    // A request that fails before its first keep-alive is refused by the status of its answer.
    let keep_alive = Duration::from_secs_f64(frontend.settings.config.keep_alive_s);
    let first = match timeout(keep_alive, updates.recv()).await {
        Ok(Some(Update::Failed(failure))) => return Err(failure),
        Ok(Some(update)) => Some(update),
        Ok(None) => return Err(Failure::draining()),
        Err(_) => None,
    };
    let (sender, receiver) = channel(BUFFERED_EVENTS);
    tokio::spawn(async move { Answer::new(&frontend, &request, &model, arrived).stream(first, updates, sender).await });
    let events = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(keep_alive));
    Ok(events.into_response())
}

/// The answer to a request as its samples grow.
struct Answer<'a> {
    frontend: &'a Frontend,
    reply: Reply<'a>,
    choices: Vec<Choice<'a>>,
    /// By prompt, if they are asked for.
    prompt_logprobs: Vec<Vec<PromptLogprob>>,
    /// Choices that are not complete.
    unfinished: usize,
    arrived: Instant,
    has_tokens: bool,
}

/// The part of an answer that an update has changed.
enum Change {
    Begun,
    PromptLogprobs,
    Choice(usize),
}

impl<'a> Answer<'a> {
    fn new(frontend: &'a Frontend, request: &'a CompletionRequest, model: &'a str, arrived: Instant) -> Self {
        let tokenizer = &*frontend.settings.tokenizer;
        let prefix = match request.endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        let id = frontend.answer_id(prefix);
        Self {
            frontend,
            reply: Reply { request, tokenizer, id, model, policy: String::new(), created: now() },
            choices: (0..request.total()).map(|_| Choice::new(tokenizer, &request.settings.stop)).collect(),
            prompt_logprobs: vec![Vec::new(); request.prompt_logprobs.map_or(0, |_| request.prompts.len())],
            unfinished: request.total(),
            arrived,
            has_tokens: false,
        }
    }

    /// Adds an update to the answer. Fails if the request has failed.
    fn take(&mut self, update: Update) -> Result<Change, Failure> {
        let change = match update {
            Update::Begun { policy } => {
                self.reply.policy = policy;
                Change::Begun
            }
            Update::PromptLogprobs { prompt, logprobs } => {
                self.prompt_logprobs[prompt] = logprobs;
                Change::PromptLogprobs
            }
            Update::Token { choice, token } => {
                if !std::mem::replace(&mut self.has_tokens, true) {
                    self.frontend.metrics.first_token(self.arrived.elapsed());
                }
                self.choices[choice].push(token);
                Change::Choice(choice)
            }
            Update::Finished { choice, sample } => {
                self.choices[choice].finish(&sample);
                self.unfinished -= 1;
                if self.unfinished == 0 {
                    self.frontend.metrics.completed(self.arrived.elapsed());
                }
                Change::Choice(choice)
            }
            Update::Failed(failure) => return Err(failure),
        };
        Ok(change)
    }

    /// The whole answer as JSON, once it is complete.
    fn whole(mut self) -> String {
        let usage = self.usage();
        let parts = self.choices.iter_mut().enumerate().map(|(index, choice)| choice.part(index));
        self.reply.whole(parts.collect(), &self.prompt_logprobs, usage)
    }

    /// Sends the answer event by event, until it is complete or the client has disconnected.
    async fn stream(
        mut self,
        mut first: Option<Update>,
        mut updates: UnboundedReceiver<Update>,
        events: Sender<Result<Event, Infallible>>,
    ) {
        let send = async |data: String| events.send(Ok(Event::default().data(data))).await.is_ok();
        while self.unfinished > 0 {
            let update = tokio::select! {
                update = async { if first.is_some() { first.take() } else { updates.recv().await } } => update,
                () = events.closed() => return,
            };
            match self.take(update.unwrap_or_else(|| Update::Failed(Failure::draining()))) {
                Ok(change) => {
                    for data in self.events(&change) {
                        if !send(data).await {
                            return;
                        }
                    }
                }
                Err(failure) => {
                    send(failure.body().to_string()).await;
                    return;
                }
            }
        }
        if self.reply.request.delivery == Delivery::StreamWithUsage && !send(self.reply.usage_event(self.usage())).await
        {
            return;
        }
        send("[DONE]".to_owned()).await;
    }

    /// The events that tell a client of a change.
    fn events(&mut self, change: &Change) -> Vec<String> {
        match change {
            Change::Begun => (0..self.choices.len()).filter_map(|index| self.reply.opening(index)).collect(),
            Change::PromptLogprobs => Vec::new(),
            Change::Choice(index) => {
                // Log-probabilities and ids go out with their token, even if its text has to wait.
                let eager = self.reply.request.top_logprobs.is_some() || self.reply.request.return_token_ids;
                let mut part = self.choices[*index].part(*index);
                if !eager {
                    part.tokens.clear();
                }
                let silent = part.text.is_empty() && part.finish.is_none() && !eager;
                if silent { Vec::new() } else { vec![self.reply.part(&part)] }
            }
        }
    }

    fn usage(&self) -> serde_json::Value {
        self.reply.usage(self.choices.iter().map(Choice::tokens).sum())
    }
}
