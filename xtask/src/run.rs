//! `run`: leaktrace from the source tree.
//!
//! An argument that names a program under `target/programs` has that program built first, so that
//! `cargo xtask run -- record -- target/programs/planted_leak` works on a new machine.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use clap::Args;
use leaktrace_tests::programs;

use crate::setup::{self, Purpose};
use crate::{build, command, packages, workspace};

/// Arguments of `run`.
#[derive(Args)]
pub struct Options {
    /// Arguments for leaktrace.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command; its exit status is leaktrace's.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(Purpose::Run)?;
    let program = build::run()?;
    for name in options.arguments.iter().filter_map(|argument| test_program(argument)) {
        packages::ensure(&["gcc", "libc6-dev"], "the test program")?;
        programs::path(name)?;
    }
    let mut command = Command::new(program);
    command.args(&options.arguments);
    // Ctrl-C reaches both, since both are of one process group: leaktrace ends its recording on it, and this process
    // must outlive that.
    // SAFETY: ignoring a signal installs no handler and cannot fail for SIGINT; leaktrace installs its own handler.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", command::shown(&command)))?;
    Ok(exit_code(status))
}

/// The name of the test program that an argument is the path of.
fn test_program(argument: &str) -> Option<&'static str> {
    let directory = workspace::target().join("programs");
    let path = Path::new(argument);
    let below = path
        .strip_prefix("target/programs")
        .or_else(|_| path.strip_prefix(directory))
        .ok()?;
    programs::names().find(|name| below == Path::new(name))
}

/// A shell's view of how a program ended: its status, or 128 and the signal.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_recognised() {
        assert_eq!(test_program("target/programs/planted_leak"), Some("planted_leak"));
        assert_eq!(test_program("target/programs/other"), None);
        assert_eq!(test_program("/bin/true"), None);
        assert_eq!(test_program("record"), None);
    }
}
