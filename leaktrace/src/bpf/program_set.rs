//! The uprobe programs, one instance of each. A process that has a set of its own can be told apart in what the kernel
//! counts.

use super::{
    kernel::{LoadError, UprobeMechanism},
    links::Role,
    program::{ProgramSource, UprobeProgram},
    syscall::AttachType,
    usage::Usage,
};

/// One instance of each uprobe program, for any number of places.
pub struct ProgramSet {
    /// For returns of calls, where another program serves their entries. A return without its entry is ignored, so these
    /// probes come first.
    returns: Option<UprobeProgram>,
    /// For entries of calls, and a session's returns.
    calls: UprobeProgram,
    entries: UprobeProgram,
    return_sites: UprobeProgram,
    releases: UprobeProgram,
}

impl ProgramSet {
    pub(super) fn load(source: &ProgramSource, mechanism: UprobeMechanism) -> Result<Self, LoadError> {
        let (returns, calls, others) = match mechanism {
            UprobeMechanism::Session => (
                None,
                UprobeProgram::load(source, "allocate_session", AttachType::Session)?,
                AttachType::Multi,
            ),
            UprobeMechanism::PerfEvent => (
                Some(UprobeProgram::load_for_returns(source, "allocate_leave")?),
                UprobeProgram::load(source, "allocate_enter", AttachType::PerfEvent)?,
                AttachType::PerfEvent,
            ),
        };
        Ok(Self {
            returns,
            calls,
            entries: UprobeProgram::load(source, "allocate_enter_site", others)?,
            return_sites: UprobeProgram::load(source, "allocate_return_site", others)?,
            releases: UprobeProgram::load(source, "release_enter", others)?,
        })
    }

    /// The programs that serve a probe, in the order of attaching.
    pub(super) fn serving(&self, role: Role) -> impl Iterator<Item = &UprobeProgram> {
        let (first, last) = match role {
            Role::Release => (None, &self.releases),
            Role::Call => (self.returns.as_ref(), &self.calls),
            Role::Entry => (None, &self.entries),
            Role::ReturnSite => (None, &self.return_sites),
        };
        first.into_iter().chain([last])
    }

    /// How often the programs ran and for how long, all together.
    pub fn usage(&self) -> Usage {
        let of = |program: &UprobeProgram| program.usage();
        let (calls, entries) = (of(&self.calls), of(&self.entries));
        let (return_sites, releases) = (of(&self.return_sites), of(&self.releases));
        let returns = self.returns.as_ref().map(of).unwrap_or_default();
        Usage {
            calls: calls.0 + entries.0,
            returns: returns.0,
            return_sites: return_sites.0,
            releases: releases.0,
            time: calls.1 + entries.1 + returns.1 + return_sites.1 + releases.1,
        }
    }
}
