//! The API and the metrics page.

use std::io::Read as _;

use super::*;
use crate::daemon::http::limits::MAX_BODY;

#[tokio::test(flavor = "multi_thread")]
async fn tracing_begins_and_ends_with_json_alone() {
    let demo = demo().await;
    let path = format!("/api/v1/processes/{NATIVE}/trace");
    let json = format!("{}Content-Type: application/json\r\n", demo.bearer());
    for kind in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
    ] {
        let headers = format!("{}{kind}", demo.bearer());
        assert_eq!(demo.bare("POST", &path, &headers, "{}").await.status, 415, "{kind}");
        assert_eq!(demo.bare("DELETE", &path, &headers, "").await.status, 415, "{kind}");
    }
    let started = demo.bare("POST", &path, &json, r#"{"sample_interval": 4096}"#).await;
    assert_eq!(started.status, 200, "{}", started.text());
    assert_eq!(started.json()["sample_interval"], 4096);
    let traced = demo.ok(&format!("/api/v1/processes/{NATIVE}")).await;
    assert_eq!(traced["tracing"]["state"], "traced");
    assert_eq!(demo.bare("DELETE", &path, &json, "").await.status, 200);
    assert_eq!(demo.bare("DELETE", &path, &json, "").await.status, 404);
    assert_eq!(
        demo.bare("POST", &path, &json, "").await.status,
        200,
        "no body: as configured"
    );

    for bad in [
        "{",
        "[]",
        r#"{"sample_interval": 0}"#,
        r#"{"interval": 1}"#,
        r#"{"sample_interval": "x"}"#,
    ] {
        let reply = demo.bare("POST", &path, &json, bad).await;
        assert_eq!(reply.status, 400, "{bad}");
        assert!(reply.json()["error"].is_string(), "{bad}");
    }
    let large = format!("\"{}\"", "x".repeat(MAX_BODY));
    assert_eq!(demo.bare("POST", &path, &json, &large).await.status, 413);
    let refused = demo.bare("POST", "/api/v1/processes/107/trace", &json, "{}").await;
    assert_eq!(refused.status, 409);
}

/// A value of each row.
fn column<'v>(list: &'v Value, pointer: &'v str) -> impl Iterator<Item = &'v Value> {
    let rows = list["processes"].as_array().unwrap();
    rows.iter().map(move |row| row.pointer(pointer).unwrap_or(&Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_sort_filter_and_page() {
    let demo = demo().await;
    let pids = |value: &Value| -> Vec<u64> {
        let rows = value["processes"].as_array().unwrap();
        rows.iter().map(|row| row["pid"].as_u64().unwrap()).collect()
    };
    let all = demo.ok("/api/v1/processes").await;
    assert_eq!(all["total"], 120);
    let growth: Vec<Option<f64>> = all["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["memory"]["growth"].as_f64())
        .collect();
    let known = growth.iter().filter(|growth| growth.is_some()).count();
    assert!(known > 50 && growth[..known].is_sorted_by(|a, b| a >= b));
    assert!(growth[known..].iter().all(Option::is_none), "unknown ones last");
    let up = demo.ok("/api/v1/processes?sort=growth&order=asc").await;
    assert!(up["processes"][119]["memory"]["growth"].is_null(), "in either order");

    let page = demo.ok("/api/v1/processes?sort=pid&limit=3&offset=5").await;
    assert_eq!((pids(&page), &page["total"]), (vec![105, 106, 107], &Value::from(120)));
    let traced = demo
        .ok("/api/v1/processes?state=traced,refused&sort=pid&filter=&order=")
        .await;
    assert_eq!(pids(&traced), [100, 107, 150, 157, 200, 207]);
    assert_eq!(pids(&demo.ok("/api/v1/processes?filter=PROGRAM-117").await), [117]);
    for (sort, of) in [
        ("rss", "/memory/rss"),
        ("anonymous", "/memory/anonymous"),
        ("swap", "/memory/swap"),
        ("tracked", "/memory/tracked"),
        ("go_heap", "/memory/go_heap"),
    ] {
        let sorted = demo.ok(&format!("/api/v1/processes?sort={sort}")).await;
        let figures: Vec<Option<u64>> = column(&sorted, of).map(Value::as_u64).collect();
        let known = figures.iter().filter(|figure| figure.is_some()).count();
        assert!(known > 1 && figures[..known].is_sorted_by(|a, b| a >= b), "{sort}");
        assert!(figures[0] > figures[known - 1], "{sort}: all are the same");
    }
    for (sort, of) in [("comm", "/comm"), ("user", "/user")] {
        let sorted = demo.ok(&format!("/api/v1/processes?sort={sort}")).await;
        let names: Vec<&str> = column(&sorted, of).filter_map(Value::as_str).collect();
        assert!(
            names.len() == 120 && names.is_sorted() && names[0] < names[119],
            "{sort}"
        );
    }
    let states = demo.ok("/api/v1/processes?sort=state").await;
    let mut groups: Vec<&str> = column(&states, "/tracing/state").filter_map(Value::as_str).collect();
    groups.dedup();
    assert_eq!(groups, ["traced", "detached", "refused", "watched", "gone"]);
    for bad in [
        "sort=size",
        "srot=pid",
        "limit=-1",
        "state=dead",
        "order=up",
        "offset=x",
        "filter=%ff",
    ] {
        let reply = demo.get(&format!("/api/v1/processes?{bad}")).await;
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        // Bytes that are no text are replaced, not refused.
        assert_eq!(
            reply.status,
            if bad.starts_with("filter") { 200 } else { 400 },
            "{bad}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_answers_and_errors_are_json() {
    let demo = demo().await;
    for path in ["status", "decisions", "profiles", "openapi.json"] {
        demo.ok(&format!("/api/v1/{path}")).await;
    }
    for path in [
        "",
        "/timeline",
        "/top",
        "/stacks",
        "/goroutines?min_wait=5m",
        "/gc",
        "/profiles",
    ] {
        demo.ok(&format!("/api/v1/processes/{GO}{path}")).await;
    }
    for (path, status) in [
        (format!("/api/v1/processes/{NATIVE}/gc"), 404),
        ("/api/v1/processes/5".to_owned(), 404),
        ("/api/v1/processes/5/timeline".to_owned(), 404),
        ("/api/v1/processes/x".to_owned(), 400),
        ("/api/v1/processes/99999999999".to_owned(), 400),
        (format!("/api/v1/processes/{GO}/timeline?since=5&until=4"), 400),
        (format!("/api/v1/processes/{GO}/goroutines?min_wait=soon"), 400),
        (format!("/api/v1/processes/{GO}/top?sample_type=cpu"), 400),
        (format!("/api/v1/processes/{GO}/top?heap=jvm"), 400),
        (format!("/api/v1/processes/{GO}/stacks?from=nothing"), 404),
        (format!("/api/v1/processes/{GO}/stacks?from={NATIVE}-010m"), 404),
        (format!("/api/v1/processes/{GO}/profiles/..%2f..%2fetc%2fpasswd"), 404),
        ("/api/v1/nothing".to_owned(), 404),
    ] {
        let reply = demo.get(&path).await;
        assert_eq!(reply.status, status, "{path}");
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(!error.is_empty() && !error.contains('\n'), "{path}: {error}");
    }
    let headers = format!("{}Content-Type: application/json\r\n", demo.bearer());
    let reply = demo.bare("POST", "/api/v1/status", &headers, "{}").await;
    assert_eq!(reply.status, 405);
    assert!(reply.json()["error"].is_string());
    let packed = format!("{}Accept-Encoding: gzip\r\n", demo.bearer());
    let reply = demo.bare("GET", "/api/v1/processes", &packed, "").await;
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_metrics_stay() {
    let demo = demo().await;
    let reply = demo.get("/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = reply.text();
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE leaktrace_"))
        .collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    build_info gauge
    start_time_seconds gauge
    watched_processes gauge
    traced_processes gauge
    suspect_processes gauge
    cpu_ratio gauge
    cpu_budget_ratio gauge
    resident_bytes gauge
    resident_budget_bytes gauge
    probes_cpu_ratio gauge
    growth_cpu_ratio gauge
    probes_cpu_budget_ratio gauge
    trap_seconds gauge
    trap_measured gauge
    losses_total counter
    troubles gauge
    store_profiles gauge
    store_bytes gauge
    store_dropped_profiles_total counter
    store_paused gauge
    push_sent_profiles_total counter
    push_failed_attempts_total counter
    push_dropped_profiles_total counter
    push_queued_profiles gauge
    push_up gauge
    http_connections gauge
    http_refused_connections_total counter
    process_start_time_seconds gauge
    process_resident_bytes gauge
    process_anonymous_bytes gauge
    process_swap_bytes gauge
    process_brk_bytes gauge
    process_major_faults_total counter
    process_tracked_bytes gauge
    process_go_heap_bytes gauge
    process_goroutines gauge
    process_growth_bytes_per_second gauge
    process_traced gauge
    process_sample_interval_bytes gauge
    process_probes_cpu_ratio gauge
    process_probe_hits_per_second gauge
    ");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(series.starts_with("leaktrace_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
    }
    let series = text
        .lines()
        .filter(|line| line.starts_with("leaktrace_process_resident_bytes"))
        .count();
    assert!(
        (100..120).contains(&series),
        "the top 100 and those that are traced: {series}"
    );
    for line in [
        r#"leaktrace_trap_seconds{at="emulated"} 0.00000064"#,
        r#"leaktrace_trap_seconds{at="stepped"} 0.0000092"#,
        r#"leaktrace_trap_seconds{at="return"} 0.00000048"#,
        "leaktrace_trap_measured 1",
    ] {
        assert!(text.lines().any(|other| other == line), "no `{line}` in {text}");
    }
    let fake = Fake::new(120, 1);
    let processes = crate::daemon::backend::Backend::processes(&fake);
    let hostile: Vec<_> = processes
        .processes
        .iter()
        .filter(|process| process.identity.pid == 185)
        .cloned()
        .collect();
    let text = metrics::text(&api::Status::default(), &hostile, &metrics::Http::default());
    assert!(
        text.contains(r#"comm="quote\"back\\slas""#),
        "quotes are escaped: {text}"
    );
    assert!(!text.contains("trap"), "a price that is not known: {text}");
}

#[test]
fn the_document_names_every_address_and_every_shape() {
    let document: Value = serde_json::from_str(openapi::json().ok().unwrap()).unwrap();
    let source = include_str!("../mod.rs");
    let routed = source
        .split('"')
        .filter(|text| text.starts_with("/api/v1/") && *text != "/api/v1/openapi.json");
    let documented = document["paths"].as_object().unwrap();
    let mut count = 0;
    for path in routed {
        assert!(documented.contains_key(path), "{path}");
        count += 1;
    }
    assert_eq!(count, documented.len());
    let text = document.to_string();
    let mut operations: Vec<&str> = text
        .split("\"operationId\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let all = operations.len();
    operations.sort_unstable();
    operations.dedup();
    assert_eq!(operations.len(), all, "each has a name of its own");
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    assert!(document.pointer("/components/securitySchemes/token").is_some());
    for price in ["emulated", "stepped", "returned", "measured"] {
        let pointer = format!("/components/schemas/Traps/properties/{price}");
        assert!(document.pointer(&pointer).is_some(), "{pointer}");
    }
}

/// Compressed answers are the same answers.
#[tokio::test(flavor = "multi_thread")]
async fn compression_changes_nothing_but_the_length() {
    let demo = demo().await;
    let path = format!("/api/v1/processes/{GO}/profiles/{GO}-060m?format=folded");
    let plain = demo.get(&path).await;
    let headers = format!("{}Accept-Encoding: gzip\r\nHost: {}\r\n", demo.bearer(), demo.address);
    // HTTP/1.0 has no chunks, so that the body can be read as it is.
    let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
    let packed = exchange(TcpStream::connect(demo.address).await.unwrap(), request).await;
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_slice())
        .read_to_end(&mut text)
        .unwrap();
    assert_eq!(text, plain.body);
    assert!(packed.body.len() < text.len() / 2);
}
