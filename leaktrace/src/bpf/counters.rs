//! Loss counters of the kernel side.
//!
//! Invariant: a reading is one system call, since the reader of the ring makes one each turn.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use leaktrace_common::reason::Counter;

use super::syscall;

/// Reader of the counters.
pub struct Counters {
    map: OwnedFd,
    /// Possible CPUs: the kernel keeps a value for each.
    cpus: usize,
}

impl Counters {
    /// `map` is the array `COUNTERS`.
    pub(super) fn new(map: OwnedFd) -> io::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self { map, cpus })
    }

    /// Every counter, summed over the CPUs, indexed by its number.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is known of losses then.
    pub fn read(&self) -> io::Result<[u64; Counter::COUNT]> {
        let values = syscall::per_cpu_elements(self.map.as_fd(), Counter::COUNT, self.cpus)?;
        let mut counters = [0; Counter::COUNT];
        for (sum, values) in counters.iter_mut().zip(values.chunks_exact(self.cpus)) {
            *sum = values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value));
        }
        Ok(counters)
    }
}
