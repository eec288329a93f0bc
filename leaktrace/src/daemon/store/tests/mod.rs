//! The store as a whole: crashes at every step, full disks, hostile folders.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lets system calls of a folder fail.
#[derive(Debug)]
pub(super) struct Faults {
    /// Calls that succeed before the process is as good as dead: every later one fails.
    left: AtomicU64,
    /// Writing fails for want of room.
    full: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            left: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
        }
    }
}

impl Faults {
    pub(super) fn step(&self, verb: &str) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other("crash"));
        }
        self.left.store(left - 1, Ordering::Relaxed);
        if self.full.load(Ordering::Relaxed) && verb == "write" {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(())
    }
}
