//! The clocks that the runtime's times are in.
//!
//! The target's monotonic clock is this one's unless it lives in a time namespace of its own.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::model::ProcessKey;
use crate::proc::identity;

fn nanos(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time: TimeSpec| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
    })
}

/// Now, in nanoseconds of the monotonic clock: the runtime's `nanotime`.
pub fn monotonic() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// Now, in nanoseconds since 1970.
pub fn unix() -> u64 {
    nanos(ClockId::CLOCK_REALTIME)
}

/// When a process started, in nanoseconds of the monotonic clock, to a hundredth of a second.
pub fn process_start(key: &ProcessKey) -> u64 {
    let since_boot = u64::try_from(identity::since_boot(key.start_time).as_nanos()).unwrap_or(u64::MAX);
    let suspended = nanos(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic());
    since_boot.saturating_sub(suspended)
}
