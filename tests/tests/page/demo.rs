//! The daemon's server with processes that exist in memory alone: `leaktrace/examples/http_demo.rs`.
//!
//! Builds it, starts it on a free port and ends it. Invariant: it writes into a folder of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use leaktrace_tests::machine;
use tempfile::TempDir;

/// A running server.
pub struct Demo {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub origin: String,
    /// What opens it.
    pub token: String,
    _folder: TempDir,
}

impl Demo {
    /// Starts one with 1,000 processes and 50,000 stacks in each profile.
    ///
    /// # Errors
    /// When it cannot be built or does not start.
    pub fn start() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .current_dir(machine::root())
            .args([
                "build",
                "--quiet",
                "--locked",
                "-p",
                "leaktrace",
                "--example",
                "http_demo",
            ])
            .status()
            .context("failed to run cargo")?;
        ensure!(built.success(), "the example http_demo does not build");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| machine::root().join("target"), Into::into);
        let folder = tempfile::tempdir()?;
        let mut child = Command::new(target.join("debug/examples/http_demo"))
            .args(["127.0.0.1:0", "1000", "50000"])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start http_demo")?;
        let address = announced(&mut child);
        let mut demo = Self {
            child,
            origin: String::new(),
            token: String::new(),
            _folder: folder,
        };
        let address = address?;
        let (origin, token) = address
            .split_once("/login#token=")
            .with_context(|| format!("`{address}` is no address with a token"))?;
        demo.origin = origin.to_owned();
        demo.token = token.to_owned();
        Ok(demo)
    }
}

/// The address that it prints first.
fn announced(child: &mut Child) -> Result<String> {
    let mut reader = BufReader::new(child.stdout.take().context("http_demo has no output")?);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("http_demo ended at once: {}", child.wait()?);
    }
    // Whatever it says later must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    Ok(line.trim().to_owned())
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
