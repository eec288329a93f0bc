//! A receiver of pushed profiles: what Pyroscope's `/ingest` would get.
//!
//! Takes every POST, answers 200 and keeps what it says. Listens on loopback alone. Invariant: its thread ends with it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::profile::Profile;
use crate::recording::as_json;

/// Longest time for a part of a request.
const PATIENCE: Duration = Duration::from_secs(20);

/// A profile that arrived.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Parameters of the address, as they were sent.
    pub query: String,
    /// The pprof file.
    pub pprof: Vec<u8>,
}

impl Pushed {
    /// Where the profile begins and ends, in seconds since 1970, by its address.
    ///
    /// # Errors
    /// When it does not say so.
    pub fn window(&self) -> Result<(u64, u64)> {
        let of = |name: &str| -> Result<u64> {
            let value = self
                .query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            let value = value.with_context(|| format!("no `{name}` in {}", self.query))?;
            Ok(value.parse()?)
        };
        Ok((of("from")?, of("until")?))
    }

    /// What it tells.
    ///
    /// # Errors
    /// When it is no profile.
    pub fn profile(&self) -> Result<Profile> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("pushed.pb.gz");
        std::fs::write(&file, &self.pprof)?;
        as_json(&file)
    }
}

/// A receiver on a port of its own.
pub struct Receiver {
    address: SocketAddr,
    pushed: Arc<Mutex<Vec<Pushed>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let pushed: Arc<Mutex<Vec<Pushed>>> = Arc::default();
        let ends: Arc<AtomicBool> = Arc::default();
        let thread = {
            let (pushed, ends) = (Arc::clone(&pushed), Arc::clone(&ends));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    // What cannot be read is missing in the end, which the test notices.
                    if let Ok(one) = take(stream) {
                        pushed.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                    }
                }
            })
        };
        Ok(Self {
            address,
            pushed,
            ends,
            thread: Some(thread),
        })
    }

    /// A `[[push]]` section that names it.
    pub fn section(&self) -> String {
        format!(
            "\n[[push]]\nname = \"receiver\"\nkind = \"pyroscope\"\nurl = \"http://{}\"\n",
            self.address
        )
    }

    /// What arrived so far, in that order.
    pub fn pushed(&self) -> Vec<Pushed> {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads one request and answers it.
fn take(stream: TcpStream) -> Result<Pushed> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut length, mut boundary) = (0, String::new());
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the request has no end");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").context("no header")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse()?,
            "content-type" => value
                .split("boundary=")
                .nth(1)
                .unwrap_or_default()
                .clone_into(&mut boundary),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    reader.get_mut().write_all(answer.as_bytes())?;
    let query = first
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|path| path.split_once('?'));
    let query = query.context("no parameters")?.1;
    Ok(Pushed {
        query: query.to_owned(),
        pprof: part(&body, &boundary, "profile").context("no profile")?,
    })
}

/// The file of a form with this field.
fn part(body: &[u8], boundary: &str, field: &str) -> Option<Vec<u8>> {
    let find = |bytes: &[u8], what: &str| bytes.windows(what.len()).position(|window| window == what.as_bytes());
    let from = find(body, &format!("name=\"{field}\""))?;
    let rest = &body[from..];
    let rest = &rest[find(rest, "\r\n\r\n")? + 4..];
    Some(rest[..find(rest, &format!("\r\n--{boundary}"))?].to_vec())
}
