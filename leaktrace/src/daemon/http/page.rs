//! The page's files, the login, and `/healthz`.
//!
//! Owns no content: files come from `daemon::ui`. Invariant: what stands here is the same for
//! everybody and tells nothing about a process.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::App;
use super::answer::{self, Problem, one_line, typed};
use crate::daemon::ui;

/// Where the token is sent to.
pub(super) const LOGIN_PATH: &str = "/login";

/// The file that asks for the token: its form sends `token` to `/login` with POST, so that it is in no address. It is
/// shown in place of the page and after a wrong token.
const LOGIN: &str = "login.html";
/// The page.
const INDEX: &str = "index.html";

/// It runs, and so do its parts; else which does not.
pub(super) async fn healthz(State(app): State<Arc<App>>) -> Response {
    let stuck = app.backend.stuck();
    let status = if stuck.is_some() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    let mut response = typed("text/plain; charset=utf-8", stuck.unwrap_or_else(|| "ok".to_owned()));
    *response.status_mut() = status;
    response
}

/// Whether a path is a file that is no secret: all but the page itself, which shows nothing but errors without a token.
pub(super) fn is_public(path: &str) -> bool {
    let name = path.trim_start_matches('/');
    name != INDEX && ui::asset(name).is_some()
}

/// The static page that asks for the token, as a refusal.
pub(super) fn ask_for_token() -> Response {
    let mut response = login_page();
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let challenge = HeaderValue::from_static("Bearer realm=\"leaktrace\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// The static page that asks for the token.
pub(super) async fn login() -> Response {
    login_page()
}

fn login_page() -> Response {
    let Some(login) = ui::asset(LOGIN) else {
        return Problem::internal("the page that asks for the token is missing").into_response();
    };
    // Without a referrer browsers send a form with `Origin: null`, as a foreign page may.
    let referrer = (header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    ([referrer], typed(login.content_type, login.bytes)).into_response()
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

/// Takes the token out of the form and gives a cookie for it.
pub(super) async fn take_token(State(app): State<Arc<App>>, body: Body) -> Result<Response, Problem> {
    let form = answer::body(body).await?;
    let cookie = token(&form).and_then(|token| app.guard.cookie(token.trim()));
    let Some(cookie) = cookie else {
        return Ok(ask_for_token());
    };
    let headers = [
        (header::SET_COOKIE, cookie),
        (header::LOCATION, HeaderValue::from_static("/")),
    ];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

/// The field `token` of a form, whose encoding is that of a query.
fn token(form: &Bytes) -> Option<String> {
    let form = std::str::from_utf8(form).ok()?;
    let uri: Uri = format!("/?{form}").parse().ok()?;
    let Query(login) = Query::<Login>::try_from_uri(&uri).ok()?;
    Some(login.token)
}

/// A file of the page, or nothing.
pub(super) async fn file(uri: Uri, method: Method, headers: HeaderMap) -> Response {
    let path = uri.path();
    let name = match path.trim_start_matches('/') {
        "" => INDEX,
        name => name,
    };
    let asset = (method == Method::GET || method == Method::HEAD)
        .then(|| ui::asset(name))
        .flatten();
    let Some(asset) = asset else {
        let problem = Problem::new(StatusCode::NOT_FOUND, format!("nothing is at `{}`", one_line(path)));
        return if path.starts_with("/debug/pprof") {
            problem.into_text()
        } else {
            problem.into_response()
        };
    };
    let Ok(etag) = HeaderValue::from_str(asset.etag) else {
        return Problem::internal("the file has no usable tag").into_response();
    };
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|tags| tags.to_str().ok())
        .flat_map(|tags| tags.split(','))
        .any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
        });
    let kept = [
        (header::ETAG, etag),
        // Kept, and asked for again each time: a new daemon brings a new page.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    if known {
        return (StatusCode::NOT_MODIFIED, kept).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type))];
    (kept, kind, Body::from(asset.bytes)).into_response()
}
