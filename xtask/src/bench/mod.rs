//! `bench`: leaktrace beside its peers.

use anyhow::{Result, bail};
use clap::Args;

/// Arguments of `bench`.
#[derive(Args)]
pub struct Options {}

/// The command.
pub fn run(_options: &Options) -> Result<()> {
    bail!("not yet")
}
