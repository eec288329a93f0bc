//! The set of blocks that were taken as samples, as userspace sees it: it only takes out what nobody will free.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, MapData};
use leaktrace_common::config::BlockKey;

use super::syscall;

/// Blocks taken as samples, of all processes: each with the number of programs that its process had run before.
pub struct SampledBlocks {
    blocks: HashMap<MapData, BlockKey, u32>,
    fd: OwnedFd,
}

impl SampledBlocks {
    pub(super) fn new(blocks: HashMap<MapData, BlockKey, u32>, fd: OwnedFd) -> Self {
        Self { blocks, fd }
    }

    /// Takes out blocks of a process whose frees will not be seen, but keeps those that were taken in the program that it
    /// runs now, if it still does. Looks at the whole set once, some milliseconds.
    pub fn forget(&mut self, pid: u32, still_running: Option<u32>) {
        let is_gone = |key: &BlockKey, program: u32| key.pid == pid && Some(program) != still_running;
        let blocks = &mut self.blocks;
        let looked = syscall::each_batch(self.fd.as_fd(), |batch: &[(BlockKey, u32)]| {
            for (key, _) in batch.iter().filter(|(key, program)| is_gone(key, *program)) {
                // One that is not there was freed a moment ago.
                let _ = blocks.remove(key);
            }
        });
        if let Err(error) = looked {
            tracing::debug!("failed to look through the samples of pid {pid}: {error}");
        }
    }
}
