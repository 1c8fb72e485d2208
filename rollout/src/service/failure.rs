//! Error answers: a status and an error object in the form of OpenAI's API.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// A refusal or an internal error, as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// The parameter at fault, if there is one.
    param: Option<String>,
    message: String,
    retry_after_s: Option<u64>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: None, param: None, message: message.into(), retry_after_s: None }
    }

    /// 400: an invalid request.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: an invalid value of the parameter `name`.
    pub(super) fn parameter(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::invalid(message) }
    }

    /// 400: a request longer than the model's context, or than this daemon allows.
    pub(super) fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::parameter(param, message) }
    }

    /// 413: a body of more than `limit` bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes; send less, or raise serve.max_body_bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// 415: a body whose header does not announce JSON.
    pub(super) fn not_json() -> Self {
        let message = "the body must be JSON; send the header `Content-Type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
    }

    /// 408: a body that did not arrive in time.
    pub(super) fn too_slow() -> Self {
        let message = "the request did not arrive in time (serve.body_timeout_s); send it again";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    }

    /// 401: a missing or wrong bearer token.
    pub(super) fn unauthorized() -> Self {
        let message = "no valid token; send the header `Authorization: Bearer TOKEN` with the token that \
                       `proxrl rollout serve` printed or was given";
        let failure = Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message);
        Self { code: Some("invalid_api_key"), ..failure }
    }

    /// 404: a model that is not among the `known` ones.
    pub(super) fn no_model(name: &str, known: &[String]) -> Self {
        let message = format!("the model `{name}` does not exist; served are: {}", known.join(", "));
        let failure = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { code: Some("model_not_found"), param: Some("model".to_owned()), ..failure }
    }

    /// 404: a path without an endpoint.
    pub(super) fn no_path(path: &str) -> Self {
        let message = format!("there is nothing at {path}; see docs/serving.md for what is served");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// 405: a method that the endpoint does not take.
    pub(super) fn no_method(method: &str, path: &str) -> Self {
        let other = if method == "POST" { "GET" } else { "POST" };
        let message = format!("{path} does not take {method}; use {other}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// 429: a full queue, in which `waiting` samples wait already.
    pub(super) fn busy(waiting: usize, retry_after_s: u64) -> Self {
        let message = format!("{waiting} samples wait already; try again in {retry_after_s} s");
        let failure = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("rate_limit_exceeded"), retry_after_s: Some(retry_after_s), ..failure }
    }

    /// 503: a request to a daemon that is shutting down.
    pub(super) fn draining() -> Self {
        let message = "the daemon is shutting down; ask another one, or this one when it is back";
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        Self { code: Some("shutting_down"), retry_after_s: Some(10), ..failure }
    }

    /// 503: a request that `/pause?mode=abort` has ended.
    pub(super) fn aborted() -> Self {
        let message = "the request was ended by /pause?mode=abort; send it again after /resume";
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        Self { code: Some("aborted"), retry_after_s: Some(1), ..failure }
    }

    /// 403: a request without a token for a name that this machine is not known by.
    pub(super) fn another_host() -> Self {
        let message = "without a token this server answers only to its addresses, localhost, serve.host and serve.hosts, \
                       and to pages from there; add the name to serve.hosts, or use a token";
        Self { code: Some("unknown_host"), ..Self::new(StatusCode::FORBIDDEN, "invalid_request_error", message) }
    }

    /// 500: a failure of the daemon on a valid request.
    pub(super) fn fault(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The error object of OpenAI's API.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The answer: status, headers and error object.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        if error.is_input() { Self::invalid(error.to_string()) } else { Self::fault(error.to_string()) }
    }
}

impl From<model::Error> for Failure {
    fn from(error: model::Error) -> Self {
        crate::Error::from(error).into()
    }
}
