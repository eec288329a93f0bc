//! `run`: leaktrace from the source tree.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, command};

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

/// A shell's view of how a program ended: its status, or 128 and the signal.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
