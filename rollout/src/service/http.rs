//! The daemon's routes: authorisation, `/health`, `/metrics`, `/pause` and `/resume`.

use super::body::json_response;
use super::completions::{chat, completions};
use super::failure::Failure;
use super::frontend::{Frontend, ServingPhase};
use super::messages::{Command, PauseMode};
use super::{metrics, models};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::json;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Paths that are counted by name; all others are counted together.
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

pub(super) fn router(frontend: Arc<Frontend>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/load_lora_adapter", post(models::load))
        .route("/v1/unload_lora_adapter", post(models::unload))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .fallback(|request: Request| async move { Failure::no_path(&shown(request.uri().path())).into_response() })
        .method_not_allowed_fallback(|request: Request| async move {
            Failure::no_method(request.method().as_str(), request.uri().path()).into_response()
        })
        .layer(from_fn_with_state(Arc::clone(&frontend), guard))
        .with_state(frontend)
}

/// Refuses requests without the token, and counts every answer.
async fn guard(State(frontend): State<Arc<Frontend>>, request: Request, next: Next) -> Response<Body> {
    let path = PATHS.into_iter().find(|path| *path == request.uri().path()).unwrap_or("other");
    // The daemon's health is no secret, and load balancers that ask for it carry no token.
    let token = frontend.settings.token.as_deref().filter(|_| path != "/health");
    let response = if token.is_none_or(|token| carries(request.headers(), token)) {
        next.run(request).await
    } else {
        Failure::unauthorized().into_response()
    };
    frontend.metrics.answered(path, response.status().as_u16());
    response
}

/// True if the headers carry this bearer token. The comparison takes the same time wherever the first difference is.
fn carries(headers: &HeaderMap, token: &str) -> bool {
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return false };
    let Some((scheme, given)) = value.split_once(' ') else { return false };
    scheme.eq_ignore_ascii_case("bearer") && bool::from(given.trim().as_bytes().ct_eq(token.as_bytes()))
}

async fn health(State(frontend): State<Arc<Frontend>>) -> Response<Body> {
    let mut response = status(&frontend);
    if frontend.phase() == ServingPhase::Draining {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

async fn metrics(State(frontend): State<Arc<Frontend>>) -> Response<Body> {
    let mut response = Response::new(Body::from(frontend.metrics.text(frontend.unfinished_samples())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

async fn pause(State(frontend): State<Arc<Frontend>>, request: Request) -> Response<Body> {
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
    let paused = frontend.ask(|reply| Command::Pause { mode, reply }).await;
    paused.map_or_else(Failure::into_response, |()| status(&frontend))
}

async fn resume(State(frontend): State<Arc<Frontend>>) -> Response<Body> {
    let resumed = frontend.ask(|reply| Command::Resume { reply }).await;
    resumed.map_or_else(Failure::into_response, |()| status(&frontend))
}

/// The daemon's phase as JSON.
fn status(frontend: &Frontend) -> Response<Body> {
    json_response(json!({"status": frontend.phase().as_str()}).to_string())
}

/// The beginning of a path, for an error message.
fn shown(path: &str) -> String {
    path.chars().take(100).collect()
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
}
