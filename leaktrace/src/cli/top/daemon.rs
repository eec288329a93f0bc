//! The daemon as a source: HTTP over its Unix socket.
//!
//! One connection a question, so that a daemon that was started anew is found without ado. Every question has a
//! time-out, every answer a largest size.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

use super::source::{MAX_PROCESSES, MAX_ROWS, Order, Query, Source, SourceError};
use super::text;
use crate::api;

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/leaktrace.sock";
/// For the daemon to take the connection.
const CONNECT: Duration = Duration::from_secs(2);
/// For what the daemon knows already.
const QUICK: Duration = Duration::from_secs(5);
/// For what it reads from a process first, or attaches.
const SLOW: Duration = Duration::from_secs(30);
/// Largest answer.
const MAX_ANSWER: usize = 64 << 20;
/// Longest text of an error that is shown.
const MAX_MESSAGE: usize = 400;

/// The daemon behind a socket.
pub struct Daemon {
    socket: PathBuf,
    runtime: Runtime,
}

impl Daemon {
    /// A daemon that is not asked anything yet.
    ///
    /// # Errors
    /// When the runtime for its connections cannot be made.
    pub fn new(socket: &Path) -> Result<Self, SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SourceError::Thread)?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, SourceError> {
        self.ask(Method::GET, path, patience)
    }

    /// Asks, waits, and reads the answer.
    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, patience: Duration) -> Result<T, SourceError> {
        let (status, body) = self.runtime.block_on(async {
            let stream = timeout(CONNECT, UnixStream::connect(&self.socket))
                .await
                .map_err(|_| self.silent("it does not take the connection"))?
                .map_err(|error| self.unconnected(error))?;
            timeout(patience, self.exchange(stream, method, path))
                .await
                .map_err(|_| self.silent(&format!("no answer within {}", text::span(patience))))?
        })?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| SourceError::Foreign {
            socket: self.socket.clone(),
            path: path.to_owned(),
            cause: error.to_string(),
        })
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), SourceError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.silent(&error.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .header("accept", "application/json")
                .header("content-type", "application/json")
                .header("connection", "close")
                .body(Empty::<Bytes>::new())
                .map_err(|error| self.silent(&error.to_string()))?;
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.silent(&reason(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| self.silent(&error.to_string()))?;
            Ok((status, body.to_bytes()))
        }
        .await;
        connection.abort();
        answer
    }

    fn unconnected(&self, source: io::Error) -> SourceError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => SourceError::Denied { socket },
            _ => SourceError::NotRunning { socket, source },
        }
    }

    fn silent(&self, cause: &str) -> SourceError {
        SourceError::Silent {
            socket: self.socket.clone(),
            cause: cause.to_owned(),
        }
    }
}

/// The last cause of an error of hyper is the one that says something.
fn reason(error: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// What the daemon says about a question that it does not answer.
fn refusal(status: StatusCode, body: &[u8]) -> SourceError {
    let words = match serde_json::from_slice::<api::Error>(body) {
        Ok(error) => error.error,
        Err(_) => format!("the daemon answers {status}"),
    };
    SourceError::Refused {
        status: status.as_u16(),
        message: text::cut(&text::clean(&words), MAX_MESSAGE),
    }
}

/// Text as a value in a query.
fn escape(text: &str) -> String {
    let mut result = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            result.push(char::from(byte));
        } else {
            result.push_str(&format!("%{byte:02X}"));
        }
    }
    result
}

impl Source for Daemon {
    fn title(&self) -> String {
        text::clean(&self.socket.to_string_lossy())
    }

    fn status(&mut self) -> Result<api::Status, SourceError> {
        self.get("/api/v1/status", QUICK)
    }

    fn processes(&mut self, order: &Order) -> Result<api::Processes, SourceError> {
        let direction = if order.ascending { "asc" } else { "desc" };
        let path = format!(
            "/api/v1/processes?sort={}&order={direction}&filter={}&limit={MAX_PROCESSES}",
            order.sort,
            escape(&order.filter)
        );
        let mut answer: api::Processes = self.get(&path, QUICK)?;
        answer.processes.truncate(MAX_PROCESSES);
        Ok(answer)
    }

    fn details(&mut self, pid: u32) -> Result<api::Details, SourceError> {
        self.get(&format!("/api/v1/processes/{pid}"), QUICK)
    }

    fn timeline(&mut self, pid: u32) -> Result<api::Timeline, SourceError> {
        // The last hour, unless asked otherwise.
        self.get(&format!("/api/v1/processes/{pid}/timeline"), QUICK)
    }

    fn top(&mut self, pid: u32, query: &Query) -> Result<api::Top, SourceError> {
        let path = format!(
            "/api/v1/processes/{pid}/top?sample_type={}&heap={}&cum={}&filter={}&limit={MAX_ROWS}",
            query.sample_type(),
            query.heap.name(),
            query.cumulative,
            escape(&query.filter)
        );
        let mut answer: api::Top = self.get(&path, SLOW)?;
        answer.rows.truncate(MAX_ROWS);
        Ok(answer)
    }

    fn stacks(&mut self, pid: u32, query: &Query) -> Result<api::Stacks, SourceError> {
        let path = format!(
            "/api/v1/processes/{pid}/stacks?sample_type={}&heap={}",
            query.sample_type(),
            query.heap.name()
        );
        self.get(&path, SLOW)
    }

    fn goroutines(&mut self, pid: u32) -> Result<api::Goroutines, SourceError> {
        self.get(&format!("/api/v1/processes/{pid}/goroutines"), SLOW)
    }

    fn trace(&mut self, pid: u32, on: bool) -> Result<api::Tracing, SourceError> {
        let method = if on { Method::POST } else { Method::DELETE };
        self.ask(method, &format!("/api/v1/processes/{pid}/trace"), SLOW)
    }
}
