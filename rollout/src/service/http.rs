//! The daemon's paths: who may ask, how bodies are read, and everything but drawing.

use super::completions::{chat, completions};
use super::desk::{Card, Command, Desk, PauseMode, Phase};
use super::failure::Failure;
use super::fields::Fields;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The paths that are counted by name; all others are counted together.
const PATHS: [&str; 9] = [
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/pause",
    "/resume",
];

/// Names of adapters are shown in errors and lists.
const LONGEST_NAME: usize = 128;

pub(super) fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/load_lora_adapter", post(load))
        .route("/v1/unload_lora_adapter", post(unload))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .fallback(|request: Request| async move { Failure::no_path(&shown(request.uri().path())).into_response() })
        .method_not_allowed_fallback(|request: Request| async move {
            Failure::no_method(request.method().as_str(), request.uri().path()).into_response()
        })
        .layer(from_fn_with_state(Arc::clone(&desk), guard))
        .with_state(desk)
}

/// Lets in who has the token, and counts every answer.
async fn guard(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response<Body> {
    let path = PATHS.into_iter().find(|path| *path == request.uri().path()).unwrap_or("other");
    // Whether the daemon is alive is no secret, and those who ask it (load balancers) carry no token.
    let open = path == "/health" || desk.token.is_none();
    let response = if open || desk.token.as_deref().is_some_and(|token| carries(request.headers(), token)) {
        next.run(request).await
    } else {
        Failure::unauthorized().into_response()
    };
    desk.meter.answered(path, response.status().as_u16());
    response
}

fn carries(headers: &HeaderMap, token: &str) -> bool {
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return false };
    let Some((scheme, given)) = value.split_once(' ') else { return false };
    scheme.eq_ignore_ascii_case("bearer") && same(given.trim().as_bytes(), token.as_bytes())
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// The body of a request, within its limits.
pub(super) async fn json_body(desk: &Desk, request: Request) -> Result<Bytes, Failure> {
    // A web page can send other types to a daemon on the reader's machine without asking the browser.
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("application/json") {
        return Err(Failure::not_json());
    }
    let limit = desk.config.max_body_bytes;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(Failure::too_large(limit));
    }
    let patience = Duration::from_secs_f64(desk.config.body_timeout_s);
    let read = tokio::time::timeout(patience, to_bytes(request.into_body(), limit)).await;
    read.map_err(|_| Failure::too_slow())?.map_err(|error| {
        // The limit's own error has no type that axum names.
        let limited = error.to_string().contains("limit");
        if limited { Failure::too_large(limit) } else { Failure::invalid(format!("the body broke off: {error}")) }
    })
}

async fn health(State(desk): State<Arc<Desk>>) -> Response<Body> {
    let phase = desk.phase();
    let mut response = json_response(&json!({"status": phase.word()}));
    if phase == Phase::Draining {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

async fn metrics(State(desk): State<Arc<Desk>>) -> Response<Body> {
    let mut response = Response::new(Body::from(desk.meter.text()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn models(State(desk): State<Arc<Desk>>) -> Response<Body> {
    let cards: Vec<Value> = desk.cards().iter().map(|card| described(card, &desk)).collect();
    json_response(&json!({"object": "list", "data": cards}))
}

async fn model(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    let name = decoded(request.uri().path().strip_prefix("/v1/models/").unwrap_or_default());
    let cards = desk.cards();
    match cards.iter().find(|card| card.name == name) {
        Some(card) => json_response(&described(card, &desk)),
        None => desk.resolve(Some(&name)).map_or_else(Failure::into_response, |_| Failure::draining().into_response()),
    }
}

/// A model in the form of OpenAI's, with what vLLM adds and the hash of its policy.
fn described(card: &Card, desk: &Desk) -> Value {
    json!({
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "proxrl",
        "root": card.path.as_ref().map_or_else(|| card.name.clone(), |path| path.display().to_string()),
        "parent": card.path.as_ref().map(|_| &desk.base),
        "max_model_len": desk.limits.context,
        "policy_hash": card.policy,
    })
}

async fn load(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    let loaded = async {
        let mut fields = Fields::read(&json_body(&desk, request).await?)?;
        let name = adapter_name(&mut fields)?;
        let path = fields.text("lora_path")?;
        let replace = fields.flag("load_inplace")?;
        fields.finish()?;
        let path = path.ok_or_else(|| Failure::parameter("lora_path", "`lora_path` is missing; give a folder"))?;
        let path = adapter_folder(&desk, &path)?;
        ask(&desk, |reply| Command::Load { name, path, replace, reply }).await?
    };
    loaded.await.map_or_else(Failure::into_response, |card| json_response(&described(&card, &desk)))
}

async fn unload(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    let unloaded = async {
        let mut fields = Fields::read(&json_body(&desk, request).await?)?;
        let name = adapter_name(&mut fields)?;
        fields.finish()?;
        ask(&desk, |reply| Command::Unload { name: name.clone(), reply }).await??;
        Ok(name)
    };
    let deleted = |name| json_response(&json!({"id": name, "object": "model", "deleted": true}));
    unloaded.await.map_or_else(Failure::into_response, deleted)
}

fn adapter_name(fields: &mut Fields) -> Result<String, Failure> {
    let name = fields.text("lora_name")?;
    let usable = |name: &String| {
        !name.trim().is_empty() && name.chars().count() <= LONGEST_NAME && !name.chars().any(char::is_control)
    };
    name.filter(usable).ok_or_else(|| {
        Failure::parameter("lora_name", format!("`lora_name` must be a name of 1 to {LONGEST_NAME} letters"))
    })
}

/// The folder that a request means, which must lie below the one that the config allows.
fn adapter_folder(desk: &Desk, path: &str) -> Result<PathBuf, Failure> {
    let root = &desk.adapter_root;
    let folder = root.join(path).canonicalize().ok().filter(|folder| folder.starts_with(root) && folder.is_dir());
    folder.ok_or_else(|| {
        let message = format!(
            "`lora_path` is no folder below {}; adapters elsewhere can be named in [serve.adapters], or allowed by \
             serve.adapter_root",
            root.display()
        );
        Failure::parameter("lora_path", message)
    })
}

async fn pause(State(desk): State<Arc<Desk>>, request: Request) -> Response<Body> {
    let mode = match request.uri().query().unwrap_or_default() {
        "" | "mode=keep" => PauseMode::Keep,
        "mode=wait" => PauseMode::Wait,
        "mode=abort" => PauseMode::Abort,
        _ => {
            let message = "/pause takes mode=keep (requests go on after /resume), mode=wait (they end first) or \
                           mode=abort (they fail)";
            return Failure::parameter("mode", message).into_response();
        }
    };
    let paused = ask(&desk, |reply| Command::Pause { mode, reply }).await;
    paused.map_or_else(Failure::into_response, |()| json_response(&json!({"status": desk.phase().word()})))
}

async fn resume(State(desk): State<Arc<Desk>>) -> Response<Body> {
    let resumed = ask(&desk, |reply| Command::Resume { reply }).await;
    resumed.map_or_else(Failure::into_response, |()| json_response(&json!({"status": desk.phase().word()})))
}

/// Has the model's thread do something, and waits until it is done.
async fn ask<T>(desk: &Desk, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    desk.commands.send(command(reply)).map_err(|_| Failure::draining())?;
    answer.await.map_err(|_| Failure::draining())
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The beginning of a path, for an error message.
fn shown(path: &str) -> String {
    path.chars().take(100).collect()
}

/// A path with its percent signs resolved; one that is not valid stays as it is.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_lets_in() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            headers
        };
        assert!(carries(&with("Bearer abc"), "abc") && carries(&with("bearer  abc"), "abc"));
        for value in ["Bearer ab", "Bearer abcd", "Bearer ", "abc", "Basic abc", "Bearer ABC"] {
            assert!(!carries(&with(value), "abc"), "{value}");
        }
        assert!(!carries(&HeaderMap::new(), "abc"));
    }

    #[test]
    fn names_in_paths_are_decoded() {
        assert_eq!(decoded("owner%2Fname%20x"), "owner/name x");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%f"), "%zz%f");
        assert_eq!(decoded("%ff"), "%ff");
    }
}
