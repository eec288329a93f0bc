//! Pyroscope's `/ingest` with pprof.
//!
//! Owns the query, the form and the names in them. Invariant: names hold no character that Pyroscope's parser takes for
//! punctuation, wherever they come from.
//!
//! The parameter `format` is left out on purpose: with `format=pprof` the whole body is taken for the profile, and the
//! form, which carries the description of the sample types, would be an error. The form alone tells the format.

use std::{
    fmt::Write,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use serde::Serialize;

use super::{
    Export,
    failure::{Failure, Receipt, Retryable, of_http},
    http::Poster,
    resource::{pod_uid, service},
};
use crate::{api::Identity, report::profile::ValueType};

/// Longest value of a label, in characters.
const MOST_VALUE: usize = 200;

/// Sends a profile.
pub(super) async fn post(poster: &Poster, export: &Export, host: &str) -> Result<Receipt, Failure> {
    let mut url = poster.url().clone();
    let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs().to_string();
    url.query_pairs_mut()
        .append_pair("name", &name(&export.identity, host))
        .append_pair("from", &seconds(export.begin))
        .append_pair("until", &seconds(export.end))
        .append_pair("spyName", "leaktrace");
    let boundary = boundary();
    let body = form(&boundary, &export.pprof, &sample_types(&export.profile.sample_types));
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let answer = poster.post(url, &content_type, false, body).await?;
    if answer.status.is_success() {
        return Ok(Receipt {
            parts: 1,
            ..Receipt::default()
        });
    }
    let said = answer.body.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    Err(of_http(answer.status, answer.after, &said, Retryable::Pyroscope))
}

/// The name of the series: the service and labels that tell its processes apart.
fn name(identity: &Identity, host: &str) -> String {
    let mut labels = vec![("hostname", host.to_owned()), ("pid", identity.pid.to_string())];
    let mut add = |key, value: Option<&str>| labels.extend(value.map(|value| (key, value.to_owned())));
    add("comm", Some(&identity.comm));
    add("user", identity.user.as_deref());
    add("unit", identity.unit.as_deref());
    add(
        "container_id",
        identity.container.as_ref().map(|container| container.id.as_str()),
    );
    add("pod_uid", identity.cgroup.as_deref().and_then(pod_uid).as_deref());
    add("runtime", Some(identity.runtime.name()));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    let mut name: String = service(identity)
        .chars()
        .take(MOST_VALUE)
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    name.push('{');
    for (index, (key, value)) in labels.iter().filter(|(_, value)| !value.is_empty()).enumerate() {
        let value = value.chars().take(MOST_VALUE).map(|c| {
            if c.is_control() || matches!(c, '{' | '}' | ',' | '=') {
                '_'
            } else {
                c
            }
        });
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(name, "{comma}{key}=");
        name.extend(value);
    }
    name.push('}');
    name
}

/// How Pyroscope shows a sample type.
#[derive(Debug, Serialize)]
struct SampleType {
    units: &'static str,
    #[serde(rename = "display-name")]
    display_name: String,
    aggregation: &'static str,
    sampled: bool,
}

/// The description of the sample types, as JSON. What is held is averaged over time, what happened is summed.
fn sample_types(kinds: &[ValueType]) -> String {
    let describe = |kind: &ValueType| {
        let happened = kind.kind.starts_with("alloc_");
        let (units, display_name) = match (kind.kind.as_str(), kind.unit.as_str()) {
            ("goroutine", _) => ("goroutines", "goroutines"),
            (name, "bytes") => ("bytes", name),
            (name, _) => ("objects", name),
        };
        SampleType {
            units,
            display_name: display_name.to_owned(),
            aggregation: if happened { "sum" } else { "average" },
            // It says whether to apply a sampling rate; values are scaled already.
            sampled: false,
        }
    };
    let map: serde_json::Map<_, _> = kinds
        .iter()
        .filter_map(|kind| Some((kind.kind.to_string(), serde_json::to_value(describe(kind)).ok()?)))
        .collect();
    serde_json::Value::Object(map).to_string()
}

/// A line that no profile holds.
fn boundary() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("leaktrace-{:016x}{:016x}", random(), random())
}

/// The form with the two files.
fn form(boundary: &str, pprof: &[u8], config: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(pprof.len() + config.len() + 512);
    let parts = [
        ("profile", "profile.pprof", "application/octet-stream", pprof),
        (
            "sample_type_config",
            "sample_type_config.json",
            "application/json",
            config.as_bytes(),
        ),
    ];
    for (field, file, content_type, content) in parts {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\
             Content-Type: {content_type}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Container;

    #[test]
    fn names_with_labels() {
        let identity = Identity {
            pid: 7,
            comm: "a{b}=c,\n".to_owned(),
            executable: Some("/opt/my app {x}".to_owned()),
            container: Some(Container {
                engine: "docker".to_owned(),
                id: "0123".to_owned(),
            }),
            ..Identity::default()
        };
        insta::assert_snapshot!(name(&identity, "host"), @"my_app__x_{hostname=host,pid=7,comm=a_b__c__,container_id=0123,runtime=native}");
    }

    #[test]
    fn sample_types_as_pyroscope_knows_them() {
        let mut kinds = ValueType::heap();
        kinds.push(ValueType::new("goroutine", "count"));
        let json: serde_json::Value = serde_json::from_str(&sample_types(&kinds)).expect("JSON");
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(5));
        let of = |kind: &str| json[kind].to_string();
        insta::assert_snapshot!(of("inuse_space"), @r#"{"aggregation":"average","display-name":"inuse_space","sampled":false,"units":"bytes"}"#);
        insta::assert_snapshot!(of("inuse_objects"), @r#"{"aggregation":"average","display-name":"inuse_objects","sampled":false,"units":"objects"}"#);
        insta::assert_snapshot!(of("alloc_space"), @r#"{"aggregation":"sum","display-name":"alloc_space","sampled":false,"units":"bytes"}"#);
        insta::assert_snapshot!(of("goroutine"), @r#"{"aggregation":"average","display-name":"goroutines","sampled":false,"units":"goroutines"}"#);
    }
}
