//! Attaching uprobes: which program serves which place, in an order that cannot invent a leak.
//!
//! Releases are attached first and detached last, then reallocations, then allocations: whatever is seen to be
//! allocated will be seen to be freed.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    num::NonZeroU32,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
};

use aya::programs::{
    ProgramError,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use leaktrace_common::signature::{Op, Signature};

use super::{
    kernel::{Kernel, LoadError, ProgramSet, Programs, uprobe},
    program::MultiProgram,
    syscall::{self, AttachType},
};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A call that gives a block back: entry only.
    Release,
    /// A call that returns a block: entry, and return by return probe.
    Call,
    /// The entry of a call whose return is probed by [`Role::ReturnSite`]s.
    Entry,
    /// A return instruction.
    ReturnSite,
}

/// One place to probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The file, held open by the caller.
    pub file: BorrowedFd<'a>,
    /// Place in the file.
    pub offset: u64,
    /// How to read the call.
    pub signature: Signature,
    /// What for.
    pub role: Role,
}

/// Why probes could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("failed to attach {count} uprobes for {}: {cause}", scope(*pid))]
    Multi {
        /// How many in one link.
        count: usize,
        /// Confined to.
        pid: Option<u32>,
        /// Why.
        cause: io::Error,
    },
    /// The kernel refused one.
    #[error("failed to attach uprobe at file offset {offset:#x} for {}: {cause}", scope(*pid))]
    Single {
        /// Where.
        offset: u64,
        /// Confined to.
        pid: Option<u32>,
        /// Why.
        cause: ProgramError,
    },
    /// A program is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl AttachError {
    /// The process ended while it was being attached to.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Multi { cause, .. } if cause.raw_os_error() == Some(libc::ESRCH))
    }
}

fn scope(pid: Option<u32>) -> String {
    pid.map_or_else(|| "all processes".to_owned(), |pid| format!("pid {pid}"))
}

enum Link {
    Multi(#[expect(dead_code, reason = "dropping it detaches")] OwnedFd),
    PerfEvent(#[expect(dead_code, reason = "dropping it detaches")] UProbeLink),
}

/// Attached probes. Dropping them detaches, allocations first.
#[derive(Default)]
pub struct Links {
    /// In the order of attaching.
    links: Vec<Link>,
}

impl Links {
    /// No probes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the probes of another set, attached later.
    pub fn append(&mut self, mut later: Links) {
        self.links.append(&mut later.links);
    }

    /// How many links there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        while self.links.pop().is_some() {}
    }
}

/// The place of a probe in the order of attaching.
fn rank(probe: &Probe<'_>) -> u8 {
    let op = probe.signature.op();
    match probe.role {
        Role::Release => 0,
        // A return without its entry is ignored, an entry without its return is a missed call.
        Role::ReturnSite => 1,
        _ if op == Op::Realloc as u8 || op == Op::Resize as u8 => 2,
        Role::Call | Role::Entry => 3,
    }
}

impl Kernel {
    /// Attaches probes, confined to one process if `pid` is given. All or none.
    /// `own` are programs of the process's own; without it the shared ones serve.
    pub fn attach(
        &mut self,
        probes: &[Probe<'_>],
        pid: Option<u32>,
        own: Option<&ProgramSet>,
    ) -> Result<Links, AttachError> {
        let mut groups: BTreeMap<(u8, Role, i32), Vec<&Probe<'_>>> = BTreeMap::new();
        for probe in probes {
            groups
                .entry((rank(probe), probe.role, probe.file.as_raw_fd()))
                .or_default()
                .push(probe);
        }
        let mut links = Links::new();
        for ((_, role, file), group) in groups {
            // A path through the descriptor names the very file that was inspected, even if its name is gone by now.
            let path = PathBuf::from(format!("/proc/self/fd/{file}"));
            match &self.programs {
                Programs::Session(shared) => {
                    let set = own.unwrap_or(shared);
                    let program = match role {
                        Role::Release => &set.release,
                        Role::Call => &set.allocate,
                        Role::Entry => &set.enter_site,
                        Role::ReturnSite => &set.return_site,
                    };
                    links.links.push(Link::Multi(attach_multi(program, path, &group, pid)?));
                }
                Programs::PerfEvent => {
                    for probe in group {
                        let programs: &[&str] = match role {
                            Role::Release => &["release_enter"],
                            Role::Call => &["allocate_leave", "allocate_enter"],
                            Role::Entry => &["allocate_enter_site"],
                            Role::ReturnSite => &["allocate_return_site"],
                        };
                        for program in programs {
                            links
                                .links
                                .push(Link::PerfEvent(self.attach_single(program, &path, probe, pid)?));
                        }
                    }
                }
            }
        }
        Ok(links)
    }

    /// Attaches programs that do nothing to the same places: what the probes cost by themselves.
    pub fn attach_bare(
        &mut self,
        probes: &[Probe<'_>],
        pid: Option<u32>,
        entry_only: bool,
    ) -> Result<Links, AttachError> {
        let load = |name, attach_type| {
            Ok::<_, AttachError>(MultiProgram::new(self.source.load(name, attach_type)?, attach_type))
        };
        let call = load(if entry_only { "bare_entry" } else { "bare" }, AttachType::Session)?;
        let entry = load("bare_entry", AttachType::Multi)?;
        let mut links = Links::new();
        for probe in probes {
            let path = PathBuf::from(format!("/proc/self/fd/{}", probe.file.as_raw_fd()));
            let program = if probe.role == Role::Call { &call } else { &entry };
            links
                .links
                .push(Link::Multi(attach_multi(program, path, &[probe], pid)?));
        }
        Ok(links)
    }

    fn attach_single(
        &mut self,
        program: &str,
        path: &PathBuf,
        probe: &Probe<'_>,
        pid: Option<u32>,
    ) -> Result<UProbeLink, AttachError> {
        let program = uprobe(&mut self.ebpf, program)?;
        let scope = pid
            .and_then(NonZeroU32::new)
            .map_or(UProbeScope::AllProcesses, UProbeScope::OneProcess);
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(probe.offset),
            cookie: Some(probe.signature.0),
        };
        let failed = |cause| AttachError::Single {
            offset: probe.offset,
            pid,
            cause,
        };
        let id = program.attach(point, path, scope).map_err(failed)?;
        program.take_link(id).map_err(failed)
    }
}

fn attach_multi(
    program: &MultiProgram,
    path: PathBuf,
    probes: &[&Probe<'_>],
    pid: Option<u32>,
) -> Result<OwnedFd, AttachError> {
    let failed = |cause| AttachError::Multi {
        count: probes.len(),
        pid,
        cause,
    };
    let path = CString::new(path.into_os_string().into_vec()).map_err(|error| failed(error.into()))?;
    let offsets: Vec<u64> = probes.iter().map(|probe| probe.offset).collect();
    let cookies: Vec<u64> = probes.iter().map(|probe| probe.signature.0).collect();
    syscall::attach_uprobes(program.fd(), program.attach_type(), &path, &offsets, &cookies, pid).map_err(failed)
}
