//! Running `leaktrace record` on a process, and its other commands on files.
//!
//! Invariant: a [`Recording`] exists only once probes are in place.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::machine;
use crate::process::{PATIENCE, Process};
use crate::profile::Profile;

/// A recording under way.
pub struct Recording {
    tracer: Process,
    directory: TempDir,
    output: PathBuf,
}

/// What came of a recording.
pub struct Recorded {
    /// The parsed profile.
    pub profile: Profile,
    /// Standard output: the table and the loss line.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The file, and whatever else lay in its folder.
    pub output: PathBuf,
    _directory: TempDir,
}

impl Recording {
    /// Attaches to a process, with further arguments, and waits until probes are in place.
    ///
    /// # Errors
    /// When it does not come so far in time.
    pub fn attach(pid: u32, arguments: &[&str]) -> Result<Self> {
        Self::attach_to_file(pid, arguments, "profile.json")
    }

    /// As [`Self::attach`], with another name, and so another format, of the output.
    ///
    /// # Errors
    /// When it does not come so far in time.
    pub fn attach_to_file(pid: u32, arguments: &[&str], file: &str) -> Result<Self> {
        let pid = pid.to_string();
        Self::start(&[&["-p", &pid], arguments].concat(), &[], file, &[])
    }

    /// As [`Self::attach`], with variables for the tracer's environment.
    ///
    /// # Errors
    /// When it does not come so far in time.
    pub fn attach_with_variables(pid: u32, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let pid = pid.to_string();
        Self::start(&[&["-p", &pid], arguments].concat(), &[], "profile.json", variables)
    }

    /// Starts a command under the tracer.
    ///
    /// # Errors
    /// When it does not come so far in time.
    pub fn of_command(arguments: &[&str], command: &[&str]) -> Result<Self> {
        Self::start(arguments, command, "profile.json", &[])
    }

    fn start(arguments: &[&str], command: &[&str], file: &str, variables: &[(&str, &str)]) -> Result<Self> {
        let directory = TempDir::new()?;
        let output = directory.path().join(file);
        let mut line = Command::new(machine::leaktrace());
        line.envs(variables.iter().copied());
        line.arg("record").args(arguments).arg("-o").arg(&output);
        if !command.is_empty() {
            line.arg("--").args(command);
        }
        let mut tracer = Process::spawn(&mut line)?;
        tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
        Ok(Self {
            tracer,
            directory,
            output,
        })
    }

    /// The tracer, and through it the input and output of a command that it runs.
    pub fn tracer(&mut self) -> &mut Process {
        &mut self.tracer
    }

    /// Ends the recording as Ctrl-C does, and reads the profile.
    ///
    /// # Errors
    /// When the tracer fails, takes too long or writes no profile.
    pub fn stop(self) -> Result<Recorded> {
        self.tracer.signal(Signal::SIGINT)?;
        self.finish()
    }

    /// Waits for the recording's own end (its duration, or its target's end), and reads the profile.
    ///
    /// # Errors
    /// When the tracer fails, takes too long or writes no profile.
    pub fn finish(self) -> Result<Recorded> {
        let (stdout, stderr, output, directory) = self.end()?;
        let profile = Profile::read(&output).with_context(|| format!("leaktrace said:\n{stderr}"))?;
        Ok(Recorded {
            profile,
            stdout,
            stderr,
            output,
            _directory: directory,
        })
    }

    /// Ends the recording as Ctrl-C does, and leaves the file unread: its standard output, and the file in a folder
    /// that lives as long as what is returned.
    ///
    /// # Errors
    /// When the tracer fails, takes too long or writes no profile.
    pub fn stop_unread(self) -> Result<(String, PathBuf, TempDir)> {
        self.tracer.signal(Signal::SIGINT)?;
        let (stdout, stderr, output, directory) = self.end()?;
        ensure!(
            output.exists(),
            "`{}` was not written; leaktrace said:\n{stderr}",
            output.display()
        );
        Ok((stdout, output, directory))
    }

    fn end(mut self) -> Result<(String, String, PathBuf, TempDir)> {
        let status = self.tracer.wait(PATIENCE * 2)?;
        // A command that goes on without its tracer has the same input: most end with it.
        self.tracer.close_input();
        let (stdout, stderr) = (self.tracer.output(), self.tracer.errors());
        if !status.success() {
            bail!("leaktrace ended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        }
        // A profile is written under another name first: nothing of that may be left.
        let left: Vec<_> = fs::read_dir(self.directory.path())?
            .filter_map(|entry| entry.ok())
            .collect();
        ensure!(left.len() <= 1, "beside the profile there is something left: {left:?}");
        Ok((stdout, stderr, self.output, self.directory))
    }

    /// Kills the tracer in the middle.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(mut self) -> Result<()> {
        ensure!(
            self.tracer.alive(),
            "the tracer ended before it was killed:\n{}",
            self.tracer.errors()
        );
        self.tracer.signal(Signal::SIGKILL)?;
        let status = self.tracer.wait(PATIENCE)?;
        ensure!(status.signal() == Some(libc::SIGKILL), "the tracer ended with {status}");
        Ok(())
    }
}

/// What a command of leaktrace that ends by itself said.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs leaktrace to its end.
///
/// # Errors
/// When it cannot be started or does not end within `patience`.
pub fn leaktrace(arguments: &[&str], patience: Duration) -> Result<Answer> {
    run(Command::new(machine::leaktrace()).args(arguments), patience)
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or does not end within `patience`.
pub fn run(command: &mut Command, patience: Duration) -> Result<Answer> {
    let mut process = Process::spawn(command)?;
    process.close_input();
    let status = process.wait(patience)?;
    Ok(Answer {
        status,
        stdout: process.output(),
        stderr: process.errors(),
    })
}

/// Converts a profile to JSON with `leaktrace report`, and reads it.
///
/// # Errors
/// When leaktrace does not read it.
pub fn as_json(profile: &Path) -> Result<Profile> {
    let directory = TempDir::new()?;
    let json = directory.path().join("converted.json");
    let mut command = Command::new(machine::leaktrace());
    command.arg("report").arg(profile).arg("-o").arg(&json);
    let answer = run(&mut command, PATIENCE)?;
    ensure!(answer.status.success(), "leaktrace report failed: {answer:?}");
    Profile::read(&json)
}
