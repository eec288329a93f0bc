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
    /// What the counters were when they were read last; `None` where that failed, and anything may have been counted.
    counted: Option<[u64; Counter::COUNT]>,
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
            counted: None,
            deferred_seen: 0,
            lost_seen: 0,
            notices_lost_seen: 0,
        }
    }

    /// The kernel side's counters now; where they cannot be read, as they were last.
    pub fn counters(&mut self) -> [u64; Counter::COUNT] {
        let before = self.counted;
        self.read_counters();
        self.counted.or(before).unwrap_or([0; Counter::COUNT])
    }

    /// Waits until the kernel side asks for attention or the time is over.
    pub fn wait(&self, timeout: Duration) {
        self.ring.wait(timeout);
    }

    fn count(&self, counters: &[Counter]) -> Option<u64> {
        let counts = self.counted.as_ref()?;
        let counts = counters.iter().map(|counter| counts[*counter as usize]);
        Some(counts.fold(0, u64::wrapping_add))
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

    fn read_counters(&mut self) {
        self.counted = self
            .counters
            .read()
            .inspect_err(|error| tracing::debug!("failed to read the loss counters: {error}"))
            .ok();
    }

    fn take_deferred(&mut self, take: impl FnMut(ReleaseKey, u64)) {
        // An entry is counted behind its insertion, while its call is still being entered.
        let count = self.count(&DEFERRED);
        if count == Some(self.deferred_seen) {
            return;
        }
        match self.deferred.take(take) {
            Ok(()) => self.deferred_seen = count.unwrap_or(self.deferred_seen),
            // The rest is taken next time.
            Err(error) => tracing::debug!("failed to read deferred releases: {error}"),
        }
    }

    fn take_lost(&mut self) -> Vec<u32> {
        let count = self.count(&LOST);
        if count == Some(self.lost_seen) {
            return Vec::new();
        }
        self.lost_seen = count.unwrap_or(self.lost_seen);
        self.lost.take()
    }

    fn take_lost_notices(&mut self) -> bool {
        let Some(count) = self.count(&[Counter::NoticeLost]) else {
            return true;
        };
        std::mem::replace(&mut self.notices_lost_seen, count) != count
    }
}
