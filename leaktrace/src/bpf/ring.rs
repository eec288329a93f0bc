//! Reader of the ring buffer, which knows at which position of the stream each record stands.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};

/// Bytes in front of each record on the ring, and the alignment of the next one.
const RECORD_HEADER: u64 = 8;

/// Reader of the records.
pub struct Ring {
    ring: RingBuf<MapData>,
    position: u64,
    bytes: u32,
}

impl Ring {
    pub(super) fn new(ring: RingBuf<MapData>, bytes: u32) -> Self {
        Self {
            ring,
            position: 0,
            bytes,
        }
    }

    /// Size of the buffer in bytes.
    pub fn capacity(&self) -> u32 {
        self.bytes
    }

    /// Hands at most `limit` records to `consume`, each with the position at which it begins. Returns how many.
    ///
    /// The kernel side never discards a record, so the position is the sum of the records' lengths.
    pub fn drain(&mut self, limit: usize, mut consume: impl FnMut(u64, &[u8])) -> usize {
        for count in 0..limit {
            let Some(record) = self.ring.next() else {
                return count;
            };
            consume(self.position, &record);
            self.position += (record.len() as u64 + RECORD_HEADER).next_multiple_of(8);
        }
        limit
    }

    /// Position behind the last record read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Waits until the kernel side asks for attention (it does so for notices only) or the time is over.
    pub fn wait(&self, timeout: Duration) {
        let mut poll = libc::pollfd {
            fd: self.ring.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd on the stack; its descriptor lives as long as `self`.
        unsafe { libc::poll(&mut poll, 1, timeout.as_millis().min(i32::MAX as u128) as i32) };
    }

    /// The descriptor to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
