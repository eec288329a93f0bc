//! Reader of the ring buffer, which knows at which position of the stream each record stands.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use memmap2::{MmapOptions, MmapRaw};

use crate::model::page_size;

/// Bytes in front of each record on the ring, and the alignment of the next one.
const RECORD_HEADER: u64 = 8;

/// Reader of the records.
pub struct Ring {
    ring: RingBuf<MapData>,
    /// The page that begins with the position behind the last record that was reserved.
    producer: MmapRaw,
    position: u64,
    bytes: u32,
}

impl Ring {
    pub(super) fn new(ring: RingBuf<MapData>, bytes: u32) -> io::Result<Self> {
        // The first page of the mapping holds the reader's position, the second one the writers'.
        let page = page_size();
        let producer = MmapOptions::new()
            .offset(page)
            .len(page as usize)
            .map_raw_read_only(ring.as_fd().as_raw_fd())?;
        Ok(Self {
            ring,
            producer,
            position: 0,
            bytes,
        })
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

    /// Position behind the last record made so far.
    pub fn produced(&self) -> u64 {
        // SAFETY: the page is mapped as long as `self` lives and begins with an aligned word, which the kernel changes by
        // single stores.
        unsafe { &*self.producer.as_ptr().cast::<AtomicU64>() }.load(Ordering::Acquire)
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
