//! What becomes of profiles when receivers fail.

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceResponse;
use reqwest::Url;
use tonic::{Code, Status};

use super::{
    super::failure::{retry_details, status_body},
    Kind, PACE, PATIENCE, Pusher, export, figures,
    servers::{Post, answer, grpc, http, listen},
    settings, start, until,
};

/// The number of the export that was posted to Pyroscope.
fn number(post: &Post) -> u64 {
    let url = Url::parse(&format!("http://x{}", post.uri)).expect("a URL");
    let from = url.query_pairs().find(|(key, _)| key == "from").expect("a begin").1;
    from.parse::<u64>().expect("a number") - 1_700_000_000
}

fn numbers(posts: &[Post]) -> Vec<u64> {
    posts.iter().map(number).collect()
}

#[tokio::test]
async fn down_then_up_in_order() {
    for kind in [Kind::Pyroscope, Kind::OtlpHttp] {
        let (listener, url) = listen(0).await;
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let pusher = start(settings(kind, &url));
        for n in 0..5 {
            pusher.offer(export(n));
        }
        // More failures than a receiver that answers would be allowed.
        let figures = until(&pusher, |figures| figures.failed > u64::from(PACE.attempts) + 2).await;
        assert_eq!((figures.sent, figures.dropped, figures.queued), (0, 0, 5));
        let error = figures.error.unwrap_or_default();
        assert!(
            error.contains("failed to reach the receiver") && error.contains("refused"),
            "{error}"
        );
        let server = http(port, |_, _| async { answer(200, "") }).await;
        let figures = until(&pusher, |figures| figures.queued == 0).await;
        assert_eq!((figures.sent, figures.dropped, figures.error), (5, 0, None));
        let posts = server.take();
        assert_eq!(posts.len(), 5);
        if kind == Kind::Pyroscope {
            assert_eq!(numbers(&posts), [0, 1, 2, 3, 4]);
        }
    }
}

#[tokio::test]
async fn a_grpc_receiver_that_is_down() {
    let (listener, url) = listen(0).await;
    drop(listener);
    let pusher = start(settings(Kind::OtlpGrpc, &url));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.failed > u64::from(PACE.attempts) + 2).await;
    assert_eq!((figures.dropped, figures.queued), (0, 1));
    let error = figures.error.unwrap_or_default();
    assert!(error.contains("failed to reach the receiver"), "{error}");
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let server = http(0, |number, _| async move {
        if number > 0 {
            return answer(200, "");
        }
        let mut response = answer(503, "busy");
        response
            .headers_mut()
            .insert("retry-after", "1".parse().expect("a value"));
        response
    })
    .await;
    let pusher = start(settings(Kind::Pyroscope, &server.url));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.failed == 1).await;
    let failed = Instant::now();
    insta::assert_snapshot!(figures.error.unwrap_or_default(), @"failed to send the profile of pid 4242 to `there`: the receiver answered 503 Service Unavailable: busy");
    assert_eq!(figures.queued, 1);
    let figures = until(&pusher, |figures| figures.sent == 1).await;
    assert!(failed.elapsed() > Duration::from_millis(900), "{:?}", failed.elapsed());
    assert_eq!((figures.dropped, figures.error), (0, None));
}

#[tokio::test]
async fn grpc_retry_info_is_waited_for() {
    let server = grpc(|number| match number {
        0 => Err(Status::with_details(
            Code::ResourceExhausted,
            "slow down",
            retry_details(1, 0).into(),
        )),
        1 => Ok(ExportProfilesServiceResponse::default()),
        _ => Err(Status::resource_exhausted("no more")),
    })
    .await;
    let pusher = start(settings(Kind::OtlpGrpc, &server.url));
    pusher.offer(export(1));
    until(&pusher, |figures| figures.failed == 1).await;
    let failed = Instant::now();
    until(&pusher, |figures| figures.sent == 1).await;
    assert!(failed.elapsed() > Duration::from_millis(900), "{:?}", failed.elapsed());
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!(
        (figures.sent, figures.dropped),
        (1, 1),
        "without RetryInfo it is permanent"
    );
}

#[tokio::test]
async fn bad_data_is_dropped_and_the_next_one_sent() {
    let server = http(0, |number, _| async move {
        if number > 0 {
            return answer(200, "");
        }
        let mut response = answer(400, status_body("bad\nprofile"));
        response
            .headers_mut()
            .insert("content-type", "application/x-protobuf".parse().expect("a value"));
        response
    })
    .await;
    let pusher = start(settings(Kind::OtlpHttp, &server.url));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.failed, figures.dropped), (0, 1, 1));
    insta::assert_snapshot!(figures.error.unwrap_or_default(), @"failed to send the profile of pid 4242 to `there`: the receiver answered 400 Bad Request: bad profile");
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!(
        (figures.sent, figures.failed, figures.dropped, figures.error),
        (1, 1, 1, None)
    );
}

#[tokio::test]
async fn a_silent_receiver_gets_three_chances() {
    let server = http(0, |number, _| async move {
        if number < 3 {
            pending::<()>().await;
        }
        answer(200, "")
    })
    .await;
    let mut settings = settings(Kind::Pyroscope, &server.url);
    settings.timeout = Duration::from_millis(200);
    let pusher = start(settings);
    pusher.offer(export(1));
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.failed == 1).await;
    let error = figures.error.unwrap_or_default();
    assert!(error.ends_with("the receiver did not answer within 200ms"), "{error}");
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.failed, figures.dropped), (1, 3, 1));
    assert_eq!(numbers(&server.take()), [1, 1, 1, 2]);
}

#[tokio::test]
async fn what_does_not_fit_is_counted() {
    let open = Arc::new(tokio::sync::Notify::new());
    let gate = Arc::clone(&open);
    let server = http(0, move |number, _| {
        let gate = Arc::clone(&gate);
        async move {
            if number == 0 {
                gate.notified().await;
            }
            answer(200, "")
        }
    })
    .await;
    let mut settings = settings(Kind::Pyroscope, &server.url);
    settings.queue_profiles = 3;
    let pusher = start(settings);
    pusher.offer(export(0));
    let end = Instant::now() + PATIENCE;
    let mut posts = Vec::new();
    while posts.is_empty() {
        assert!(Instant::now() < end, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(5)).await;
        posts = server.take();
    }
    for n in 1..10 {
        pusher.offer(export(n));
    }
    let now = figures(&pusher);
    assert_eq!((now.queued, now.dropped), (4, 6), "three wait, one is on its way");
    open.notify_one();
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.dropped), (4, 6));
    assert_eq!(numbers(&server.take()), [7, 8, 9]);
}

/// A body without an end, and how much of it was taken.
struct Endless(Arc<Mutex<usize>>);

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        *self.0.lock().expect("no panic") += 1 << 16;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 1 << 16])))))
    }
}

#[tokio::test]
async fn an_endless_answer_is_not_read() {
    let taken = Arc::new(Mutex::new(0));
    let count = Arc::clone(&taken);
    let server = http(0, move |number, _| {
        let body = Body::new(Endless(Arc::clone(&count)));
        async move { answer(if number == 0 { 200 } else { 400 }, body) }
    })
    .await;
    let pusher = start(settings(Kind::OtlpHttp, &server.url));
    pusher.offer(export(1));
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.dropped), (1, 1), "the status counts");
    // Hanging up stops the server; what it had made by then is what fits into the sockets' buffers.
    let before = *taken.lock().expect("no panic");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(*taken.lock().expect("no panic"), before);
    assert!(before < 64 << 20, "{before}");
}

#[tokio::test]
async fn redirects_stay_on_the_host() {
    let other = http(0, |_, _| async { answer(200, "") }).await;
    let away = format!("{}/ingest", other.url);
    let server = http(0, move |_, uri| {
        let to = if uri.starts_with("/here") {
            "/there/ingest".to_owned()
        } else {
            away.clone()
        };
        async move {
            if uri.starts_with("/there") {
                return answer(200, "");
            }
            let mut response = answer(307, "");
            response.headers_mut().insert("location", to.parse().expect("a value"));
            response
        }
    })
    .await;
    let pusher = start(settings(Kind::Pyroscope, &format!("{}/away", server.url)));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.dropped), (0, 1));
    insta::assert_snapshot!(figures.error.unwrap_or_default(), @"failed to send the profile of pid 4242 to `there`: the receiver answered 307 Temporary Redirect to another place, which is not followed; give that place as `url`");
    assert!(other.take().is_empty());
    server.take();
    pusher.reload(vec![settings(Kind::Pyroscope, &format!("{}/here", server.url))]);
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.dropped), (1, 1));
    let posts = server.take();
    assert_eq!(posts.len(), 2);
    assert_eq!(posts[0].body, posts[1].body);
}

#[tokio::test]
async fn a_reload_keeps_what_waits() {
    let (listener, url) = listen(0).await;
    drop(listener);
    let server = http(0, |_, _| async { answer(200, "") }).await;
    let kept = settings(Kind::Pyroscope, &url);
    let named = |name: &str, url: &str| {
        let mut settings = settings(Kind::Pyroscope, url);
        settings.name = name.to_owned();
        settings
    };
    let pusher = Pusher::start_paced(
        vec![kept.clone(), named("moved", &url), named("gone", &url)],
        "the-host",
        PACE,
    );
    for n in 0..3 {
        pusher.offer(export(n));
    }
    pusher.reload(vec![named("new", &url), named("moved", &server.url), kept]);
    let of = |name: &str| pusher.figures().into_iter().find(|figures| figures.name == name);
    assert_eq!(of("there").map(|figures| figures.queued), Some(3));
    assert_eq!(of("new").map(|figures| figures.queued), Some(0));
    assert_eq!(of("gone"), None);
    let end = Instant::now() + PATIENCE;
    while of("moved").is_some_and(|figures| figures.sent < 3) {
        assert!(Instant::now() < end, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(numbers(&server.take()), [0, 1, 2]);
}

#[tokio::test]
async fn a_flush_sends_what_it_can_and_ends() {
    let server = http(
        0,
        |number, _| async move { answer(if number == 0 { 503 } else { 200 }, "") },
    )
    .await;
    let (silent, silent_url) = listen(0).await;
    let (listener, down) = listen(0).await;
    drop(listener);
    let named = |name: &str, url: &str| {
        let mut settings = settings(Kind::Pyroscope, url);
        settings.name = name.to_owned();
        settings
    };
    let slow = super::Pace {
        first: Duration::from_secs(60),
        ..PACE
    };
    let targets = vec![
        named("up", &server.url),
        named("silent", &silent_url),
        named("down", &down),
    ];
    let pusher = Pusher::start_paced(targets, "the-host", slow);
    for n in 0..3 {
        pusher.offer(export(n));
    }
    until(&pusher, |figures| figures.failed == 1).await;
    let begin = Instant::now();
    let left = pusher.flush(begin + Duration::from_secs(2)).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(left, 6);
    pusher.offer(export(9));
    let counts: Vec<_> = pusher
        .figures()
        .iter()
        .map(|figures| (figures.sent, figures.dropped, figures.queued))
        .collect();
    assert_eq!(counts, [(3, 1, 0), (0, 4, 0), (0, 4, 0)]);
    drop(silent);
}
