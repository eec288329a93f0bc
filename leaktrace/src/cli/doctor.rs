//! `leaktrace doctor`: what would work here, what would not, and what to do about it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Process to look at.
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,
}

/// Runs `doctor`.
pub fn run(_arguments: &DoctorArgs) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
