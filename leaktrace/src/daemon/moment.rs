//! The daemon's two clocks: its own, which never goes back, and the wall's, which may jump.

use std::time::{Instant, SystemTime};

use super::policy::Now;

/// Nanoseconds since 1970, by the wall's clock.
pub fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The daemon's own clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begin: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { begin: Instant::now() }
    }
}

impl Clock {
    /// Now, by both clocks.
    pub fn now(&self) -> Now {
        Now {
            seconds: u32::try_from(self.begin.elapsed().as_secs()).unwrap_or(u32::MAX),
            wall: wall(),
        }
    }

    /// The wall's time of a moment of the own clock, by what both say now: a course stays in one piece when the wall's
    /// clock jumps.
    pub fn wall_of(now: Now, seconds: u32) -> u64 {
        now.wall
            .saturating_sub(u64::from(now.seconds.saturating_sub(seconds)).saturating_mul(1_000_000_000))
    }
}
