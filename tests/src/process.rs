//! A child process under a test's control: lines in and out, every wait with a limit, which is
//! [`scaled`](machine::scaled) to the machine.
//!
//! Invariant: the process is dead and reaped when its [`Process`] is dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::machine;

/// Enough for anything that works, on two cores that are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long what an ended process left in its pipes may take to be read.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// How often the state of a process is looked at.
const POLL: Duration = Duration::from_millis(5);

/// One of a process's output streams, line by line.
struct Lines {
    receiver: Receiver<String>,
    /// All that was received so far.
    seen: Vec<String>,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self {
            receiver,
            seen: Vec::new(),
        }
    }

    /// The next line for which `wanted` holds; all others until then are kept in `seen` too.
    fn wait(&mut self, wanted: impl Fn(&str) -> bool, patience: Duration) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + machine::scaled(patience);
        loop {
            let line = self
                .receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
            self.seen.push(line.clone());
            if wanted(&line) {
                return Ok(line);
            }
        }
    }

    /// All that came and will come until the stream's end.
    fn rest(&mut self, patience: Duration) -> String {
        let _ = self.wait(|_| false, patience);
        self.seen.join("\n")
    }
}

/// What a test program knows of itself.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Truth {
    /// The function whose memory is leaked.
    pub function: String,
    /// Requested bytes that are leaked.
    pub leaked_bytes: u64,
    /// Blocks that are leaked.
    pub leaked_objects: u64,
    /// Requested bytes that are outstanding on purpose.
    #[serde(default)]
    pub held_bytes: u64,
    /// Blocks that are outstanding on purpose.
    #[serde(default)]
    pub held_objects: u64,
    /// What is particular to the program.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Truth {
    /// All outstanding bytes.
    pub fn bytes(&self) -> u64 {
        self.leaked_bytes + self.held_bytes
    }

    /// All outstanding blocks.
    pub fn objects(&self) -> u64 {
        self.leaked_objects + self.held_objects
    }

    /// A number that is particular to the program.
    ///
    /// # Errors
    /// When the program did not state it.
    pub fn number(&self, name: &str) -> Result<f64> {
        self.other
            .get(name)
            .and_then(serde_json::Value::as_f64)
            .with_context(|| format!("the truth has no `{name}`"))
    }
}

/// A running child.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
    name: String,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its three streams in the test's hands.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let stdout = Lines::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Lines::of(child.stderr.take().expect("stderr is piped"));
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
            name,
            status: None,
        })
    }

    /// Starts a test program and waits until it is ready to be attached to.
    ///
    /// # Errors
    /// When it cannot be started or does not say that it is ready.
    pub fn ready(command: &mut Command) -> Result<Self> {
        let mut process = Self::spawn(command)?;
        process.expect("ready")?;
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a line.
    ///
    /// # Errors
    /// When it does not read any more.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("the input of {} is closed", self.name))?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("{} does not read", self.name))
    }

    /// Closes its input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line on its standard output for which `wanted` holds.
    ///
    /// # Errors
    /// When none comes in time or it ends first; the message holds all that it said.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool, patience: Duration) -> Result<String> {
        self.stdout
            .wait(wanted, patience)
            .map_err(|error| self.silent(what, error))
    }

    /// Waits for exactly this line on its standard output.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn expect(&mut self, line: &str) -> Result<()> {
        self.wait_for(&format!("`{line}`"), |candidate| candidate == line, PATIENCE)
            .map(|_| ())
    }

    /// Waits for a line on its standard error for which `wanted` holds.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_error(&mut self, what: &str, wanted: impl Fn(&str) -> bool, patience: Duration) -> Result<String> {
        self.stderr
            .wait(wanted, patience)
            .map_err(|error| self.silent(what, error))
    }

    fn silent(&mut self, what: &str, error: RecvTimeoutError) -> anyhow::Error {
        let status = self
            .child
            .try_wait()
            .ok()
            .flatten()
            .map_or("it is still running".to_owned(), |s| s.to_string());
        anyhow!(
            "{} did not say {what} ({error}; {status})\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.stdout.rest(Duration::from_millis(200)),
            self.stderr.rest(Duration::from_millis(200)),
        )
    }

    /// A JSON line from its standard output.
    ///
    /// # Errors
    /// As [`Self::wait_for`], and when it is not of that shape.
    pub fn json<T: serde::de::DeserializeOwned>(&mut self, patience: Duration) -> Result<T> {
        let line = self.wait_for("a JSON line", |line| line.starts_with('{'), patience)?;
        serde_json::from_str(&line).with_context(|| format!("{} said `{line}`", self.name))
    }

    /// Tells a test program to go and waits until it is done; what it then knows of itself.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn work(&mut self) -> Result<Truth> {
        self.send("go")?;
        self.finished()
    }

    /// Waits until a test program is done; what it then knows of itself.
    ///
    /// # Errors
    /// When it fails or takes too long.
    pub fn finished(&mut self) -> Result<Truth> {
        let truth = self.json(PATIENCE * 3)?;
        self.expect("done")?;
        Ok(truth)
    }

    /// Lets a test program exit.
    ///
    /// # Errors
    /// When it does not exit in time or not with success.
    pub fn exit(mut self) -> Result<()> {
        let _ = self.send("exit");
        let status = self.wait(PATIENCE)?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.nix_pid(), signal).with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + machine::scaled(patience);
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.status = Some(status);
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not end within {patience:?}\n--- stderr\n{}",
                    self.name,
                    self.stderr.rest(Duration::from_millis(200))
                );
            }
            thread::sleep(POLL);
        }
    }

    /// True while it has not ended.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The signal that ended it, if one did.
    pub fn killed_by(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// All of its standard output, once it has ended.
    pub fn output(&mut self) -> String {
        let patience = self.patience();
        self.stdout.rest(patience)
    }

    /// What it wrote to standard error until now.
    pub fn errors_so_far(&mut self) -> String {
        self.stderr.rest(Duration::ZERO)
    }

    /// All of its standard error, once it has ended.
    pub fn errors(&mut self) -> String {
        let patience = self.patience();
        self.stderr.rest(patience)
    }

    /// How long there may be something to come. What it started may have its pipes and live on; what it wrote itself is in
    /// them when it has ended.
    fn patience(&self) -> Duration {
        if self.status.is_some() { LEFT_BEHIND } else { PATIENCE }
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail where it has ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
