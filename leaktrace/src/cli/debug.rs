//! `leaktrace debug`: tools for measuring leaktrace itself.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::quantity;

/// Arguments of `debug`.
#[derive(Debug, Args)]
pub struct DebugArgs {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Attach programs that do nothing where recording would attach its own.
    BareProbes {
        /// Process.
        #[arg(short, long)]
        pid: u32,
        /// No return probes.
        #[arg(long)]
        entry_only: bool,
        /// How long.
        #[arg(short, long, value_parser = quantity::duration)]
        duration: Duration,
    },
}

/// Runs a tool.
pub fn run(arguments: &DebugArgs) -> Result<ExitCode> {
    match &arguments.tool {
        Tool::BareProbes {
            pid,
            entry_only,
            duration,
        } => {
            crate::session::bare::hold(*pid, *entry_only, *duration)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
