//! Two clocks: one that never goes back, and the wall's, which may jump.

use std::time::{Duration, Instant, SystemTime};

/// A moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Seconds of the own clock, which never goes back.
    pub seconds: u32,
    /// Nanoseconds since 1970.
    pub wall: u64,
}

/// Whole seconds of a duration, one at least.
pub fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// Nanoseconds since 1970, by the wall's clock.
pub fn wall() -> u64 {
    since_1970(SystemTime::now())
}

/// A moment of the wall's clock in nanoseconds since 1970.
pub fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The wall's time so long before a moment of it.
pub fn before(wall: u64, ago: Duration) -> u64 {
    wall.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX))
}

/// The own clock; it begins when it is made.
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
}

impl Now {
    /// The wall's time of a moment of the own clock, by what both say now: a course stays in one piece when the wall's
    /// clock jumps.
    pub fn wall_of(self, seconds: u32) -> u64 {
        self.wall
            .saturating_sub(u64::from(self.seconds.saturating_sub(seconds)).saturating_mul(1_000_000_000))
    }

    /// The reverse.
    pub fn seconds_of(self, wall: u64) -> u32 {
        let ago = self.wall.saturating_sub(wall) / 1_000_000_000;
        self.seconds.saturating_sub(u32::try_from(ago).unwrap_or(u32::MAX))
    }
}
