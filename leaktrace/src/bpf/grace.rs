//! Waiting until every program that runs in the kernel has finished.
//!
//! A program can be preempted in the middle for as long as its thread gets no CPU, so no pause is long enough by itself.
//! The kernel waits for all running programs when an array of maps is changed, so that whoever changed it can rely on the
//! new map's being used; here the same map is put there again.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use super::syscall::{self, MapType};

/// Where the kernel refuses to wait: programs run for microseconds.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for running programs.
pub struct GracePeriod {
    maps: Option<Maps>,
    /// When the last wait that came to its end began: programs that began before it have finished.
    waited: Mutex<Option<Instant>>,
}

struct Maps {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Maps {
    fn new() -> io::Result<Self> {
        let inner = syscall::create_map(MapType::Array, None)?;
        let outer = syscall::create_map(MapType::ArrayOfMaps, Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    fn wait(&self) -> io::Result<()> {
        syscall::set_element(self.outer.as_fd(), 0, self.inner.as_raw_fd() as u32)
    }
}

impl GracePeriod {
    pub(super) fn new() -> Self {
        let maps = Maps::new();
        if let Err(error) = &maps {
            tracing::debug!("no map to wait for programs with: {error}");
        }
        Self {
            maps: maps.ok(),
            waited: Mutex::new(None),
        }
    }

    /// Returns when no program runs any more that had begun by `moment`.
    pub fn wait_for_programs_of(&self, moment: Instant) {
        let mut waited = self.waited.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if waited.is_some_and(|begun| begun > moment) {
            return;
        }
        let begun = Instant::now();
        let done = self.maps.as_ref().map(Maps::wait);
        if !matches!(done, Some(Ok(()))) {
            tracing::debug!("the kernel did not wait for programs: {done:?}");
            thread::sleep(PAUSE);
        }
        *waited = Some(begun);
    }
}
