//! The sections that reach beyond this process: push targets and the API.
//!
//! Checks what their keys say together, and, where that is wanted, the files that they name on this machine. Connects to
//! nothing. Invariant: what is wrong by itself is told once.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeTable;

use super::Http;
use super::problem::Problems;
use super::read::{Depth, Filled, unique};
use crate::daemon::http::{self, TlsFiles};
use crate::daemon::push::{self, Kind, TargetSettings};

/// Push targets.
pub(super) fn pushes(document: &DeTable<'_>, depth: Depth, problems: &mut Problems<'_>) -> Vec<TargetSettings> {
    let mut targets = Vec::new();
    let mut names = Vec::new();
    for mut filled in Filled::each(document.get("push"), "push", problems) {
        unique(&filled, &mut names, problems);
        let kind = filled.take::<String>("kind").and_then(|kind| Kind::of(&kind));
        let headers: BTreeMap<String, String> = filled.take("headers").unwrap_or_default();
        let target = TargetSettings {
            name: filled.need("name"),
            kind: kind.unwrap_or(Kind::OtlpGrpc),
            url: filled.need("url"),
            headers: headers.into_iter().collect(),
            token_file: filled.take("token_file"),
            timeout: filled.need::<Duration>("timeout"),
            queue_profiles: usize::try_from(filled.need::<u64>("queue")).unwrap_or(usize::MAX),
            queue_bytes: push::QUEUE_BYTES,
            original_payload: false,
        };
        // What is wrong by itself is told already.
        let checked = match depth {
            _ if filled.flawed => Ok(()),
            Depth::Text => target.check(),
            Depth::Machine => push::try_out(&target),
        };
        if let Err(error) = checked {
            problems.add(filled.place(error.key()), filled.full(error.key()), error.to_string());
        }
        targets.push(target);
    }
    targets
}

/// `[http]`
pub(super) fn http(filled: &mut Filled, depth: Depth, problems: &mut Problems<'_>) -> Http {
    let http = Http {
        listen: filled.take("listen"),
        socket: filled.take("socket"),
        token_file: filled.need("token_file"),
        tls_certificate: filled.take("tls_certificate"),
        tls_key: filled.take("tls_key"),
        names: filled.take("names").unwrap_or_default(),
        max_clients: usize::try_from(filled.need::<u64>("max_clients")).unwrap_or(usize::MAX),
    };
    let given = |key: &str| filled.places.contains_key(key);
    for (one, other) in [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")] {
        if given(one) && !given(other) {
            problems.add(filled.place(one), filled.full(one), format!("needs `{other}` as well"));
        }
    }
    if !http.names.is_empty() && !given("tls_certificate") && !given("tls_key") {
        let message = "count with TLS alone; add tls_certificate and tls_key, or ask for 127.0.0.1 or localhost";
        problems.add(filled.place("names"), filled.full("names"), message);
    }
    if let Some(listen) = http.listen
        && !listen.ip().is_loopback()
        && !given("tls_certificate")
        && !given("tls_key")
    {
        problems.add(
            filled.place("listen"),
            filled.full("listen"),
            format!(
                "{} is not on loopback, and the daemon can read any process's memory; \
                 add tls_certificate and tls_key, or listen on 127.0.0.1",
                listen.ip()
            ),
        );
    }
    if depth == Depth::Machine && !filled.flawed {
        for (key, message) in http_files(&http) {
            problems.add(filled.place(key), filled.full(key), message);
        }
    }
    http
}

/// What is wrong with the files that the section names.
fn http_files(http: &Http) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Err(error) = http::check_token(&http.token_file) {
        found.push(("token_file", error.to_string()));
    }
    if let (Some(certificate), Some(key)) = (&http.tls_certificate, &http.tls_key) {
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        if let Err((path, error)) = http::check_tls(&files) {
            let key = if path == *certificate {
                "tls_certificate"
            } else {
                "tls_key"
            };
            found.push((key, error));
        }
    }
    found
}
