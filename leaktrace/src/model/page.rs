//! The page of this machine.
//!
//! Everything that counts or rounds in pages asks here. Invariant: the size is a power of two, and the same for the whole
//! run.

use std::sync::OnceLock;

use nix::unistd::{SysconfVar, sysconf};

/// The smallest page of any architecture that Linux runs on here. Stands in where the system does not say.
const SMALLEST: u64 = 4096;

/// Bytes of a page on this machine; the system is asked once.
pub fn page_size() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
        bytes.filter(|bytes| bytes.is_power_of_two()).unwrap_or(SMALLEST)
    })
}
