//! A redis server of the test's own: loopback only, a port of its own, nothing on disk.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{PATIENCE, Process};

/// The running server and one connection to it.
pub struct Redis {
    server: Process,
    connection: BufReader<TcpStream>,
    port: u16,
    _directory: TempDir,
}

impl Redis {
    /// Starts a server with jemalloc's background work and its own defragmentation off.
    ///
    /// # Errors
    /// When redis-server is missing or does not listen in time.
    pub fn start() -> Result<Self> {
        Self::start_under(&mut Command::new("redis-server"))
    }

    /// As [`Self::start`], with a command that runs redis-server with the arguments it gets.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn start_under(command: &mut Command) -> Result<Self> {
        let directory = TempDir::new()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        command
            .arg("--port")
            .arg(port.to_string())
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command
            .args(["--daemonize", "no", "--jemalloc-bg-thread", "no", "--dir"])
            .arg(directory.path());
        let server = Process::spawn(command)?;
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => bail!("redis-server does not listen: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            server,
            connection: BufReader::new(stream),
            port,
            _directory: directory,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// True while it has not ended.
    pub fn alive(&mut self) -> bool {
        self.server.alive()
    }

    /// Sends a command and reads its reply, which must be one line or one bulk string.
    ///
    /// # Errors
    /// When the server answers with an error, or not in time.
    pub fn ask(&mut self, words: &[&str]) -> Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.connection.get_mut().write_all(request.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> Result<String> {
        let mut line = String::new();
        self.connection
            .read_line(&mut line)
            .context("redis-server does not answer")?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            Some(("$", length)) => {
                let length: usize = length.parse().context("a bulk string has a length")?;
                let mut bulk = vec![0; length + 2];
                self.connection.read_exact(&mut bulk)?;
                bulk.truncate(length);
                Ok(String::from_utf8_lossy(&bulk).into_owned())
            }
            _ => bail!("redis-server answered `{line}`"),
        }
    }

    /// Sets `count` keys with values of `size` bytes, many requests at a time.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn fill(&mut self, count: usize, size: usize) -> Result<()> {
        let value = "v".repeat(size);
        for batch in (0..count).collect::<Vec<_>>().chunks(500) {
            let mut request = String::new();
            for number in batch {
                let key = format!("key:{number:08}");
                request += &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${size}\r\n{value}\r\n", key.len());
            }
            self.connection.get_mut().write_all(request.as_bytes())?;
            for _ in batch {
                let reply = self.reply()?;
                ensure!(reply == "OK", "redis-server answered `{reply}` to a SET");
            }
        }
        Ok(())
    }

    /// A number from `INFO memory`.
    ///
    /// # Errors
    /// When the server does not state it.
    pub fn memory(&mut self, name: &str) -> Result<i64> {
        let info = self.ask(&["INFO", "memory"])?;
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .and_then(|value| value.trim().parse().ok())
            .with_context(|| format!("INFO memory has no `{name}`"))
    }
}
