//! `leaktrace debug`: tools for measuring leaktrace itself.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::quantity;
use crate::bpf::features;

mod go_read;

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
    /// Feed the reader with records from the kernel, and print what it can take as JSON.
    Feed {
        /// Records.
        #[arg(long, default_value_t = 20_000_000)]
        events: u64,
        /// Blocks that stay allocated.
        #[arg(long, default_value_t = 1_000_000)]
        live: u64,
        /// Records a second.
        #[arg(long, default_value_t = 1_200_000.0)]
        rate: f64,
    },
    /// Read heap, goroutines and collector of a Go process, and print how long each read took as JSON.
    GoRead(go_read::GoReadArgs),
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
        Tool::Feed { events, live, rate } => {
            features::require()?;
            println!(
                "{}",
                serde_json::to_string(&crate::session::feed::measure(*events, *live, *rate)?)?
            );
            Ok(ExitCode::SUCCESS)
        }
        Tool::GoRead(arguments) => {
            go_read::run(arguments)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
