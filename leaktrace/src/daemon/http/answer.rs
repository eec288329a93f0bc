//! Answers: JSON, errors, and parameters that do not fit.
//!
//! Every error is one line for people, as `api::Error` or, below `/debug/pprof`, as text. Invariant: no text of a
//! caller gets into a header.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::App;
use super::limits::{BODY_TIME, Bounded, Gate, MAX_BODY};
use crate::api;
use crate::daemon::backend::{Backend, Failure};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub status: StatusCode,
    /// One line.
    pub message: String,
}

impl Problem {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// As text, the way Go's own profiler tells its errors; `go tool pprof` shows it.
    pub fn into_text(self) -> Response {
        let headers = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            ),
            (
                header::HeaderName::from_static("x-go-pprof"),
                HeaderValue::from_static("1"),
            ),
        ];
        let response = (self.status, headers, format!("{}\n", self.message)).into_response();
        self.with_retry(response)
    }

    fn with_retry(&self, mut response: Response) -> Response {
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let error = api::Error {
            error: self.message.clone(),
        };
        let response = (self.status, axum::Json(error)).into_response();
        self.with_retry(response)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let status = match &failure {
            Failure::UnknownProcess(_) | Failure::Nothing(_) | Failure::UnknownProfile(_) => StatusCode::NOT_FOUND,
            Failure::Refused(_) => StatusCode::CONFLICT,
            Failure::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, failure.to_string())
    }
}

/// Asks the backend on a thread that may wait, and answers with JSON.
pub(super) async fn json<T: Serialize>(
    app: &Arc<App>,
    gate: &Gate,
    ask: impl FnOnce(&dyn Backend) -> Result<T, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let backend = Arc::clone(&app.backend);
    let bytes = gate
        .run(move || {
            let answer = ask(backend.as_ref())?;
            let mut bytes = Bounded::default();
            serde_json::to_writer(&mut bytes, &answer)
                .map_err(|error| Problem::internal(format!("failed to write the answer: {error}")))?;
            Ok(bytes.into_inner())
        })
        .await?;
    let body = app.downloads.body(bytes)?;
    Ok(typed("application/json", body))
}

/// A body of a kind.
pub(super) fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    ([kind], body.into()).into_response()
}

/// The body of a request, which is small and comes soon.
pub(super) async fn body(body: Body) -> Result<Bytes, Problem> {
    tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY))
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?
        .map_err(|_| {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is cut off or larger than {} KiB", MAX_BODY >> 10),
            )
        })
}

/// The path exists, not with this method.
pub(super) async fn method_not_allowed(uri: Uri) -> Response {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("`{}` does not take this method", uri.path()),
    );
    if uri.path().starts_with("/debug/pprof") {
        problem.into_text()
    } else {
        problem.into_response()
    }
}

/// Parameters of the address, with errors as [`Problem`]. A parameter with an empty value counts as not given.
pub(super) struct Query<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let given: Vec<&str> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| pair.split_once('=').is_some_and(|(_, value)| !value.is_empty()))
            .collect();
        let uri: Uri = format!("/?{}", given.join("&"))
            .parse()
            .map_err(|error| Problem::bad_request(format!("the parameters are not readable: {error}")))?;
        axum::extract::Query::try_from_uri(&uri)
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|error| Problem::bad_request(one_line(&error.body_text())))
    }
}

/// Parts of the path, with errors as [`Problem`].
pub(super) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            .map_err(|error| Problem::bad_request(one_line(&error.body_text())))
    }
}

/// Control characters as escapes: what callers send comes back in messages.
pub(super) fn one_line(text: &str) -> String {
    crate::report::name::printable(text).into_owned()
}

/// Reads `1`, `true`, `yes`, `on` and their opposites.
pub(super) fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text: std::borrow::Cow<'de, str> = serde::Deserialize::deserialize(deserializer)?;
    match text.as_ref() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        other => Err(serde::de::Error::custom(format!(
            "`{}` is neither true nor false",
            one_line(other)
        ))),
    }
}
