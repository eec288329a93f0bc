//! Slow, many and leaving callers.

use super::*;
use crate::daemon::http::limits::{MAX_HEAD, Paced};

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_keep_others_out() {
    let demo = demo_with(Fake::new(10, 10), 4).await;
    let mut strangers = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(demo.address).await.unwrap();
        // A head that never ends.
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        strangers.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(demo.get("/api/v1/status").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let reply = exchange(
        UnixStream::connect(&demo.socket).await.unwrap(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    )
    .await;
    assert_eq!(reply.status, 200);
    let mut sent_away = 0;
    for stream in &mut strangers {
        let mut byte = [0];
        let read = timeout(Duration::from_millis(50), stream.read(&mut byte)).await;
        sent_away += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert!(sent_away >= 36, "{sent_away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_known_callers_refuses_politely() {
    let demo = demo_with(Fake::new(10, 10), 2).await;
    let mut known = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(demo.address).await.unwrap();
        let request = format!(
            "GET /api/v1/status HTTP/1.1\r\nHost: {}\r\n{}\r\n",
            demo.address,
            demo.bearer()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = [0; 64];
        assert!(stream.read(&mut bytes).await.unwrap() > 0);
        known.push(stream);
    }
    let reply = demo.get("/api/v1/status").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    assert!(reply.json()["error"].as_str().unwrap().contains("too many"));
    drop(known);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(demo.get("/api/v1/status").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reads_from_processes_leave_the_list_quick() {
    let mut fake = Fake::new(10, 10);
    fake.delay = Duration::from_secs(3);
    let demo = Arc::new(demo_with(fake, 32).await);
    let waiting: Vec<_> = (0..12)
        .map(|_| {
            let demo = Arc::clone(&demo);
            tokio::spawn(async move { demo.get(&format!("/debug/pprof/heap?pid={NATIVE}")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    assert_eq!(demo.get("/api/v1/processes").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut statuses = Vec::new();
    for reply in waiting {
        let reply = reply.await.unwrap();
        if reply.status == 503 {
            assert_eq!(reply.header("retry-after"), Some("1"));
        }
        statuses.push(reply.status);
    }
    // Four at a time take 3 s each; none waits for longer than 5 s.
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(503)), (8, 4), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_ends_its_wait() {
    let demo = demo().await;
    for _ in 0..4 {
        let mut stream = TcpStream::connect(demo.address).await.unwrap();
        let head = format!(
            "GET /debug/pprof/heap?pid={NATIVE}&seconds=300 HTTP/1.1\r\nHost: {}\r\n",
            demo.address
        );
        stream
            .write_all(format!("{head}{}\r\n", demo.bearer()).as_bytes())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // All four places among the waiting would be taken otherwise.
    let reply = demo.get(&format!("/debug/pprof/heap?pid={NATIVE}&seconds=1")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_takes_a_second_at_most_and_the_socket_is_gone() {
    let mut demo = demo().await;
    let mut stream = TcpStream::connect(demo.address).await.unwrap();
    let head = format!(
        "GET /debug/pprof/heap?pid={NATIVE}&seconds=300 HTTP/1.1\r\nHost: {}\r\n",
        demo.address
    );
    stream
        .write_all(format!("{head}{}\r\n", demo.bearer()).as_bytes())
        .await
        .unwrap();
    let idle = TcpStream::connect(demo.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    demo.stop.take().unwrap().send(()).unwrap();
    demo.server.take().unwrap().finished().await;
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(!demo.socket.exists());
    assert!(TcpStream::connect(demo.address).await.is_err());
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_or_measure_are_cut_off() {
    let demo = demo().await;
    let request = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(2 * MAX_HEAD));
    let reply = exchange(TcpStream::connect(demo.address).await.unwrap(), request).await;
    assert_eq!(reply.status, 431);
}

#[tokio::test]
async fn who_does_not_read_is_left() {
    // A pipe of 1 KiB that nobody reads.
    let (near, mut far) = tokio::io::duplex(1024);
    let mut paced = Paced::with(near, Duration::from_millis(200));
    let begun = Instant::now();
    let error = paced.write_all(&[0; 8192]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    // One who reads a byte now and then does not keep it either.
    let (near, mut slow) = tokio::io::duplex(1024);
    let mut paced = Paced::with(near, Duration::from_millis(200));
    let reader = tokio::spawn(async move {
        let mut byte = [0];
        while slow.read(&mut byte).await.is_ok_and(|count| count > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let error = timeout(Duration::from_secs(5), paced.write_all(&[0; 8192]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(paced);
    reader.await.unwrap();
    let mut rest = vec![0; 1024];
    assert_eq!(
        far.read_exact(&mut rest).await.unwrap(),
        1024,
        "what went before is there"
    );
}
