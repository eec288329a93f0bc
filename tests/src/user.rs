//! A user other than root, with capabilities: leaktrace and its folder as that user has them.
//!
//! Invariant: the sets that are tried are those of the README.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::machine;
use crate::process::{PATIENCE, Process};
use crate::profile::Profile;
use crate::scenario::{assert_exact, unharmed};

/// In the test binary, since guests have no source tree.
const README: &str = include_str!("../../README.md");
/// `nobody`, on every distribution.
const ID: u32 = 65534;

/// A folder of that user's, with a copy of leaktrace in it: the source tree may be closed to others.
pub struct User {
    folder: TempDir,
}

impl User {
    /// With an empty folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("leaktrace");
        fs::copy(machine::leaktrace(), &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        chown(folder.path(), Some(ID), Some(ID))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// leaktrace, run by this user with these capabilities and no other.
    pub fn leaktrace(&self, capabilities: &[String]) -> Command {
        let mut command = with_capabilities(capabilities);
        command.arg(self.path("leaktrace"));
        command
    }

    /// Records a program as this user, to the byte; the program runs as whoever the command says.
    ///
    /// # Errors
    /// When anything fails, the numbers differ from the truth or the target is harmed.
    pub fn record_exactly(
        &self,
        capabilities: &[String],
        target: &mut Command,
        variables: &[(&str, &str)],
    ) -> Result<()> {
        let mut target = Process::ready(target)?;
        let output = self.path("profile.json");
        let mut command = self.leaktrace(capabilities);
        command.envs(variables.iter().copied());
        command
            .args(["record", "-p", &target.pid().to_string(), "-o"])
            .arg(&output);
        let mut tracer = Process::spawn(&mut command)?;
        tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
        let truth = target.work()?;
        tracer.signal(Signal::SIGINT)?;
        let status = tracer.wait(PATIENCE)?;
        ensure!(status.success(), "{status}: {}", tracer.errors());
        assert_exact(&truth, &Profile::read(&output)?);
        unharmed(&mut target)?;
        target.exit()
    }
}

/// What runs a command as this user, without any capability.
pub fn without_capabilities() -> Command {
    with_capabilities(&[])
}

fn with_capabilities(capabilities: &[String]) -> Command {
    let added: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let id = ID.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{set}=-all{added}"));
    }
    command
}

/// The capabilities that a line of the README's needs lists, such as `Recording`.
///
/// # Errors
/// When there is no such line.
pub fn readme_capabilities(what: &str) -> Result<Vec<String>> {
    let list = README
        .lines()
        .find_map(|line| line.strip_prefix(&format!("- {what}: ")));
    let list = list.with_context(|| format!("the README has no line `- {what}:`"))?;
    Ok(list.split(", ").map(str::to_owned).collect())
}

/// What a recording needs on this kernel.
///
/// # Errors
/// When the README does not say it.
pub fn recording_capabilities() -> Result<Vec<String>> {
    if needs_more() {
        daemon_capabilities()
    } else {
        readme_capabilities("Recording")
    }
}

/// What the daemon needs, and a recording with perf events.
///
/// # Errors
/// When the README does not say it.
pub fn daemon_capabilities() -> Result<Vec<String>> {
    readme_capabilities("Recording elsewhere, and the daemon")
}

/// Whether this kernel is one on which a recording needs more, as the README says it, or perf events are asked for.
pub fn needs_more() -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let old = machine::kernel().is_ok_and(|version| version < (6, 13));
    old || read("perf_event_paranoid").trim().parse().unwrap_or(0) > 2
        || std::env::var_os("LEAKTRACE_UPROBES").is_some()
}
