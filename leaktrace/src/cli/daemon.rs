//! `leaktrace daemon`: read and check the configuration, then run.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{
    bpf::features,
    daemon::{
        config::{Config, DEFAULT_PATH, reference},
        run::{self, Options},
    },
};

/// Arguments of `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Configuration [default: /etc/leaktrace.toml, or the defaults where there is none]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, with line and column of what is wrong, and end.
    #[arg(long)]
    check: bool,
    /// Print the reference of all configuration keys, and end.
    #[arg(long, conflicts_with = "check")]
    reference: bool,
}

/// Runs `daemon`.
pub fn run(arguments: &DaemonArgs) -> Result<()> {
    if arguments.reference {
        print!("{}", reference());
        return Ok(());
    }
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::load_default()?,
    };
    if arguments.check {
        let path = arguments.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
        println!("{}: no errors", path.display());
        return Ok(());
    }
    features::require()?;
    run::run(Options {
        config,
        path: arguments.config.clone(),
    })?;
    Ok(())
}
