//! The uprobe programs, one instance of each. A process that has a set of its own can be told apart in what the kernel
//! counts.

use std::{sync::OnceLock, time::Duration};

use super::{
    kernel::{LoadError, UprobeMechanism},
    links::Role,
    program::{ProgramSource, UprobeProgram},
    syscall::AttachType,
    usage::Usage,
};

/// One instance of each uprobe program, for any number of places.
pub struct ProgramSet {
    mechanism: UprobeMechanism,
    /// For returns of calls, where another program serves their entries. A return without its entry is ignored, so these
    /// probes come first.
    returns: Option<Instance>,
    /// For entries of calls, and a session's returns.
    calls: Instance,
    entries: Instance,
    return_sites: Instance,
    releases: Instance,
}

impl ProgramSet {
    pub(super) fn new(mechanism: UprobeMechanism) -> Self {
        let (returns, calls, others) = match mechanism {
            UprobeMechanism::Session => (
                None,
                Instance::new("allocate_session", AttachType::Session),
                AttachType::Multi,
            ),
            UprobeMechanism::PerfEvent => (
                Some(Instance::for_returns("allocate_leave")),
                Instance::new("allocate_enter", AttachType::PerfEvent),
                AttachType::PerfEvent,
            ),
        };
        Self {
            mechanism,
            returns,
            calls,
            entries: Instance::new("allocate_enter_site", others),
            return_sites: Instance::new("allocate_return_site", others),
            releases: Instance::new("release_enter", others),
        }
    }

    /// How these programs are attached.
    pub fn mechanism(&self) -> UprobeMechanism {
        self.mechanism
    }

    /// The programs that serve a probe, in the order of attaching.
    pub(super) fn serving(&self, role: Role) -> impl Iterator<Item = &Instance> {
        let (first, last) = match role {
            Role::Release => (None, &self.releases),
            Role::Call => (self.returns.as_ref(), &self.calls),
            Role::Entry => (None, &self.entries),
            Role::ReturnSite => (None, &self.return_sites),
        };
        first.into_iter().chain([last])
    }

    /// Loads all of them.
    pub(super) fn load_all(&self, source: &ProgramSource) -> Result<(), LoadError> {
        for role in [Role::Release, Role::Call, Role::Entry, Role::ReturnSite] {
            for instance in self.serving(role) {
                instance.load(source)?;
            }
        }
        Ok(())
    }

    /// How often the programs ran and for how long, all together.
    pub fn usage(&self) -> Usage {
        let (calls, entries) = (self.calls.usage(), self.entries.usage());
        let (return_sites, releases) = (self.return_sites.usage(), self.releases.usage());
        let returns = self.returns.as_ref().map(Instance::usage).unwrap_or_default();
        Usage {
            calls: calls.0 + entries.0,
            returns: returns.0,
            return_sites: return_sites.0,
            releases: releases.0,
            time: calls.1 + entries.1 + returns.1 + return_sites.1 + releases.1,
        }
    }
}

/// An instance of one program, loaded when a probe needs it first: the verifier takes a tenth of a second and more for
/// those that walk stacks, and most processes need two programs.
pub(super) struct Instance {
    name: &'static str,
    attach_type: AttachType,
    at_return: bool,
    program: OnceLock<UprobeProgram>,
}

impl Instance {
    fn new(name: &'static str, attach_type: AttachType) -> Self {
        Self {
            name,
            attach_type,
            at_return: false,
            program: OnceLock::new(),
        }
    }

    /// The same for returns alone, as perf events.
    fn for_returns(name: &'static str) -> Self {
        Self {
            at_return: true,
            ..Self::new(name, AttachType::PerfEvent)
        }
    }

    /// The program, loaded now if it was not yet.
    pub(super) fn load(&self, source: &ProgramSource) -> Result<&UprobeProgram, LoadError> {
        if let Some(program) = self.program.get() {
            return Ok(program);
        }
        let program = if self.at_return {
            UprobeProgram::load_for_returns(source, self.name)?
        } else {
            UprobeProgram::load(source, self.name, self.attach_type)?
        };
        Ok(self.program.get_or_init(|| program))
    }

    fn usage(&self) -> (u64, Duration) {
        self.program.get().map(UprobeProgram::usage).unwrap_or_default()
    }
}
