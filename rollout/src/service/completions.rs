//! `/v1/completions` and `/v1/chat/completions`: from a body to an answer, whole or as a stream of events.

use super::choice::Choice;
use super::desk::{Desk, Update};
use super::failure::Failure;
use super::reply::{Part, Reply};
use super::request::{Call, Delivery, Endpoint};
use super::{http, now};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, header};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel};
use tokio_stream::wrappers::ReceiverStream;

/// Above this many bytes a body is tokenized where it holds nobody up.
const LARGE_BODY: usize = 16 << 10;

/// Events that wait for a slow client before its stream waits for it.
const WAITING_EVENTS: usize = 16;

pub(super) async fn completions(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    answer(desk, request, Endpoint::Completions).await.unwrap_or_else(Failure::into_response)
}

pub(super) async fn chat(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    answer(desk, request, Endpoint::Chat).await.unwrap_or_else(Failure::into_response)
}

/// A request that has been handed to the model's thread.
struct Asked {
    desk: Arc<Desk>,
    call: Call,
    model: String,
    updates: UnboundedReceiver<Update>,
    /// The content hash of the policy that took it up.
    policy: String,
    since: Instant,
}

async fn answer(desk: Arc<Desk>, request: Request, endpoint: Endpoint) -> Result<Response<Body>, Failure> {
    let since = Instant::now();
    let body = http::json_body(&desk, request).await?;
    let call = if body.len() > LARGE_BODY {
        let desk = Arc::clone(&desk);
        let read = move || Call::read(endpoint, &body, &desk.limits, &desk.tokenizer);
        tokio::task::spawn_blocking(read).await.map_err(|_| Failure::fault("the request could not be read"))?
    } else {
        Call::read(endpoint, &body, &desk.limits, &desk.tokenizer)
    }?;
    let model = desk.resolve(call.model.as_deref())?;
    let ticket = desk.admit(call.total())?;
    let (draw, mut updates) = desk.draw(&call, model.clone(), ticket);
    desk.meter.prompt_tokens.fetch_add(call.prompts.iter().map(|ids| ids.len() as u64).sum(), Ordering::Relaxed);
    desk.commands.send(super::desk::Command::Draw(draw)).map_err(|_| Failure::draining())?;
    // A refusal comes before anything else, so that it can still be the status of the answer.
    let policy = match updates.recv().await {
        Some(Update::Begun { policy }) => policy,
        Some(Update::Failed(failure)) => return Err(failure),
        _ => return Err(Failure::draining()),
    };
    let asked = Asked { desk, call, model, updates, policy, since };
    if asked.call.delivery == Delivery::Whole {
        return asked.whole().await;
    }
    let (sender, receiver) = channel(WAITING_EVENTS);
    tokio::spawn(asked.stream(sender));
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl Asked {
    async fn whole(mut self) -> Result<Response<Body>, Failure> {
        let mut choices = choices(&self.desk, &self.call);
        let mut scores = vec![Vec::new(); if self.call.prompt_scores.is_some() { self.call.prompts.len() } else { 0 }];
        let (mut left, mut first) = (choices.len(), true);
        while left > 0 {
            match self.updates.recv().await.ok_or_else(Failure::draining)? {
                Update::Begun { .. } => {}
                Update::Scored { prompt, scores: own } => scores[prompt] = own,
                Update::Drawn { choice, token } => {
                    if std::mem::take(&mut first) {
                        self.desk.meter.first_token(self.since.elapsed());
                    }
                    choices[choice].push(token);
                }
                Update::Finished { choice, sample } => {
                    choices[choice].finish(&sample);
                    left -= 1;
                }
                Update::Failed(failure) => return Err(failure),
            }
        }
        self.desk.meter.completed(self.since.elapsed());
        let reply = reply(&self.desk, &self.call, &self.model, &self.policy);
        let drawn = choices.iter().map(Choice::drawn).sum();
        let parts = choices.iter_mut().enumerate().map(|(number, choice)| {
            let (tokens, finish) = (choice.take_tokens(), choice.ended());
            Part { choice: number, text: choice.take_text(), tokens, finish }
        });
        let text = reply.whole(parts.collect(), &scores, reply.usage(drawn));
        let mut response = Response::new(Body::from(text));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// Sends events until every sample is complete or the client is gone.
    async fn stream(mut self, body: Sender<Result<Bytes, Infallible>>) {
        let mut choices = choices(&self.desk, &self.call);
        let reply = reply(&self.desk, &self.call, &self.model, &self.policy);
        // Before anything is drawn: a client that waits for its turn sees that it has been heard.
        let opening: String =
            (0..choices.len()).filter_map(|choice| reply.opening(choice)).map(|data| event(&data)).collect();
        if !opening.is_empty() && body.send(Ok(opening.into())).await.is_err() {
            return;
        }
        let mut events = String::new();
        let (mut left, mut first) = (choices.len(), true);
        // Log-probabilities and ids go out with their token, though its text may have to wait.
        let eager = self.call.likeliest.is_some() || self.call.token_ids;
        while left > 0 {
            let next = tokio::select! {
                next = self.updates.recv() => next,
                () = body.closed() => return,
            };
            let mut next = Some(next.unwrap_or_else(|| Update::Failed(Failure::draining())));
            // Whatever else has come by now goes out in the same write.
            while let Some(update) = next {
                match update {
                    Update::Begun { .. } | Update::Scored { .. } => {}
                    Update::Drawn { choice: number, token } => {
                        if std::mem::take(&mut first) {
                            self.desk.meter.first_token(self.since.elapsed());
                        }
                        let choice = &mut choices[number];
                        choice.push(token);
                        if !eager {
                            choice.take_tokens();
                        }
                        let tokens = choice.take_tokens();
                        let text = choice.take_text();
                        if !text.is_empty() || eager {
                            events += &event(&reply.part(&Part { choice: number, text, tokens, finish: None }));
                        }
                    }
                    Update::Finished { choice: number, sample } => {
                        let choice = &mut choices[number];
                        choice.finish(&sample);
                        let (tokens, finish) = (choice.take_tokens(), choice.ended());
                        let part = Part { choice: number, text: choice.take_text(), tokens, finish };
                        events += &event(&reply.part(&part));
                        left -= 1;
                    }
                    Update::Failed(failure) => {
                        events += &event(&failure.body().to_string());
                        let _ = body.send(Ok(events.into())).await;
                        return;
                    }
                }
                next = self.updates.try_recv().ok();
            }
            if left == 0 {
                self.desk.meter.completed(self.since.elapsed());
                if self.call.delivery == Delivery::StreamWithUsage {
                    let drawn = choices.iter().map(Choice::drawn).sum();
                    events += &event(&reply.usage_event(reply.usage(drawn)));
                }
                events += &event("[DONE]");
            }
            if !events.is_empty() && body.send(Ok(std::mem::take(&mut events).into())).await.is_err() {
                return;
            }
        }
    }
}

fn choices<'a>(desk: &'a Desk, call: &'a Call) -> Vec<Choice<'a>> {
    (0..call.total()).map(|_| Choice::new(&desk.tokenizer, &call.settings.stop)).collect()
}

fn reply<'a>(desk: &'a Desk, call: &'a Call, model: &'a str, policy: &str) -> Reply<'a> {
    let prefix = match call.endpoint {
        Endpoint::Completions => "cmpl",
        Endpoint::Chat => "chatcmpl",
    };
    Reply {
        call,
        tokenizer: &desk.tokenizer,
        id: desk.answer_id(prefix),
        model,
        policy: policy.to_owned(),
        created: now(),
    }
}

/// A server-sent event.
fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}
