//! Bodies of requests and answers.

use super::failure::Failure;
use super::frontend::Frontend;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Response, header};
use std::time::Duration;

/// Reads the body of a request, within the daemon's limits of size and time.
///
/// # Errors
///
/// A refusal if the header does not announce JSON, or the body is too large, too slow or broken off.
pub(super) async fn read_json(frontend: &Frontend, request: Request) -> Result<Bytes, Failure> {
    // A web page can send other types to a daemon on the reader's machine without asking the browser.
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("application/json") {
        return Err(Failure::not_json());
    }
    let limit = frontend.settings.config.max_body_bytes;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(Failure::too_large(limit));
    }
    let patience = Duration::from_secs_f64(frontend.settings.config.body_timeout_s);
    let read = tokio::time::timeout(patience, to_bytes(request.into_body(), limit)).await;
    read.map_err(|_| Failure::too_slow())?.map_err(|error| {
        // The limit's own error has no type that axum names.
        let limited = error.to_string().contains("limit");
        if limited { Failure::too_large(limit) } else { Failure::invalid(format!("the body broke off: {error}")) }
    })
}

/// An answer with this JSON text.
pub(super) fn json_response(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
