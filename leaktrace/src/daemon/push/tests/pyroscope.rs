//! What Pyroscope gets.

use reqwest::Url;

use super::{
    Kind, export, profile,
    servers::{Post, answer, http},
    settings, start, until,
};
use crate::export::pprof;

/// The files of a form by their fields.
fn parts(post: &Post) -> Vec<(String, Vec<u8>)> {
    let boundary = post
        .header("content-type")
        .strip_prefix("multipart/form-data; boundary=")
        .expect("a form");
    let mark = format!("--{boundary}").into_bytes();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let mut rest = post.body.as_slice();
    let mut found = Vec::new();
    assert!(rest.starts_with(&mark));
    loop {
        rest = &rest[mark.len()..];
        if rest == b"--\r\n" {
            return found;
        }
        let head_end = find(rest, b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(rest[..head_end].to_vec()).expect("text");
        let field = head
            .split("name=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .expect("a name");
        let body = &rest[head_end + 4..];
        let end = find(body, &mark).expect("another mark");
        assert_eq!(&body[end - 2..end], b"\r\n");
        found.push((field.to_owned(), body[..end - 2].to_vec()));
        rest = &body[end..];
    }
}

#[tokio::test]
async fn a_form_with_profile_and_sample_types() {
    let server = http(0, |_, _| async { answer(200, "") }).await;
    let pusher = start(settings(Kind::Pyroscope, &server.url));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.failed, figures.error), (1, 0, None));
    let posts = server.take();
    let url = Url::parse(&format!("http://x{}", posts[0].uri)).expect("a URL");
    assert_eq!(url.path(), "/ingest");
    let query: Vec<_> = url.query_pairs().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        query,
        [
            "name=leaky{hostname=the-host,pid=4242,comm=leaky,user=daemon,container_id=c0ffee,runtime=native}",
            "from=1700000001",
            "until=1700000061",
            "spyName=leaktrace",
        ]
    );
    let parts = parts(&posts[0]);
    assert_eq!(
        parts.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(),
        ["profile", "sample_type_config"]
    );
    assert_eq!(pprof::read(parts[0].1.as_slice()).expect("a profile"), profile());
    let config: serde_json::Value = serde_json::from_slice(&parts[1].1).expect("JSON");
    for kind in ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"] {
        assert_eq!(config[kind]["display-name"], kind);
    }
}
