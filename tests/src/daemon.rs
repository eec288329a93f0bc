//! A daemon under a test's control: its own folder for everything, its API over the Unix socket.
//!
//! Invariant: it listens nowhere but on its socket and on loopback, and is dead when its [`Daemon`] is dropped.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::machine;
use crate::process::{PATIENCE, Process};
use crate::recording::leaktrace;

/// A folder that a daemon can be started in, again and again.
pub struct Home {
    folder: TempDir,
    /// TCP port on loopback.
    pub port: u16,
}

impl Home {
    /// A new folder with a configuration. `more` is TOML behind the common part: keys of `[watch]` first, then sections.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(more: &str) -> Result<Self> {
        let home = Self {
            folder: tempfile::tempdir()?,
            port: TcpListener::bind("127.0.0.1:0")?.local_addr()?.port(),
        };
        home.configure(more)?;
        Ok(home)
    }

    /// Writes another configuration.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, more: &str) -> Result<()> {
        let mut text = String::new();
        let path = |name: &str| self.path(name).display().to_string();
        write!(
            text,
            "[http]\nlisten = \"127.0.0.1:{}\"\nsocket = \"{}\"\ntoken_file = \"{}\"\n\n[watch]\ninterval = \"1s\"\n{more}\n",
            self.port,
            path("socket"),
            path("token")
        )?;
        if !more.contains("[export]") {
            write!(
                text,
                "\n[export]\ndirectory = \"{}\"\ninterval = \"2s\"\n",
                path("store")
            )?;
        }
        fs::write(self.path("leaktrace.toml"), text)?;
        Ok(())
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Ids in the store of a process, by `leaktrace list`, newest first.
    ///
    /// # Errors
    /// When that fails.
    pub fn stored(&self, pid: u32) -> Result<Vec<String>> {
        let store = self.store().display().to_string();
        let answer = leaktrace(&["list", "--store", &store, "-p", &pid.to_string(), "--json"], PATIENCE)?;
        ensure!(answer.status.success(), "{answer:?}");
        let list: Value = serde_json::from_str(&answer.stdout).with_context(|| answer.stdout.clone())?;
        let profiles = list.as_array().or_else(|| list["profiles"].as_array());
        let profiles = profiles.with_context(|| answer.stdout.clone())?;
        Ok(profiles
            .iter()
            .filter_map(|profile| profile["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// The file of a profile in the store.
    pub fn profile(&self, id: &str) -> PathBuf {
        self.store().join(format!("{id}.pb.gz"))
    }

    /// `leaktrace daemon` with this configuration.
    pub fn command(&self) -> Command {
        let mut command = Command::new(machine::leaktrace());
        command.arg("daemon").arg("--config").arg(self.path("leaktrace.toml"));
        command
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&self) -> Result<Daemon<'_>> {
        self.start_with(&mut self.command())
    }

    /// Starts it by a [`command`](Self::command) with more to it, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_with(&self, command: &mut Command) -> Result<Daemon<'_>> {
        let mut process = Process::spawn(command)?;
        process.wait_for_error("that it listens", |line| line.contains("profiles go to"), PATIENCE)?;
        Ok(Daemon { home: self, process })
    }
}

/// A running daemon.
pub struct Daemon<'h> {
    /// Where it lives.
    pub home: &'h Home,
    /// The process.
    pub process: Process,
}

impl Daemon<'_> {
    /// Asks the API by the socket: the status and the body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Result<(u16, Vec<u8>)> {
        ask(&self.home.path("socket"), method, path, body)
    }

    /// The JSON at an address.
    ///
    /// # Errors
    /// When the answer is no success, or no JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.ask("GET", path, None)?;
        let text = String::from_utf8_lossy(&body);
        ensure!(status == 200, "{path}: {status}: {text}");
        serde_json::from_slice(&body).with_context(|| format!("{path}: no JSON: {text}"))
    }

    /// Begins to trace a process.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn trace(&self, pid: u32, interval: u64) -> Result<()> {
        let body = format!("{{\"sample_interval\": {interval}}}");
        let (status, body) = self.ask("POST", &format!("/api/v1/processes/{pid}/trace"), Some(&body))?;
        ensure!(
            status == 200,
            "pid {pid} is not traced: {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(())
    }

    /// How a process stands: `watched`, `traced`, …; `None` while it is not known.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn state(&self, pid: u32) -> Result<Option<String>> {
        let (status, body) = self.ask("GET", &format!("/api/v1/processes/{pid}"), None)?;
        if status == 404 {
            return Ok(None);
        }
        let details: Value = serde_json::from_slice(&body)?;
        Ok(details["tracing"]["state"].as_str().map(str::to_owned))
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it does not within `patience`; the daemon's own words are in the error.
    pub fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + machine::scaled(patience);
        loop {
            if holds(self)? {
                return Ok(());
            }
            if Instant::now() >= deadline || !self.process.alive() {
                bail!("not within {patience:?}: {what}\n{}", self.process.errors_so_far());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Writes another configuration and has it read.
    ///
    /// # Errors
    /// When the file cannot be written, or the daemon is gone.
    pub fn configure(&self, more: &str) -> Result<()> {
        self.home.configure(more)?;
        self.process.signal(Signal::SIGHUP)
    }

    /// What does not work, as it says itself.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn troubles(&self) -> Result<Vec<String>> {
        let status = self.get("/api/v1/status")?;
        let troubles = status["troubles"].as_array().context("no troubles")?;
        Ok(troubles.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Ends it with SIGTERM; how long that took.
    ///
    /// # Errors
    /// When it fails, or takes longer than is allowed.
    pub fn end(mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(PATIENCE)?;
        ensure!(status.success(), "{status}: {}", self.process.errors());
        Ok(begin.elapsed())
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }
}

/// Asks over a Unix socket.
///
/// # Errors
/// When there is no answer that can be read.
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("`{}`", socket.display()))?;
    stream.set_read_timeout(Some(machine::scaled(PATIENCE)))?;
    stream.set_write_timeout(Some(machine::scaled(PATIENCE)))?;
    let body = body.unwrap_or_default();
    // HTTP/1.0: the answer ends with the connection and is not cut into pieces.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.take(256 << 20).read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no status in `{head}`"))?;
    Ok((status, answer[end + 4..].to_vec()))
}
