//! The daemon's client against a server on a Unix socket.

use std::{cell::RefCell, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use axum::{
    Json, Router,
    extract::{Path as PathOf, RawQuery},
    http::StatusCode,
    routing::get,
};

use super::{
    super::{
        daemon::Daemon,
        source::{Order, Query, Source, SourceError},
        worker::{Answer, Kind, Part, Request, Scene, Worker, fetch},
    },
    batch::Fixed,
    details, goroutines, processes, stacks, status, top,
};
use crate::api;

type Refusal = (StatusCode, Json<api::Error>);

fn refusal(status: StatusCode, text: &str) -> Refusal {
    let error = text.to_owned();
    (status, Json(api::Error { error }))
}

fn router() -> Router {
    let list = |RawQuery(query): RawQuery| async move {
        let mut answer = processes();
        // So that the test sees what was asked.
        answer.processes[0].identity.comm = query.unwrap_or_default();
        Json(answer)
    };
    let one = |PathOf(pid): PathOf<u32>| async move {
        match pid {
            31337 => Ok(Json(details(pid))),
            _ => Err(refusal(StatusCode::NOT_FOUND, "pid 1 is not known\u{1b}[2J")),
        }
    };
    let table = |RawQuery(query): RawQuery| async move {
        let mut answer = top();
        answer.comments = vec![query.unwrap_or_default()];
        Json(answer)
    };
    let trace = || async { Json(details(31337).process.tracing) };
    let busy = || async { refusal(StatusCode::CONFLICT, "no budget") };
    let process = "/api/v1/processes/{pid}";
    Router::new()
        .route("/api/v1/status", get(|| async { Json(status()) }))
        .route("/api/v1/processes", get(list))
        .route(process, get(one))
        .route(&format!("{process}/timeline"), get(|| async { "no JSON" }))
        .route(&format!("{process}/top"), get(table))
        .route(&format!("{process}/stacks"), get(|| async { Json(stacks()) }))
        .route(&format!("{process}/goroutines"), get(|| async { Json(goroutines()) }))
        .route(&format!("{process}/trace"), axum::routing::post(trace).delete(busy))
}

/// A server as long as this lives.
struct Server(#[expect(dead_code, reason = "ends the server when dropped")] tokio::runtime::Runtime);

fn serve(socket: &Path, router: Router) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = {
        let _entered = runtime.enter();
        tokio::net::UnixListener::bind(socket).expect("a socket in a folder of our own")
    };
    runtime.spawn(async { axum::serve(listener, router).await });
    Server(runtime)
}

#[test]
fn questions_and_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let _server = serve(&socket, router());
    let mut daemon = Daemon::new(&socket).expect("a client");
    assert_eq!(daemon.status().expect("an answer"), status());
    let order = Order {
        sort: "rss",
        ascending: true,
        filter: "a&b=ü".to_owned(),
    };
    let list = daemon.processes(&order).expect("an answer");
    assert_eq!(
        list.processes[0].identity.comm,
        "sort=rss&order=asc&filter=a%26b%3D%C3%BC&limit=5000"
    );
    assert_eq!(daemon.details(31337).expect("an answer"), details(31337));
    let table = daemon.top(31337, &Query::default()).expect("an answer");
    assert_eq!(
        table.comments,
        ["sample_type=inuse_space&heap=all&cum=false&filter=&limit=500"]
    );
    assert_eq!(daemon.stacks(31337, &Query::default()).expect("an answer"), stacks());
    assert_eq!(daemon.goroutines(31337).expect("an answer"), goroutines());
    assert_eq!(
        daemon.trace(31337, true).expect("an answer").state,
        api::TraceState::Traced
    );
    let error = daemon.trace(31337, false).expect_err("no budget");
    assert_eq!(error.to_string(), "no budget");
    let error = daemon.details(1).expect_err("no such process");
    assert_eq!(error.to_string(), "pid 1 is not known\\u{1b}[2J");
    assert!(!error.is_connection());
    let error = daemon.timeline(31337).expect_err("no JSON");
    assert!(matches!(error, SourceError::Foreign { .. }), "{error}");
}

#[test]
fn a_daemon_that_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let mut daemon = Daemon::new(&socket).expect("a client");
    let error = daemon.status().expect_err("nobody listens");
    let text = error.to_string();
    assert!(
        text.contains("leaktrace daemon") && text.contains("top -p PID"),
        "{text}"
    );
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    assert!(matches!(daemon.status(), Err(SourceError::NotRunning { source, .. })
        if source.kind() == ErrorKind::ConnectionRefused));
    if nix::unistd::geteuid().is_root() {
        println!("skipped: root may connect to any socket");
        return;
    }
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).expect("our own file");
    assert!(matches!(daemon.status(), Err(SourceError::Denied { .. })));
}

#[test]
fn a_daemon_that_goes_away_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let server = serve(&socket, router());
    let mut daemon = Daemon::new(&socket).expect("a client");
    let ask = |daemon: &mut Daemon| {
        let answers = RefCell::new(Vec::new());
        assert!(fetch(daemon, 7, &Scene::List(Order::default()), &|answer| {
            answers.borrow_mut().push(answer);
            true
        }));
        answers.into_inner()
    };
    assert!(matches!(
        ask(&mut daemon).as_slice(),
        [Answer::Part(7, _), Answer::Part(7, _), Answer::Done(7)]
    ));
    drop(server);
    std::fs::remove_file(&socket).expect("the socket's file");
    // One failure, not one for each part.
    assert!(matches!(
        ask(&mut daemon).as_slice(),
        [
            Answer::Failed(7, Kind::Processes, SourceError::NotRunning { .. }),
            Answer::Done(7)
        ]
    ));
    let _server = serve(&socket, router());
    assert!(matches!(
        ask(&mut daemon).as_slice(),
        [Answer::Part(7, _), Answer::Part(7, _), Answer::Done(7)]
    ));
}

#[test]
fn a_server_that_hangs_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let server = std::thread::spawn(move || listener.accept().map(drop));
    let mut daemon = Daemon::new(&socket).expect("a client");
    let error = daemon.status().expect_err("no answer");
    assert!(matches!(error, SourceError::Silent { .. }), "{error}");
    server.join().expect("no panic").expect("a connection");
}

#[test]
fn the_worker_answers_the_latest_question_and_ends() {
    let (sender, answers) = std::sync::mpsc::channel();
    let worker = Worker::start(|| Ok(Box::new(Fixed)), move |answer| sender.send(answer).is_ok()).expect("a thread");
    worker.ask(Request::Trace { pid: 1, on: true });
    worker.ask(Request::Fetch(1, Scene::Goroutines(4242)));
    let patience = Duration::from_secs(10);
    let next = || answers.recv_timeout(patience).expect("an answer in time");
    assert!(matches!(next(), Answer::Traced { pid: 1, result: Err(_) }));
    let mut parts = 0;
    loop {
        match next() {
            Answer::Part(1, part) if matches!(*part, Part::Details(_) | Part::Goroutines(_)) => parts += 1,
            Answer::Done(1) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(parts, 2);
    worker.stop(patience);
    assert!(answers.recv_timeout(patience).is_err(), "the thread has ended");
}
