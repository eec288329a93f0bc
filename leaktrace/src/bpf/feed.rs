//! A source of records that needs no target (see `leaktrace-ebpf/src/probes/feed.rs`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::programs::RawTracePoint;

use super::{
    kernel::{Kernel, LoadError},
    program, syscall,
};

/// Pairs of records that one run makes.
pub const PAIRS: u64 = 512;

/// Makes records: allocations, and frees of all but the last so many.
pub struct Feed {
    program: OwnedFd,
    next: u64,
    live: u64,
}

impl Kernel {
    /// A source of records whose live set has `live` blocks.
    pub fn feed(&mut self, live: u64) -> Result<Feed, LoadError> {
        let program: &mut RawTracePoint = self.program("feed")?;
        let failed = |cause| LoadError::Program { program: "feed", cause };
        program::load("feed", || program.load())?;
        let fd = program.fd().map_err(failed)?.as_fd();
        tracing::debug!("feed is program {}", fd.as_raw_fd());
        let program = fd.try_clone_to_owned().map_err(|cause| failed(cause.into()))?;
        Ok(Feed { program, next: 0, live })
    }
}

impl Feed {
    /// Makes the next [`PAIRS`] pairs.
    pub fn run(&mut self) -> io::Result<()> {
        syscall::run_once(self.program.as_fd(), &[self.next, self.live])?;
        self.next += PAIRS;
        Ok(())
    }
}
