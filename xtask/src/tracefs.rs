//! tracefs: tracepoint ids are read from it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, packages};

const MOUNT_POINT: &str = "/sys/kernel/tracing";

/// Mounts tracefs where it is not mounted yet.
///
/// # Errors
/// Where it cannot be mounted, with the command to run by hand.
pub fn ensure() -> Result<()> {
    if Path::new(MOUNT_POINT).join("events/sched").is_dir() || Path::new("/sys/kernel/debug/tracing/events").is_dir() {
        return Ok(());
    }
    let by_hand = format!("mount -t tracefs tracefs {MOUNT_POINT}");
    eprintln!("setup: mounting tracefs at {MOUNT_POINT}");
    if !packages::is_root() {
        bail!("mounting tracefs needs root; run by hand: sudo {by_hand}");
    }
    command::run(Command::new("mount").args(["-t", "tracefs", "tracefs", MOUNT_POINT]))
        .with_context(|| format!("run by hand: {by_hand}"))
}
