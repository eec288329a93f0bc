//! What programs cost: how often each ran and for how long, as the kernel counts it while asked to.
//!
//! Counting costs some ten nanoseconds a run on the whole machine, so it is on only while a [`Counting`] lives.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use aya::sys::Stats;

use super::capability::SYS_ADMIN;

/// How often the programs of a set ran, by what their probes are for, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// At entries of calls that return a block. The returns that a session asked for are among them.
    pub calls: u64,
    /// At returns of such calls, where a program of its own serves them.
    pub returns: u64,
    /// At return instructions.
    pub return_sites: u64,
    /// At calls that give a block back.
    pub releases: u64,
    /// Time in all of them.
    pub time: Duration,
}

impl Usage {
    /// Runs of all programs.
    pub fn runs(self) -> u64 {
        self.calls + self.returns + self.return_sites + self.releases
    }

    /// What came on top of an earlier usage.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(earlier.calls),
            returns: self.returns.saturating_sub(earlier.returns),
            return_sites: self.return_sites.saturating_sub(earlier.return_sites),
            releases: self.releases.saturating_sub(earlier.releases),
            time: self.time.saturating_sub(earlier.time),
        }
    }
}

/// The kernel counts runs while this lives.
pub struct Counting(#[expect(dead_code, reason = "closing it ends the counting")] OwnedFd);

impl Counting {
    /// Begins to count.
    ///
    /// # Errors
    /// When the kernel refuses: without the privilege.
    pub fn begin() -> io::Result<Self> {
        aya::sys::enable_stats(Stats::RunTime)
            .map(Self)
            .map_err(|error| error.io_error)
    }
}

/// Why runs cannot be counted, and what can be done about it; `None` if they can.
pub fn obstacle() -> Option<String> {
    let always = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() != "0");
    let cause = Counting::begin().err()?;
    (!always).then(|| {
        format!(
            "the CPU time of probes cannot be measured, so that target_cpu and machine_cpu of [budget] are not kept: \
             {cause}; run with {}, or set sysctl kernel.bpf_stats_enabled=1",
            SYS_ADMIN.name
        )
    })
}
