//! Programs that nobody here wrote, from Debian's packages, on loopback and under a small load: their heap against what
//! they serve of it themselves, goroutines and collector. One that is not installed is skipped with a printed reason.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leaktrace::export::pprof;
use leaktrace::report::Profile;
use leaktrace::runtime::go::goroutines::{StackState, Status};
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::{Area, GoProcess, Source, profile};

/// Longest wait for a program to answer.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of an answer; `None` while nobody listens, or on an error.
fn get(port: u16, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    answer.starts_with(b"HTTP/1.").then_some(())?;
    answer[..16.min(answer.len())]
        .windows(3)
        .any(|window| window == b"200")
        .then(|| answer[body..].to_vec())
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Starts a program in a folder of its own and puts a little load on it. `None`: it is not installed.
fn start(program: &str, port: u16, files: &[(&str, String)], arguments: &[String], load: &str) -> Option<Server> {
    let path = Path::new("/usr/bin").join(program);
    if !path.exists() {
        println!("skipped: {program} is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let child = Command::new(path)
        .args(arguments)
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server {
        child,
        port,
        _folder: folder,
    };
    let begin = Instant::now();
    while get(port, load).is_none() {
        assert!(begin.elapsed() < PATIENCE, "{program} does not answer on {port}");
        std::thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..200 {
        get(port, load);
    }
    Some(server)
}

/// Whether stacks and sums of both are equal. The program writes a sample for each size of object.
fn same(ours: &Profile, theirs: &Profile) -> bool {
    let sums = |profile: &Profile| {
        let mut sums: BTreeMap<Vec<String>, Vec<i64>> = BTreeMap::new();
        for sample in profile
            .samples
            .iter()
            .filter(|sample| sample.values.iter().any(|value| *value != 0))
        {
            let lines = profile.stack(sample).flat_map(|location| &location.lines);
            let stack = lines
                .map(|line| format!("{}:{}", profile.function(line).name, line.line))
                .collect();
            let sum = sums.entry(stack).or_insert_with(|| vec![0; sample.values.len()]);
            sum.iter_mut()
                .zip(&sample.values)
                .for_each(|(sum, value)| *sum += value);
        }
        sums
    };
    ours.totals() == theirs.totals() && sums(ours) == sums(theirs)
}

fn check(server: &Server, pprof_port: u16) {
    let process = GoProcess::attach(server.child.id()).unwrap();
    for area in Area::ALL {
        let (_, source) = process.layout(area).unwrap();
        assert!(
            matches!(source, Source::Table(_)),
            "{}: {area}: {source}",
            process.exe.display()
        );
    }
    // A collection may end between both reads: then the next try compares.
    let equal = (0..10).any(|_| {
        let theirs = get(pprof_port, "/debug/pprof/heap").unwrap();
        let theirs = pprof::read(theirs.as_slice()).unwrap();
        let ours = profile::heap_profile(&process, &process.heap().unwrap(), View::Pprof, 0);
        assert!(!theirs.samples.is_empty());
        same(&ours, &theirs)
    });
    assert!(equal, "{}: heap profiles differ", process.exe.display());
    let snapshot = process.goroutines().unwrap();
    let parked = || {
        snapshot
            .goroutines
            .iter()
            .filter(|goroutine| goroutine.status == Status::Waiting)
    };
    assert!(parked().count() > 5, "{}", process.exe.display());
    assert!(
        parked().all(|goroutine| goroutine.state == StackState::Complete),
        "{}",
        process.exe.display()
    );
    assert!(process.collector().unwrap().finished > 0, "{}", process.exe.display());
    assert!(process.spans().unwrap().spans.len() > 50, "{}", process.exe.display());
}

#[test]
fn prometheus() {
    let port = free_port();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: self, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    );
    let arguments = [
        "--config.file=p.yml".to_owned(),
        "--storage.tsdb.path=data".to_owned(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    if let Some(server) = start(
        "prometheus",
        port,
        &[("p.yml", config)],
        &arguments,
        "/api/v1/query?query=up",
    ) {
        check(&server, server.port);
    }
}

#[test]
fn etcd() {
    let (client, peer) = (free_port(), free_port());
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let arguments: Vec<String> = [
        "--data-dir",
        "data",
        "--enable-pprof",
        "--listen-client-urls",
        &client_url,
        "--advertise-client-urls",
        &client_url,
        "--listen-peer-urls",
        &peer_url,
        "--initial-advertise-peer-urls",
        &peer_url,
        "--initial-cluster",
        &format!("default={peer_url}"),
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(server) = start("etcd", client, &[], &arguments, "/version") {
        check(&server, server.port);
    }
}

#[test]
fn caddy() {
    let (admin, http) = (free_port(), free_port());
    let config = serde_json::json!({
        "admin": {"listen": format!("127.0.0.1:{admin}")},
        "apps": {"http": {"servers": {"s": {
            "listen": [format!("127.0.0.1:{http}")],
            "routes": [{"handle": [{"handler": "static_response", "body": "hello"}]}],
        }}}},
    });
    let arguments = ["run", "--config", "c.json"].map(str::to_owned);
    if let Some(server) = start("caddy", http, &[("c.json", config.to_string())], &arguments, "/") {
        check(&server, admin);
    }
}
