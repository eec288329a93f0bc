//! Frees whose record did not fit into the ring, with the position in the stream at which they belong.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, MapData};
use leaktrace_common::config::BlockKey;

use super::syscall;

/// The overflow set.
pub struct DeferredFrees {
    keys: HashMap<MapData, BlockKey, u64>,
    fd: OwnedFd,
}

/// A free and the position in the stream of records at which it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredFree {
    /// Process.
    pub pid: u32,
    /// Block.
    pub address: u64,
    /// Every record that begins before this position happened before the free.
    pub position: u64,
}

impl DeferredFrees {
    /// `fd` is the same map.
    pub(super) fn new(keys: HashMap<MapData, BlockKey, u64>, fd: OwnedFd) -> Self {
        Self { keys, fd }
    }

    /// Takes at most `limit` frees out of the set, each in one step, so that a later free of the same address is not
    /// lost between reading and deleting.
    pub fn take(&mut self, limit: usize) -> Vec<DeferredFree> {
        let keys: Vec<BlockKey> = self.keys.keys().take(limit).filter_map(Result::ok).collect();
        keys.into_iter()
            .filter_map(|key| {
                let position = syscall::take_element(self.fd.as_fd(), &key).ok()?;
                Some(DeferredFree {
                    pid: key.pid,
                    address: key.address,
                    position,
                })
            })
            .collect()
    }
}
