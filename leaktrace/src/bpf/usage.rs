//! What programs cost: how often each ran and for how long, as the kernel counts it while asked to.
//!
//! Counting costs some ten nanoseconds a run on the whole machine, so it is on only while a [`Counting`] lives.

use std::{io, os::fd::OwnedFd, time::Duration};

use aya::sys::Stats;

use super::{program::MultiProgram, syscall};

/// How often programs ran, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Runs.
    pub runs: u64,
    /// Time in all of them.
    pub time: Duration,
}

impl Usage {
    /// What came on top of an earlier usage.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(earlier.runs),
            time: self.time.saturating_sub(earlier.time),
        }
    }

    pub(super) fn of(program: &MultiProgram) -> Self {
        let (runs, nanos) = syscall::program_usage(program.fd()).unwrap_or_default();
        Self {
            runs,
            time: Duration::from_nanos(nanos),
        }
    }
}

/// The kernel counts runs while this lives.
pub struct Counting(#[expect(dead_code, reason = "closing it ends the counting")] OwnedFd);

impl Counting {
    /// Begins to count.
    ///
    /// # Errors
    /// When the kernel refuses: before 5.8, or without the privilege.
    pub fn begin() -> io::Result<Self> {
        aya::sys::enable_stats(Stats::RunTime)
            .map(Self)
            .map_err(|error| error.io_error)
    }
}
