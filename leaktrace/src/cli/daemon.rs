//! `leaktrace daemon`: read and check the configuration, then run.

use std::path::{Path, PathBuf};

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
    /// Check the configuration and the files that it names, with line and column of what is wrong, and end.
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
    if arguments.check {
        match &arguments.config {
            Some(path) => Config::check(path)?,
            None => Config::check_default()?,
        };
        let path = arguments.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        println!("{}: no errors", path.display());
        return Ok(());
    }
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::load_default()?,
    };
    features::require()?;
    run::run(Options {
        config,
        path: arguments.config.clone(),
    })?;
    Ok(())
}
