//! The kernel side as a source of the stream: its ring, and the maps beside it, read when its counters say so.

use std::time::Duration;

use leaktrace_common::{config::ReleaseKey, reason::Counter};

use super::stream::Source;
use crate::bpf::{counters::Counters, deferred::DeferredReleases, lost::LostReleases, ring::Ring};

/// What counts entries of the overflow set.
const DEFERRED: [Counter; 4] = [
    Counter::FreeDeferred,
    Counter::ReallocBeginDeferred,
    Counter::UnmapDeferred,
    Counter::ExecDeferred,
];
/// What counts releases that were lost for good.
const LOST: [Counter; 3] = [Counter::FreeLost, Counter::UnmapLost, Counter::ExecLost];

/// The ring with what belongs to it.
pub struct KernelSource {
    ring: Ring,
    deferred: DeferredReleases,
    lost: LostReleases,
    counters: Counters,
    /// What was counted when the maps were read last.
    deferred_seen: u64,
    lost_seen: u64,
    notices_lost_seen: u64,
}

impl KernelSource {
    /// Of the parts of one loaded kernel side.
    pub fn new(ring: Ring, deferred: DeferredReleases, lost: LostReleases, counters: Counters) -> Self {
        Self {
            ring,
            deferred,
            lost,
            counters,
            deferred_seen: 0,
            lost_seen: 0,
            notices_lost_seen: 0,
        }
    }

    /// The kernel side's counters.
    pub fn counters(&self) -> [u64; Counter::COUNT] {
        self.counters.read()
    }

    /// Waits until the kernel side asks for attention or the time is over.
    pub fn wait(&self, timeout: Duration) {
        self.ring.wait(timeout);
    }

    fn count(&self, counters: &[Counter]) -> u64 {
        let counts = self.counters.read();
        counters
            .iter()
            .fold(0, |sum, counter| sum.wrapping_add(counts[*counter as usize]))
    }
}

impl Source for KernelSource {
    fn drain(&mut self, limit: usize, consume: impl FnMut(u64, &[u8])) -> usize {
        self.ring.drain(limit, consume)
    }

    fn position(&self) -> u64 {
        self.ring.position()
    }

    fn produced(&self) -> u64 {
        self.ring.produced()
    }

    fn take_deferred(&mut self, take: impl FnMut(ReleaseKey, u64)) {
        // An entry is counted behind its insertion, while its call is still being entered.
        let count = self.count(&DEFERRED);
        if count == self.deferred_seen {
            return;
        }
        match self.deferred.take(take) {
            Ok(()) => self.deferred_seen = count,
            // The rest is taken next time.
            Err(error) => tracing::debug!("failed to read deferred releases: {error}"),
        }
    }

    fn take_lost(&mut self) -> Vec<u32> {
        let count = self.count(&LOST);
        if count == self.lost_seen {
            return Vec::new();
        }
        self.lost_seen = count;
        self.lost.take()
    }

    fn take_lost_notices(&mut self) -> bool {
        let count = self.count(&[Counter::NoticeLost]);
        std::mem::replace(&mut self.notices_lost_seen, count) != count
    }
}
