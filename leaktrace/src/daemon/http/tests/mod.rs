//! The server as its callers see it: over sockets, in front of a daemon that exists in memory alone.
#![expect(clippy::unwrap_used, reason = "tests")]

mod access;
mod answers;
mod fake;
mod limits;
mod profiles;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{HttpError, Server, Settings, TlsFiles, metrics, openapi, serve};
use crate::{api, daemon::backend};
use crate::{export, model, report};
use fake::{FIRST, Fake};

/// The first Go process, and one that is none.
const GO: u32 = FIRST;
const NATIVE: u32 = FIRST + 1;

struct Demo {
    address: SocketAddr,
    socket: PathBuf,
    token: String,
    stop: Option<oneshot::Sender<()>>,
    server: Option<Server>,
    _folder: TempDir,
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn demo_with(fake: Fake, max_clients: usize) -> Demo {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        socket: Some(folder.path().join("socket")),
        token_file: folder.path().join("token"),
        max_clients,
        ..Settings::default()
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let server = serve(settings, Arc::new(fake), shutdown).await.unwrap();
    Demo {
        address: server.address().unwrap(),
        socket: folder.path().join("socket"),
        token: std::fs::read_to_string(folder.path().join("token"))
            .unwrap()
            .trim()
            .to_owned(),
        stop: Some(stop),
        server: Some(server),
        _folder: folder,
    }
}

async fn demo() -> Demo {
    demo_with(Fake::new(120, 200), 16).await
}

/// Sends a request and reads to the end of the connection.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, request: String) -> Reply {
    let mut stream = stream;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // The server may close before it has read everything, which is no failure of the answer.
    let _ = timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    Reply {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0),
        head,
        body: bytes.get(end + 4..).unwrap_or_default().to_vec(),
    }
}

impl Demo {
    /// A request without the token.
    async fn bare(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let host = if headers.to_ascii_lowercase().contains("host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let request = format!("{method} {path} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}");
        exchange(TcpStream::connect(self.address).await.unwrap(), request).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.bare("GET", path, &self.bearer(), "").await
    }

    async fn ok(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/json"), "{path}");
        reply.json()
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token)
    }
}
