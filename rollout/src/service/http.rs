//! The daemon's routes: authorisation, `/health`, `/metrics`, `/pause` and `/resume`.

use super::body::json_response;
use super::completions::{chat, completions};
use super::config::Config;
use super::failure::Failure;
use super::frontend::{Frontend, ServingPhase};
use super::messages::{Command, PauseMode};
use super::{metrics, models};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::json;
use std::net::IpAddr;
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
    let open = path == "/health";
    let token = frontend.settings.token.as_deref().filter(|_| !open);
    let response = if token.is_some_and(|token| !carries(request.headers(), token)) {
        Failure::unauthorized().into_response()
    } else if token.is_none() && !open && !is_own(&request, &frontend.settings.config) {
        Failure::another_host().into_response()
    } else {
        next.run(request).await
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

/// True for a request without a token that no page of another site can have sent: its `Host` is an address, `localhost`
/// or a name of the config, and so is its `Origin`, if a browser sent one. A name that points to this machine's address
/// would otherwise make any page the daemon's own (DNS rebinding).
fn is_own(request: &Request, config: &Config) -> bool {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let authority = header(header::HOST).or_else(|| request.uri().authority().map(Authority::as_str));
    let origin =
        header(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, authority)| authority));
    let is_known = |authority: &str| {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let names = config.hosts.iter().chain([&config.host]);
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || names.into_iter().any(|own| own.eq_ignore_ascii_case(name))
    };
    authority.is_none_or(is_known) && origin.is_none_or(is_known)
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
    fn without_a_token_only_names_of_this_machine_are_served() {
        let config = Config { hosts: vec!["trainer.lan".into()], ..Config::default() };
        let of = |host: &str, origin: Option<&str>| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().insert(header::HOST, HeaderValue::from_str(host).unwrap());
            if let Some(origin) = origin {
                request.headers_mut().insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
            }
            is_own(&request, &config)
        };
        for host in ["127.0.0.1:8000", "[::1]:8000", "localhost", "LOCALHOST:8000", "10.0.0.7:1", "trainer.lan:8000"] {
            assert!(of(host, None), "{host}");
            assert!(of(host, Some(&format!("http://{host}"))), "{host}");
        }
        for host in ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert!(!of(host, None), "{host}");
        }
        assert!(!of("127.0.0.1:8000", Some("http://evil.example")));
        assert!(!of("127.0.0.1:8000", Some("null")));
        assert!(is_own(&Request::new(Body::empty()), &config));
    }

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
