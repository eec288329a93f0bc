//! The OpenAPI document of `/api/v1`, made from the handlers and shapes themselves.
//!
//! Owns titles and the list; a handler that is not in it fails a test.

use std::sync::OnceLock;

use axum::response::{IntoResponse as _, Response};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::answer::{Problem, typed};
use super::{processes, profiles};
use crate::api;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "leaktrace",
        version = "1",
        description = "Which code holds the memory of each process on this machine. Times are nanoseconds since 1970, \
            sizes are bytes, what is not known is null. Fields may be added; none is removed or changes its meaning \
            within this version. Answers of 503 name in Retry-After when to come again.",
        license(name = "MIT OR Apache-2.0")
    ),
    paths(
        processes::status,
        processes::list,
        processes::details,
        processes::timeline,
        processes::goroutines,
        processes::gc,
        processes::start_trace,
        processes::stop_trace,
        processes::stored_of,
        processes::decisions,
        processes::stored,
        profiles::top,
        profiles::stacks,
        profiles::download_of,
        profiles::download
    ),
    components(schemas(api::Error)),
    modifiers(&Token)
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "The token from the daemon's token file. The Unix socket needs none.",
        ));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme.build()));
        document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    }
}

/// The document as JSON.
pub(super) fn json() -> Result<&'static str, Problem> {
    static TEXT: OnceLock<Result<String, String>> = OnceLock::new();
    TEXT.get_or_init(|| Document::openapi().to_json().map_err(|error| error.to_string()))
        .as_deref()
        .map_err(|error| Problem::internal(format!("failed to write the document: {error}")))
}

/// `/api/v1/openapi.json`.
pub(super) async fn document() -> Response {
    match json() {
        Ok(text) => typed("application/json", text),
        Err(problem) => problem.into_response(),
    }
}
