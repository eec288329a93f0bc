//! Releases whose record did not fit into the ring, with the position in the stream at which they belong.

use std::os::fd::{AsFd, OwnedFd};

use leaktrace_common::config::ReleaseKey;

use super::syscall;

/// The overflow set.
pub struct DeferredReleases {
    fd: OwnedFd,
}

impl DeferredReleases {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Takes all out of the set that were in it when this began, each with its position: every record that begins before
    /// it happened before the release. Some that come meanwhile may be among them.
    ///
    /// # Errors
    /// When the kernel refuses; then the rest is still in the set.
    pub fn take(&self, mut take: impl FnMut(ReleaseKey, u64)) -> std::io::Result<()> {
        syscall::take_batches(self.fd.as_fd(), |batch: &[(ReleaseKey, u64)]| {
            batch.iter().for_each(|(key, position)| take(*key, *position));
        })
    }
}
