//! The uprobe programs, one instance of each. A process that has a set of its own can be told apart in what the kernel
//! counts.

use std::sync::OnceLock;

use super::{
    kernel::{LoadError, UprobeMechanism},
    links::Role,
    program::{ProgramSource, UprobeProgram},
    syscall::AttachType,
    usage::Usage,
};

/// One instance of each uprobe program, for any number of places. Each is loaded when a probe needs it first: the
/// verifier takes a tenth of a second and more for those that walk stacks, and most processes need two of them.
pub struct ProgramSet {
    mechanism: UprobeMechanism,
    /// For returns of calls, where another program serves their entries.
    returns: OnceLock<UprobeProgram>,
    /// For entries of calls, and a session's returns.
    calls: OnceLock<UprobeProgram>,
    entries: OnceLock<UprobeProgram>,
    return_sites: OnceLock<UprobeProgram>,
    releases: OnceLock<UprobeProgram>,
}

impl ProgramSet {
    /// None is loaded yet.
    pub(super) fn new(mechanism: UprobeMechanism) -> Self {
        Self {
            mechanism,
            returns: OnceLock::new(),
            calls: OnceLock::new(),
            entries: OnceLock::new(),
            return_sites: OnceLock::new(),
            releases: OnceLock::new(),
        }
    }

    /// Loads all of them.
    pub(super) fn load_all(&self, source: &ProgramSource) -> Result<(), LoadError> {
        for role in [Role::Release, Role::Call, Role::Entry, Role::ReturnSite] {
            self.serving(source, role)?;
        }
        Ok(())
    }

    /// The programs that serve a probe, in the order of attaching. A return without its entry is ignored, so its program
    /// comes first.
    pub(super) fn serving(&self, source: &ProgramSource, role: Role) -> Result<Vec<&UprobeProgram>, LoadError> {
        let others = match self.mechanism {
            UprobeMechanism::Session => AttachType::Multi,
            UprobeMechanism::PerfEvent => AttachType::PerfEvent,
        };
        let single =
            |cell, name| loaded(cell, || UprobeProgram::load(source, name, others)).map(|program| vec![program]);
        match (role, self.mechanism) {
            (Role::Release, _) => single(&self.releases, "release_enter"),
            (Role::Entry, _) => single(&self.entries, "allocate_enter_site"),
            (Role::ReturnSite, _) => single(&self.return_sites, "allocate_return_site"),
            (Role::Call, UprobeMechanism::Session) => loaded(&self.calls, || {
                UprobeProgram::load(source, "allocate_session", AttachType::Session)
            })
            .map(|program| vec![program]),
            (Role::Call, UprobeMechanism::PerfEvent) => Ok(vec![
                loaded(&self.returns, || {
                    UprobeProgram::load_for_returns(source, "allocate_leave")
                })?,
                loaded(&self.calls, || UprobeProgram::load(source, "allocate_enter", others))?,
            ]),
        }
    }

    /// How often the programs ran and for how long, all together.
    pub fn usage(&self) -> Usage {
        let of = |program: &OnceLock<UprobeProgram>| program.get().map(UprobeProgram::usage).unwrap_or_default();
        let (calls, entries) = (of(&self.calls), of(&self.entries));
        let (return_sites, releases) = (of(&self.return_sites), of(&self.releases));
        let returns = of(&self.returns);
        Usage {
            calls: calls.0 + entries.0,
            returns: returns.0,
            return_sites: return_sites.0,
            releases: releases.0,
            time: calls.1 + entries.1 + returns.1 + return_sites.1 + releases.1,
        }
    }
}

/// What a cell holds, loaded if it holds nothing yet.
fn loaded(
    cell: &OnceLock<UprobeProgram>,
    load: impl FnOnce() -> Result<UprobeProgram, LoadError>,
) -> Result<&UprobeProgram, LoadError> {
    if let Some(program) = cell.get() {
        return Ok(program);
    }
    let program = load()?;
    Ok(cell.get_or_init(|| program))
}
